"""The built-in task's small model: its words, tokenizer, architecture and shipped weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from transformers import AddedToken, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from siri_train.config.model import ArchitectureConfig

START_FOLDER = Path(__file__).parent / "embedded_start"
"""The shipped supervised start, made by ``python -m siri_train.commands.build_demo_start``.

Scripts outside find the folder by its name.
"""
START_FOLDERS = {
    "embedded": START_FOLDER,
    "embedded-search": Path(__file__).parent / "embedded_search_start",
}
"""The shipped starts by the name that ``model.path`` takes: of arithmetic and of search."""

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
THINK, END_THINK, WAIT = "<think>", "</think>", "wait"
BOX_OPEN, BOX_CLOSE, ASK, EQUALS = "\\boxed{", "}", "?", "="

DIGITS = tuple(str(digit) for digit in range(10))
OPERATIONS = tuple(f"+{n}" for n in range(1, 10)) + tuple(f"*{n}" for n in range(2, 10))
WORDS = (
    (PAD, BOS, EOS, THINK, END_THINK, WAIT, BOX_OPEN, BOX_CLOSE, ASK, EQUALS) + DIGITS + OPERATIONS
)
WORD_ID = {word: index for index, word in enumerate(WORDS)}


def tokenizer() -> Qwen2Tokenizer:
    """One token a word: a Qwen2 tokenizer without merges, the task's words as added tokens.

    ``AutoTokenizer`` loads this class for every Qwen2 model, whatever the folder says, so a
    tokenizer of another class would not survive saving and loading. Words include the blank before
    them, as in byte-level vocabularies, so that decoding gives back the encoded text.
    """
    special = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS}
    built = Qwen2Tokenizer(vocab={PAD: 0}, merges=[], unk_token=PAD, **special)
    built.add_tokens(
        [
            AddedToken(word, normalized=False, special=True)
            if word in special.values()
            else AddedToken(f" {word}", normalized=False)
            for word in WORDS
        ]
    )
    return built


def scratch_model(architecture: ArchitectureConfig) -> tuple[Any, Qwen2Tokenizer]:
    """A Qwen2 model with random weights and its tokenizer."""
    return Qwen2ForCausalLM(scratch_config(architecture)).float(), tokenizer()


def scratch_config(architecture: ArchitectureConfig) -> Qwen2Config:
    """The configuration of the model that :func:`scratch_model` builds."""
    return Qwen2Config(
        vocab_size=len(WORDS),
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads,
        max_position_embeddings=architecture.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=WORD_ID[PAD],
        bos_token_id=WORD_ID[BOS],
        eos_token_id=WORD_ID[EOS],
    )


@cache
def start_parameters() -> int:
    """Number of parameters of the shipped start."""
    from safetensors import safe_open

    with safe_open(START_FOLDER / "model.safetensors", framework="pt") as file:
        sizes = [file.get_slice(name).get_shape() for name in file.keys()]
    total = 0
    for shape in sizes:
        count = 1
        for side in shape:
            count *= side
        total += count
    return total
