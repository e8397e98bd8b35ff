"""Writes a set and its card; what is there already is not replaced unasked."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from siri_train.data.known.fetch import file_sha256
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

    On an error or an interrupt the files that were not there before are removed again.

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
    fresh = [file for file in (*new, card_file) if not file.exists()]
    try:
        for file, text in new.items():
            replace_text(file, text)
        card["written"] = [
            {"file": file.name, "sha256": file_sha256(file), "rows": text.count("\n")}
            for file, text in texts.items()
        ]
        if new or _told(card_file) != card:
            day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
            text = json.dumps({**card, "date": day}, indent=1, ensure_ascii=False)
            replace_text(card_file, text + "\n")
    except BaseException:
        for file in fresh:
            with suppress(OSError):  # the first error is the one to tell
                file.unlink(missing_ok=True)
        raise
    return list(new)


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_bytes() == text.encode("utf-8", "backslashreplace")
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
