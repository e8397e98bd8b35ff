"""The rows of the steps before, as the checks read them, kept for a whole long run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from siri_train.monitor.run_logs import is_number

MOST_ROWS = 4000
"""Rows of ``metrics.jsonl`` kept in memory for the alarms: six cycles of the paper's 640 steps."""
MOST_QUIET = 100
"""The largest ``clear_after`` of an alarm."""
READ_AGAIN = MOST_ROWS + MOST_QUIET
"""Rows that a run which continues reads, to look again at the newest as it did before."""


def kept(row: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a row of ``metrics.jsonl`` that is kept for the checks of later steps.

    Args:
        row: whole, or damaged.

    Returns:
        Its numbers and its texts (``phase``); lists, objects and nulls are left out.
    """
    return {k: v for k, v in row.items() if isinstance(v, str) or is_number(v)}


def number(row: Mapping[str, Any], key: str) -> float | None:
    """A finite number of a row, else None.

    Args:
        row: of ``metrics.jsonl``.
        key: a key of it, which it may lack.
    """
    value: Any = row.get(key)
    return float(value) if is_number(value) and math.isfinite(value) else None


def column(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """The finite numbers under a key, in the rows' order.

    Args:
        rows: of ``metrics.jsonl``. Slice them first (``history[-50:]``): the checks of a step
            together should look at few thousand rows.
        key: rows without a finite number there are left out.
    """
    return [value for row in rows if (value := number(row, key)) is not None]


def median(values: Sequence[float]) -> float | None:
    """The median, the mean of the two middle ones of an even number; None of nothing.

    Args:
        values: finite numbers, in any order.
    """
    return statistics.median(values) if values else None


def start(history: Sequence[Mapping[str, Any]], most: int = 100) -> Sequence[Mapping[str, Any]]:
    """The rows that a run is compared with: its first ones, without the warm-up of 10 steps.

    Args:
        history: rows of ``metrics.jsonl``, oldest first.
        most: how many.
    """
    return history[10 : 10 + most]


def newest(
    row: Mapping[str, Any], history: Sequence[Mapping[str, Any]], count: int
) -> list[Mapping[str, Any]]:
    """The newest row and those just before it, oldest first.

    Args:
        row: the newest.
        history: the rows before it.
        count: how many there are together, at least 2.
    """
    return [*history[1 - count :], row]
