"""Which of a run's responses the page shows: all, or some of each step within a limit of size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .readers import Row, number, read_rows

SAMPLE_BYTES = 2_000_000
"""Text of all responses of a page, about."""
LONGEST_SAMPLE = 6000
"""Characters of a response that the page shows: two thirds from its start, the rest from its end,
where the cut is."""
SAMPLE_ROWS = 512
"""Responses read from a step's file: it may hold thousands."""
_LEAST_STEPS = 24
"""Steps that are shown however much each has, if there are as many."""


def read_samples(
    folder: Path, prefix: str, notes: list[str], room: int
) -> tuple[list[tuple[int, list[Row]]], int, int]:
    """Responses of all recorded steps, or of steps evenly apart where they are too many.

    The first and the last step are always among them.

    Args:
        folder: ``rollouts`` of a run.
        prefix: of file names in notes.
        notes: where notes on missing and damaged files go.
        room: bytes of text to take, about.

    Returns:
        (step, rows) of the steps in order, the number of recorded steps, and how many of the steps
        that are there have a part of their responses alone.
    """
    found = _recorded(folder)
    if not found:
        notes.append(f"{prefix}rollouts/ holds no responses, so no samples are shown.")
        return [], 0, 0
    steps = sorted(found)
    sizes = {step: _size(found[step]) for step in steps}
    if sum(sizes.values()) > room:
        usual = max(sum(sizes.values()) // len(steps), 1)
        steps = evenly(steps, max(room // usual, _LEAST_STEPS))
    share = room // len(steps)
    shown = []
    parts = 0
    for step in steps:
        rows = read_rows(found[step], f"{prefix}rollouts/", notes, SAMPLE_ROWS + 1)
        kept = rows[:SAMPLE_ROWS]
        if sizes[step] > share:
            kept = _within(kept, share)
        parts += len(kept) < len(rows)
        shown.append((step, kept))
    return shown, len(found), parts


def evenly(values: list[Any], most: int) -> list[Any]:
    """At most ``most`` of the values, evenly apart, the first and the last among them.

    Args:
        values: in order.
        most: at least 2.
    """
    if len(values) <= most:
        return values
    last = len(values) - 1
    return [values[round(i * last / (most - 1))] for i in range(most)]


def verdict(row: Row) -> str:
    """How a response was graded: ``right``, ``wrong`` or ``unjudged``.

    Args:
        row: of a rollout file. Rows without ``right`` are right where the reward is above 0.
    """
    if isinstance(row.get("right"), bool):
        return "right" if row["right"] else "wrong"
    if "right" in row or ("reward" in row and row["reward"] is None):
        return "unjudged"
    reward = number(row.get("reward"))
    return "right" if reward is not None and reward > 0 else "wrong"


def contrast(rows: list[Row], most: int = 4) -> list[Row]:
    """A right, a wrong and a truncated response where there is one, then the first others.

    Args:
        rows: of a rollout file.
        most: responses.
    """
    finished = [row for row in rows if not row.get("truncated")]
    wanted = [
        next((row for row in rows if verdict(row) == "right"), None),
        next((row for row in finished if verdict(row) != "right"), None),
        next((row for row in rows if row.get("truncated")), None),
        *rows[:most],
    ]
    chosen: list[Row] = []
    for row in wanted:
        if row is not None and not any(row is other for other in chosen):
            chosen.append(row)
    return chosen[:most]


def _within(rows: list[Row], room: int) -> list[Row]:
    """Rows of about so many bytes: a contrast first, then evenly apart; in the order of the file.

    A contrast is never left out.
    """
    kept = contrast(rows)
    spent = sum(map(_length, kept))
    others = [row for row in rows if not any(row is one for one in kept)]
    usual = max(sum(map(_length, rows)) // max(len(rows), 1), 1)
    more = evenly(others, max((room - spent) // usual, 2)) if room > spent else []
    ids = {id(row) for row in (*kept, *more)}
    return [row for row in rows if id(row) in ids]


def _length(row: Row) -> int:
    return min(len(str(row.get("response", ""))), LONGEST_SAMPLE) + 200


def _recorded(folder: Path) -> dict[int, Path]:
    found: dict[int, Path] = {}
    try:
        paths = list(folder.glob("step_*.jsonl")) if folder.is_dir() else []
    except OSError:
        paths = []
    for path in paths:
        match = re.fullmatch(r"step_(\d{1,15})\.jsonl", path.name, re.ASCII)
        if match:
            found[int(match[1])] = path
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
