"""Tokenizers of every kind, small and trained on text with the words of groups in it."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from siri_train.model import demo_model

FRAGMENTS = [
    "wait", "Wait", "WAIT", " wait", "hold on", "Hold\n on", "hold", "on", " alternatively",
    "Alternatively,", "so", "So", "compute", "computed", "waiting", "await", " ", "\n", "\n\n",
    ".", ", ", "é", "等", "等等", "😀", "🙂", "_", "1", "-", "'", "s", "c", "o", "wa", "it", "ing",
    "the answer", "∑", " x² ", "\u0301", "ſo", "not sure", "maybe", "not  sure", "c++", "C++ ",
    "в", "ждать", "wait for it", "</think>", "\u00a0",
]  # fmt: skip
SPECIAL = ["</think>", "<|im_end|>", "<|wait|>", "[SEP]", "<|odd|>"]


def _corpus() -> list[str]:
    rng = random.Random(5)
    return ["".join(rng.choice(FRAGMENTS) for _ in range(40)) for _ in range(60)]


def _wrapped(tokenizer: Tokenizer, eos: str) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)


def byte_level() -> Any:
    """Merges over blanks and newlines, as "wait\\n\\n" in one token; characters in pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<eos>"], show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_corpus(), trainer)
    return _wrapped(tokenizer, "<eos>")


def sentencepiece() -> Any:
    """Blanks as ▁, the first one dropped; what is unknown falls back to bytes."""
    pieces = (
        "▁ ▁w ▁wa ▁wait wait W a i t w it ▁hold ▁on on hold ▁so s o So ▁compute compute d ing "
        "▁alternatively , . ' _ 1 ▁not ▁sure sure ▁maybe c + ++"
    ).split()
    vocabulary = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, "\n"]
    numbers = {piece: i for i, piece in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.BPE(numbers, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return _wrapped(tokenizer, "</s>")


def wordpiece() -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return _wrapped(tokenizer, "[SEP]")


def characters() -> Any:
    known = sorted({char for text in _corpus() for char in text})
    vocabulary = {piece: i for i, piece in enumerate(["<eos>", "<unk>", *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrapped(tokenizer, "<eos>")


def word_ends() -> Any:
    """The end of a word is a mark in its last token, a blank in the text unless it ends there."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<eos>"], end_of_word_suffix="</w>",
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_corpus(), trainer)
    return _wrapped(tokenizer, "<eos>")


def metaspace() -> Any:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=160, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return _wrapped(tokenizer, "</s>")


def with_added() -> Any:
    """Added tokens that are not special, as Qwen's marks of thoughts are."""
    tokenizer = byte_level()
    added = ["<think>", "</think>", "wait", " wait", "é", "hold on", "\u0120so", "<0x41>", "…"]
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return tokenizer


KINDS: dict[str, Callable[[], Any]] = {
    "byte-level": cache(byte_level),
    "sentencepiece": cache(sentencepiece),
    "wordpiece": cache(wordpiece),
    "characters": cache(characters),
    "demo": cache(demo_model.tokenizer),
    "word ends": cache(word_ends),
    "metaspace": cache(metaspace),
    "added": cache(with_added),
}


def encoded(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def with_holes() -> Any:
    """Characters whose ids leave some out, special tokens between them."""
    rng = random.Random(6)
    known = sorted({char for text in _corpus() for char in text})
    pieces = ["<unk>", "<eos>", *SPECIAL, *known, "wait", "hold"]
    ids = sorted(rng.sample(range(2 * len(pieces)), len(pieces)))
    tokenizer = Tokenizer(models.WordLevel(dict(zip(pieces, ids, strict=True)), "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrapped(tokenizer, "<eos>")


SPECIAL_KINDS: dict[str, Callable[[], Any]] = {
    "byte-level": byte_level, "sentencepiece": sentencepiece, "wordpiece": wordpiece,
    "characters": characters, "word ends": word_ends, "metaspace": metaspace,
    "added": with_added, "holes": with_holes,
}  # fmt: skip
