"""The text of each token of a vocabulary."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from siri_train.rewards.special_tokens import special_tokens

_LOST = "\ufffd"
"""Decoding shows it for bytes that are no whole character."""
_TOGETHER = 64
"""Tokens that are decoded together to see whether they join."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Pieces:
    """A vocabulary's tokens as they stand in the middle of a text.

    Args:
        texts: by id. Special tokens that a text drops, and ids that no token has, are empty; the
            last is such an id.
        partial: by id, the bytes of the tokens that begin or end within a character, of all
            single bytes to which a vocabulary falls back, and of what a text drops: bytes around
            it touch.
        strict: whether bytes that are no text together show as nothing but lost bytes.
    """

    texts: list[str]
    partial: dict[int, bytes]
    strict: bool

    def joined(self, ids: Sequence[int]) -> str:
        """The text of tokens of ``partial``, one behind the other."""
        raw = b"".join(self.partial[i] for i in ids)
        if self.strict and not _whole(raw):
            return _LOST * len(raw)
        return raw.decode(errors="replace")


def token_pieces(tokenizer: Any, kept: Collection[int] = ()) -> Pieces | None:
    """The text of every token, whatever the kind of tokenizer: what it adds behind another token.

    A token that is decoded alone may look different: SentencePiece drops its blank, WordPiece
    shows the marks of a continued word.

    Args:
        tokenizer: a transformers tokenizer.
        kept: special tokens whose text counts; the others have none.

    Returns:
        None where the tokenizer does not show its vocabulary, or joins tokens in a way of its own.
    """
    try:
        vocabulary = dict(tokenizer.get_vocab())
        special = special_tokens(tokenizer).keys() | set(map(int, tokenizer.all_special_ids))
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None
    by_id = {int(i): token for token, i in vocabulary.items()}
    ids = sorted(by_id.keys() - (special - set(kept)))
    texts = [""] * (max(by_id, default=-1) + 2)
    anchor = _anchor(tokenizer, by_id, ids)
    if anchor is None:
        return None
    before, alone = anchor
    partial: dict[int, bytes] = {}
    whole = []
    for i, text in zip(ids, _decoded(tokenizer, [[before, i] for i in ids]), strict=True):
        if not text.startswith(alone):
            return None
        texts[i] = text[len(alone) :]
        if _LOST in text:
            raw = _bytes(by_id[i])
            if raw is not None and not _whole(raw):
                partial[i] = raw
        elif not _BYTE.fullmatch(by_id[i]):
            whole.append((i, text[len(alone) :]))
    if not _join(tokenizer, before, alone, whole):
        return None
    strict = any(_BYTE.fullmatch(by_id[i]) for i in partial)
    if strict:
        partial |= {i: raw for i in ids if _BYTE.fullmatch(by_id[i]) and (raw := _bytes(by_id[i]))}
    partial |= dict.fromkeys(set(range(len(texts))).difference(ids), b"")
    return Pieces(texts, partial, strict)


def _join(tokenizer: Any, before: int, alone: str, pieces: Sequence[tuple[int, str]]) -> bool:
    """Whether tokens one behind the other show as their texts do.

    They do not where the last token of a text looks different (``</w>`` ends a word there).
    """
    parts = [pieces[start : start + _TOGETHER] for start in range(0, len(pieces), _TOGETHER)]
    found = _decoded(tokenizer, [[before, *(i for i, _ in part)] for part in parts])
    return found == [alone + "".join(text for _, text in part) for part in parts]


def _anchor(tokenizer: Any, by_id: dict[int, str], ids: list[int]) -> tuple[int, str] | None:
    """A token that others can stand behind, and its text: a digit or a letter, if there is one."""
    plain = (i for i in ids if by_id[i].strip("\u0120\u2581 ").isalnum())
    for i in [*islice(plain, 50), *ids[:50]]:
        (alone,) = _decoded(tokenizer, [[i]])
        twice = _decoded(tokenizer, [[i, i]])[0]
        if alone.strip() and _LOST not in alone and twice.startswith(alone) and twice != alone:
            return i, alone
    return None


def _decoded(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        return fast.decode_batch(rows, skip_special_tokens=False)
    return [
        tokenizer.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for row in rows
    ]


def _bytes(token: str) -> bytes | None:
    """The bytes of a token of a byte-level vocabulary, or of a byte that another falls back to."""
    byte = _BYTE.fullmatch(token)
    if byte:
        return bytes([int(byte[1], 16)])
    values = [_BYTE_OF.get(char) for char in token]
    return None if None in values else bytes(value for value in values if value is not None)


def _whole(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level vocabularies show bytes (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {chr(byte): byte for byte in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}


_BYTE_OF = _byte_letters()
