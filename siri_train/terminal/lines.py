"""Lines of text for a terminal or a log: their width in columns, and where they are broken."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

LOG_WIDTH = 79
"""Columns of a line in a log, so that a window of 80 shows it whole."""


def terminal_width() -> int:
    """Columns of the terminal, or what COLUMNS says; 80 where there is none."""
    return max(shutil.get_terminal_size((80, 24)).columns, 1)


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
