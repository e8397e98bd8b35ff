"""Rules for text that a user gives. Standard library only: the command line needs them early."""

from __future__ import annotations

import os
import re

from siri_train.files import home_expanded

# Control characters, and halves of surrogate pairs, which no file in UTF-8 can hold.
_UNWRITABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_LINE_ENDS = re.compile(r"[\t\n\r\x85\u2028\u2029]")


def writable(text: str) -> str:
    """The text, if a file in UTF-8 and a terminal can show it.

    Raises:
        ValueError: it holds a control character, or bytes that are not text.
    """
    found = _UNWRITABLE.search(text)
    if found and "\udc80" <= found.group() <= "\udcff":  # what Python makes of an argument's bytes
        raise ValueError(
            f"takes text without control characters; byte 0x{ord(found.group()) & 0xFF:X} is no "
            "text by this terminal's encoding: run with PYTHONUTF8=1 if it is UTF-8"
        )
    if found:
        raise ValueError(f"takes text without control characters; U+{ord(found.group()):04X} is in")
    return text


def one_line(text: str) -> str:
    """The text, if it is writable and of one line.

    Raises:
        ValueError: it is not.
    """
    if _LINE_ENDS.search(writable(text)):
        raise ValueError("takes text of one line, without tabs")
    return text


def not_empty(text: str) -> str:
    """The text, if it has a character that is not blank.

    Raises:
        ValueError: it has none.
    """
    if not text.strip():
        raise ValueError("takes text that is not empty")
    return text


def expand(path: str) -> str:
    """``~`` and ``~user`` at the beginning of a path as the shell expands them.

    Raises:
        ValueError: no such user, control characters, or longer than any file system takes.
    """
    one_line(path)
    if len(os.fsencode(path)) > 4000:
        raise ValueError("takes a path of at most 4000 bytes")
    return home_expanded(path)
