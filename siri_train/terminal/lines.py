"""Lines of text for a terminal or a log: their width in columns, and where they are broken."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

LOG_WIDTH = 79
"""Columns of a line in a log, so that a window of 80 shows it whole; sentences are no longer."""
_WITHOUT = 80
_PART = re.compile(r" *[^ ]+")


def terminal_width(stream: Any = None) -> int:
    """Columns of what is printed: what COLUMNS says, else the terminal's, else 80.

    Every table and every text of the commands asks here, in a pipe as in a terminal.

    Args:
        stream: where it is printed; default: standard output.
    """
    try:
        columns = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        columns = 0
    if columns < 1:
        try:
            columns = os.get_terminal_size((stream or sys.stdout).fileno()).columns
        except (AttributeError, OSError, ValueError):  # no stream, closed, no terminal
            columns = 0
    return columns if columns > 0 else _WITHOUT


def log_width() -> int:
    """Columns of a line that a run prints where nothing is drawn in place: one is left free."""
    return max(terminal_width() - 1, 1)


def joined(head: str, parts: Sequence[str], width: int, between: str = "  ") -> list[str]:
    """``head`` and the parts behind it, on further lines where they do not fit on one.

    A part is never broken: one that is longer than a line has a line of its own.

    Args:
        head: begins the first line; the others then begin with four blanks. It may be empty.
        parts: such as ``cap 28 tokens``.
        width: columns.
        between: put between parts, a mark or not, and blanks.
    """
    mark, indent = between.rstrip(), "    " if head else ""
    lines, now = [], head
    for place, part in enumerate(parts):
        gap = between if place else " " if now.endswith(":") or between == " " else "  "
        behind = mark if place + 1 < len(parts) else ""
        if not now:
            now = part
        elif cell_len(now + gap + part + behind) > width:
            lines.append(now + (mark if place else ""))
            now = indent + part
        else:
            now += gap + part
    return [*lines, now]


def words(head: str, text: str, width: int) -> list[str]:
    """``head`` and a sentence behind it, broken between words.

    Args:
        head: begins the first line; the others then begin with four blanks. It may be empty.
        text: the sentence.
        width: columns.
    """
    return joined(head, text.split(), width, " ")


def broken(text: str, width: int) -> str:
    """Lines broken between words where they are too long; blanks between words stay.

    Args:
        text: lines. What is broken off stands below, four columns further in.
        width: columns. A word that is longer has a line of its own.
    """
    lines = []
    for line in text.split("\n"):
        now, indent = "", " " * (len(line) - len(line.lstrip(" ")) + 4)
        for part in _PART.findall(line) if cell_len(line) > width else [line]:
            if now.strip() and cell_len(now + part) > width:
                lines.append(now)
                now = indent + part.lstrip(" ")
            else:
                now += part
        lines.append(now)
    return "\n".join(lines)


def shortened(text: str, width: int, mark: str = "…") -> str:
    """The text, or its start and end with ``mark`` between them, in at most ``width`` columns.

    Args:
        text: one line.
        width: columns; wide characters take two.
        mark: stands for what is left out.
    """
    if cell_len(text) <= width:
        return text
    if width <= cell_len(mark):
        return set_cell_size(mark, max(width, 0)).rstrip()
    room = width - cell_len(mark)
    start = set_cell_size(text, (room + 1) // 2)
    end = text
    while cell_len(end) > room // 2:
        end = end[1:]
    return (start.rstrip() if start.endswith(" ") else start) + mark + end


def cut(text: str, width: int, mark: str = "…") -> str:
    """The start of the text, with ``mark`` behind it where it does not fit.

    Args:
        text: one line.
        width: columns.
        mark: stands for what is left out.
    """
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(width - cell_len(mark), 0)).rstrip() + mark[: max(width, 0)]
