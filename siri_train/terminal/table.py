"""Tables of text: Markdown that is also aligned for a terminal, and no wider than it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from siri_train.terminal.encodable import encodable
from siri_train.terminal.lines import shortened, words

_LEAST = 8
"""Columns that a shortened name keeps at least."""
_MOST = 3
"""Tables that repeat the names of the rows."""


def aligned(
    head: Sequence[str],
    body: Sequence[Sequence[str]],
    left: Sequence[int],
    width: int | None = None,
    keys: int = 1,
    breaks: Sequence[int] = (),
) -> str:
    """A Markdown table that is also aligned for a terminal, without a newline at its end.

    A table that is wider than ``width`` becomes several, one below the other, that all begin with
    the first ``keys`` columns; no cell is broken and no column left out. Where these are too long
    for that, or it would make more than three tables, rows are numbered and named once. Names that
    are longer than a line are shortened in their middle, and the whole names stand below the
    tables. Where even that does not fit, each row is a list of its cells, broken between words.

    Args:
        head: of the columns.
        body: the cells of each line.
        left: the columns of text; the others are numbers, flushed right.
        width: columns of the terminal, wide characters taking two; None: as wide as it is.
        keys: how many columns name a row.
        breaks: columns at which a table is divided first: what stands between them stays together
            where it can.
    """
    lines = [_cells(line, width is not None) for line in [head, *body]]
    widths = _widths(lines)
    if width is None or _total(widths) <= width:
        return _drawn(lines, range(len(widths)), left)
    if len(widths) <= keys:
        return _listed(lines, keys, width)
    room = width - _total([*widths[:keys], max(widths[keys:])]) + sum(widths[:keys])
    fits = sum(widths[:keys]) <= room
    if not fits or len(_blocks(widths, keys, breaks, width)) > _MOST:
        of_row = [["row", *lines[0]], *([str(i), *line] for i, line in enumerate(lines[1:], 1))]
        numbered = _widths(of_row)
        if _total(numbered[: keys + 1]) <= width and _total([numbered[0], max(numbered)]) <= width:
            breaks, left = [keys + 1, *(n + 1 for n in breaks)], [n + 1 for n in left]
            lines, widths, keys, fits = of_row, numbered, 1, True
    names: list[str] = []
    if not fits:
        if room < keys * _LEAST:
            return _listed(lines, keys, width)
        lines, told = _with_short_names(lines, keys, room)
        names = [line for name, whole in told.items() for line in words(f"{name}:", whole, width)]
        widths = _widths(lines)
    blocks = _blocks(widths, keys, breaks, width)
    tables = [_drawn(lines, [*range(keys), *block], left) for block in blocks]
    return "\n\n".join([*tables, *(["\n".join(names)] if names else [])])


def _cells(line: Sequence[str], shown: bool) -> list[str]:
    cells = [" ".join(cell.split()).replace("|", "\\|") for cell in line]
    # Before widths are counted: the "+-" of a terminal without "±" is longer.
    return [encodable(cell) for cell in cells] if shown else cells


def _blocks(widths: Sequence[int], keys: int, breaks: Sequence[int], width: int) -> list[list[int]]:
    """The columns behind the keys, divided so that each part fits beside the keys."""
    marks = sorted({keys, *(place for place in breaks if keys < place < len(widths)), len(widths)})
    blocks: list[list[int]] = [[]]

    def fits(columns: Sequence[int]) -> bool:
        return _total([*widths[:keys], *(widths[place] for place in columns)]) <= width

    for first, behind in zip(marks, marks[1:], strict=False):
        chunk = list(range(first, behind))
        if fits([*blocks[-1], *chunk]):
            blocks[-1] += chunk
            continue
        if blocks[-1] and fits(chunk):
            blocks.append(chunk)
            continue
        for place in chunk:
            if blocks[-1] and not fits([*blocks[-1], place]):
                blocks.append([])
            blocks[-1].append(place)
    return blocks


def _with_short_names(
    lines: Sequence[Sequence[str]], keys: int, room: int
) -> tuple[list[list[str]], dict[str, str]]:
    """The lines with names of at most ``room`` columns together, and what each stands for."""
    allowed = list(_widths(lines)[:keys])
    while sum(allowed) > room:
        longest = max(range(keys), key=allowed.__getitem__)
        allowed[longest] -= 1
    short = [[cell for cell in line] for line in lines]
    told: dict[str, str] = {}
    for place in range(keys):
        taken: dict[str, str] = {}
        for line in short:
            whole = line[place]
            name, number = shortened(whole, allowed[place]), 1
            while taken.setdefault(name, whole) != whole:
                number += 1
                name = shortened(whole, allowed[place] - len(f"~{number}")) + f"~{number}"
            line[place] = name
            if name != whole:
                told[name] = whole
    return short, told


def _listed(lines: Sequence[Sequence[str]], keys: int, width: int) -> str:
    head, *body = lines
    blocks = []
    for line in body:
        rows = [row for cell in line[:keys] if cell for row in words("", cell, width)]
        for title, cell in zip(head[keys:], line[keys:], strict=True):
            rows += words(f"  {title}:", cell, width)
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks or ["\n".join(words("", ", ".join(head), width))])


def _drawn(lines: Sequence[Sequence[str]], columns: Sequence[int], left: Sequence[int]) -> str:
    widths = _widths(lines)
    rule = ["-" * w if i in left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(
        "| " + " | ".join(_padded(line[i], widths[i], i in left) for i in columns) + " |"
        for line in [lines[0], rule, *lines[1:]]
    )


def _padded(cell: str, width: int, left: bool) -> str:
    blanks = " " * (width - cell_len(cell))
    return cell + blanks if left else blanks + cell


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(*lines, strict=True)]


def _total(widths: Sequence[int]) -> int:
    """Columns of a line with its bars."""
    return sum(widths) + 3 * len(widths) + 1
