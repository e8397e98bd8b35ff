"""The embedded task as the trainer sees it: questions, tokenizer, model. No download."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AddedToken, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from siri_train.config import ArchitectureConfig, ConfigError
from siri_train.data import arithmetic as task
from siri_train.data.questions import Question
from siri_train.data.supervised import SupervisedExample

START_FOLDER = Path(__file__).parent / "embedded_start"
"""The supervised start that is shipped; ``python -m siri_train.data.build_start`` makes it."""

# One question in eight is held out, chosen by its text: train and eval can never share one.
_HELD_OUT = 8


def questions(
    size: int,
    seed: int = 0,
    held_out: bool = False,
    *,
    progress: Callable[[int], None] | None = None,
    **params: Any,
) -> list[Question]:
    """Generate different questions with wasteful worked solutions.

    Args:
        size: how many.
        seed: the same seed gives the same questions.
        held_out: draw from the share that training never sees.
        progress: called every 256 attempts with the number of questions found.
        params: fields of :class:`siri_train.data.arithmetic.TaskConfig`.

    Raises:
        ConfigError: an unknown parameter, or more questions than the task has.
    """
    try:
        config = task.TaskConfig(**params)
    except (TypeError, ValueError) as error:
        reason = str(error).replace("TaskConfig.__init__() got an unexpected", "got an unexpected")
        names = ", ".join(field.name for field in fields(task.TaskConfig))
        raise ConfigError(f"params of the embedded task: {reason}; takes {names}") from error
    rng = random.Random(f"{seed}/{held_out}")
    found: dict[str, Question] = {}
    last = 0  # attempt that found one
    for attempt in range(1000 + 50 * size):
        if attempt - last > 1000 + 50 * len(found):  # then there are no others
            break
        if progress is not None and attempt % 256 == 0:
            progress(len(found))
        question = task.make_question(rng, config)
        solution = " ".join(task.make_chain(rng, question, config))
        prompt = " ".join(question.prompt_words)
        if is_held_out(prompt) == held_out and prompt not in found:
            last = attempt
            found[prompt] = Question(
                f"embedded-{seed}-{attempt}", prompt, question.answer, solution
            )
        if len(found) == size:
            return list(found.values())
    raise ConfigError(
        f"size: the embedded task has fewer than {size} different questions of these params "
        f"({len(found)} found); lower it"
    )


def is_held_out(prompt: str) -> bool:
    """Whether a question belongs to the share that training never sees."""
    return zlib.crc32(prompt.encode()) % _HELD_OUT == 0


def tokenizer() -> Qwen2Tokenizer:
    """One token a word: a Qwen2 tokenizer without merges, the task's words as added tokens.

    ``AutoTokenizer`` loads this very class for every Qwen2 model, whatever the folder says, so any
    other kind would change its mind between two loads. Words carry the blank before them, as in
    byte-level vocabularies, so that text comes back as it went in.
    """
    special = {"pad_token": task.PAD, "bos_token": task.BOS, "eos_token": task.EOS}
    built = Qwen2Tokenizer(vocab={task.PAD: 0}, merges=[], unk_token=task.PAD, **special)
    built.add_tokens(
        [
            AddedToken(word, normalized=False, special=True)
            if word in special.values()
            else AddedToken(f" {word}", normalized=False)
            for word in task.WORDS
        ]
    )
    return built


def scratch_model(architecture: ArchitectureConfig) -> tuple[Any, Qwen2Tokenizer]:
    """A Qwen2 model with random weights and its tokenizer."""
    return Qwen2ForCausalLM(scratch_config(architecture)).float(), tokenizer()


def scratch_config(architecture: ArchitectureConfig) -> Qwen2Config:
    """What :func:`scratch_model` builds, without its weights."""
    return Qwen2Config(
        vocab_size=len(task.WORDS),
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.intermediate_size,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads,
        max_position_embeddings=architecture.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=task.WORD_ID[task.PAD],
        bos_token_id=task.WORD_ID[task.BOS],
        eos_token_id=task.WORD_ID[task.EOS],
    )


def supervised_examples(
    questions: Sequence[Question], tokenizer: Qwen2Tokenizer
) -> list[SupervisedExample]:
    """The wasteful chains as they are, slips included, for the supervised stage."""
    examples = []
    for question in questions:
        words = (question.solution or "").split()
        # The blank before the first word is part of its token; without it the word would be lost.
        response = tokenizer.encode(
            "".join(f" {word}" for word in words).replace(" <eos>", "<eos>")
        )
        assert len(response) == len(words), question.solution
        examples.append(SupervisedExample(tokenizer.encode(question.prompt), response))
    return examples


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
