"""Why a checkpoint could not be written, and what to do about it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from siri_train.files import remedy_of, room_left
from siri_train.model.files import cause

_RANK = re.compile(r"rank \d+: ")  # where another process could not write its part
# safetensors' Rust and torch's workers give the number in their text only.
_NUMBER = re.compile(r"(?:os error |\[Errno )(\d+)")


def save_failure(error: BaseException, folder: Path) -> tuple[str, str]:
    """The reason why saving failed, and the remedy.

    Args:
        error: whatever was raised.
        folder: where it was written to; its free space is named where room is what was missing.

    Returns:
        Two parts of one line: the cause, and what to do before the same command is run again.
    """
    number = _error_number(error)
    found = _RANK.match(str(error))
    if number is not None:
        reason = (found.group() if found else "") + os.strerror(number)
        remedy = remedy_of(number) or "see to the disk or the file system"
        return reason + room_left(number, folder), remedy
    if isinstance(error, MemoryError):
        return cause(error), "free memory"
    return (
        f"{type(error).__name__}: {cause(error)}",
        "this is neither a full disk nor a missing permission: correct what it names",
    )


def _error_number(error: BaseException) -> int | None:
    """The system's error number in an exception or in what it came from; None if there is none."""
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno is not None:
            return link.errno
        if not isinstance(link, OSError) and (found := _NUMBER.search(str(link))):
            return int(found[1])
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
