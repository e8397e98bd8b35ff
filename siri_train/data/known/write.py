"""Writes a set and its card; what is there already is not replaced unasked."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from siri_train.data.rows import DataError
from siri_train.files import replace_text, shown


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """JSONL of rows: the same rows give the same text."""
    lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
    return "".join(f"{line}\n" for line in lines)


def write_set(
    texts: Mapping[Path, str], card_file: Path, card: dict[str, Any], *, force: bool
) -> list[Path]:
    """Write the files of a set, then its card.

    All are written beside their places first: an error there changes nothing. Then the old card
    goes and each file takes its name, the card last, so that no card describes other files than
    those that are there. On an error in between the files that were not there before are removed
    again.

    Args:
        texts: file -> text.
        card_file: of the card.
        card: what it says; ``written`` and ``date`` are added.
        force: replace files with another content.

    Returns:
        The files that were written; none where all is there already.

    Raises:
        DataError: a file with another content is there.
        OSError: a file cannot be written.
    """
    new = {file: text for file, text in texts.items() if not _holds(file, text)}
    other = [file for file in new if file.exists()]
    if other and not force:
        raise DataError(
            f"{', '.join(shown(file) for file in other)}: there already, with another content; "
            "--force replaces it, --to FOLDER writes elsewhere"
        )
    card["written"] = [
        {
            "file": file.name,
            "sha256": hashlib.sha256(_bytes(text)).hexdigest(),
            "rows": text.count("\n"),
        }
        for file, text in texts.items()
    ]
    parts = dict(new)
    if new or _told(card_file) != card:
        day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        parts[card_file] = json.dumps({**card, "date": day}, indent=1, ensure_ascii=False) + "\n"
    fresh = [file for file in parts if not file.exists()]
    aside = {file: file.with_name(f".{file.name}.new") for file in parts}
    try:
        for file, text in parts.items():
            replace_text(aside[file], text)
    except BaseException:
        _remove(aside.values())
        raise
    try:
        if new:
            card_file.unlink(missing_ok=True)
        for file in parts:
            _move(aside[file], file)
    except BaseException:
        _remove([*aside.values(), *fresh])
        raise
    return list(new)


def _move(aside: Path, file: Path) -> None:
    """Give a file its name; an error names that, not the temporary one."""
    try:
        os.replace(aside, file)
    except OSError as error:
        error.filename, error.filename2 = str(file), None
        raise


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        with suppress(OSError):  # the first error is the one to tell
            file.unlink(missing_ok=True)


def _bytes(text: str) -> bytes:
    """A text as ``replace_text`` writes it."""
    return text.encode("utf-8", "backslashreplace")


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_bytes() == _bytes(text)
    except OSError:
        return False


def _told(card_file: Path) -> dict[str, Any] | None:
    """The card that is there, without its date."""
    try:
        card = json.loads(card_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if isinstance(card, dict):
        card.pop("date", None)
        return card
    return None
