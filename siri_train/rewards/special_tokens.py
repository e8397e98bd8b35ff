"""Special tokens: which of them a response's text keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from siri_train.rewards.extract import THINK_CLOSE, THINK_OPEN


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Every token that decoding may drop.

    Args:
        tokenizer: a transformers tokenizer.

    Returns:
        Id to content.
    """
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    found = {int(i): str(token) for i, token in added.items() if getattr(token, "special", False)}
    ids = getattr(tokenizer, "all_special_ids", None) or []
    texts = getattr(tokenizer, "all_special_tokens", None) or []
    return {**dict(zip(map(int, ids), map(str, texts), strict=False)), **found}


def kept_tokens(tokenizer: Any, named: Iterable[str] = ()) -> set[int]:
    """The special tokens that a response's text keeps: the marks that the reward reads.

    Args:
        tokenizer: a transformers tokenizer.
        named: words and phrases; a special token whose text is in one of them, whatever the case,
            is kept as well.

    Returns:
        Their ids.
    """
    words = [" ".join(word.split()).casefold() for word in named]
    return {
        i
        for i, text in special_tokens(tokenizer).items()
        if _is_mark(text) or any(_plain(text) in word for word in words)
    }


def decode_keeping(
    tokenizer: Any, responses: Iterable[Sequence[int]], kept: set[int]
) -> Iterable[str]:
    """The text of each response without special tokens, but for some.

    Args:
        tokenizer: a transformers tokenizer.
        responses: token ids of each.
        kept: ids of the special tokens whose text is in the response's, see :func:`kept_tokens`.

    Returns:
        One text after the other.
    """
    dropped = special_tokens(tokenizer).keys() - kept if kept else frozenset()
    for ids in responses:
        wanted = [token for token in map(int, ids) if token not in dropped]
        yield tokenizer.decode(wanted, skip_special_tokens=not kept)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold() or "\0"  # blanks are in no word


def _is_mark(text: str) -> bool:
    return text.strip() in (THINK_OPEN, THINK_CLOSE, "{", "}") or "\\boxed" in text
