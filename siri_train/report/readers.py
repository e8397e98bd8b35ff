"""Reads the files of a run: what is damaged or half written is left out, and a note says so."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def number(value: object) -> float | None:
    """``value`` as a float that can be drawn; None for NaN, infinity, null and text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) and abs(result) < 1e100 else None


def interval(value: object) -> tuple[float, float] | None:
    """``value`` as (low, high) if it is two finite numbers in order, else None."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None or low > high else (low, high)


def read_rows(path: Path, prefix: str, notes: list[str], most: int | None = None) -> list[Row]:
    """The objects of a JSON-lines file; a note names the lines that hold none.

    Args:
        path: of the file; nothing is read, and noted, where it does not exist.
        prefix: of the file's name in notes.
        notes: where notes go.
        most: lines to read; None: all.
    """
    rows: list[Row] = []
    broken: list[int] = []
    last = 0
    if path.exists() and not path.is_file():  # a pipe would be waited for
        notes.append(f"{prefix}{path.name} is no file; it was left out.")
        return rows
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for last, line in enumerate(islice(lines, most), start=1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except (ValueError, RecursionError):
                        row = None
                    if isinstance(row, dict):
                        rows.append(row)
                    else:
                        broken.append(last)
    except FileNotFoundError:
        return rows
    except OSError as error:
        notes.append(f"{prefix}{path.name} could not be read ({error.strerror}).")
        return rows
    if broken and broken[-1] == last and most is None:
        notes.append(
            f"{prefix}{path.name}: the last line is half-written and was left out "
            "(the run was stopped while writing it, or is still going)."
        )
        broken.pop()
    if broken:
        where = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
        notes.append(f"{prefix}{path.name}: line(s) {where} hold no JSON object; left out.")
    return rows


def read_json(path: Path, prefix: str, notes: list[str], kind: type) -> Any:
    """The content of a JSON file if it is of ``kind``.

    Args:
        path: of the file.
        prefix: of the file's name in notes.
        notes: where a note goes if it holds something else.
        kind: ``list`` or ``dict``.

    Returns:
        None without a file; an empty ``kind``, with a note, if it holds something else.
    """
    text = read_text(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        expected = "a list" if kind is list else "an object"
        notes.append(f"{prefix}{path.name} holds no JSON {expected.split()[1]}; it was left out.")
        return kind()
    return value


def read_text(path: Path) -> str | None:
    """The text of a file, odd bytes replaced; None where there is none or it cannot be read.

    Args:
        path: of the file.
    """
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
