"""Numbers of a run before now to hold the newest ones against: windows, cycles, noise.

The cap moves, and with it length, accuracy, reward and entropy. So a window of steps is held
against the same stretch of an earlier cycle; without a cap that moves, against steps of the run.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from siri_train.monitor.alarms.history import column, number

Record = Mapping[str, Any]

WINDOW = 20
"""Steps of a window whose mean is looked at."""
_MOST_WINDOWS = 50


def window(row: Record, history: Sequence[Record], count: int = WINDOW) -> list[Record]:
    """The newest rows, oldest first.

    Args:
        row: the newest row.
        history: the rows before it, oldest first.
        count: how many, with the newest one.

    Returns:
        ``count`` rows; none if there are fewer.
    """
    if len(history) < count - 1:
        return []
    return [*history[len(history) - count + 1 :], row]


def mean(rows: Sequence[Record], key: str) -> float | None:
    """The mean of a key over rows.

    Args:
        rows: of ``metrics.jsonl``.
        key: of the rows.

    Returns:
        None where fewer than half of the rows, or none at all, have a number there.
    """
    values = column(rows, key)
    return sum(values) / len(values) if values and 2 * len(values) >= len(rows) else None


def noise(values: Sequence[float]) -> float:
    """The scatter of single values about their trend: a standard deviation.

    It comes from neighbours' differences, so neither a slope nor one jump counts.
    """
    steps = [abs(b - a) for a, b in zip(values, values[1:], strict=False)]
    return math.sqrt(sum(s * s for s in steps) / (2 * len(steps))) if steps else 0.0


def moves(row: Record) -> bool:
    """Whether the run's cap moves at all."""
    return row.get("phase") in ("compression", "expansion")


def cycle_of(row: Record, history: Sequence[Record]) -> tuple[int, int] | None:
    """Where the last whole cycle lies in the history.

    Args:
        row: the newest row.
        history: the rows before it, oldest first.

    Returns:
        (index of its first row, index behind its last row); None before one is complete.
    """
    number_now = number(row, "cycle")
    if number_now is None or not moves(row):
        return None
    key = _cycle
    end = bisect.bisect_left(history, number_now, key=key)
    begin = bisect.bisect_left(history, number_now - 1, hi=end, key=key)
    whole = begin > 0 or (end > 0 and number(history[0], "step") == 0)
    return (begin, end) if end - begin >= 4 and whole else None


def earlier(row: Record, history: Sequence[Record], count: int = WINDOW) -> list[list[Record]]:
    """The windows that the newest ``count`` steps are held against.

    Args:
        row: the newest row.
        history: the rows before it, oldest first.
        count: steps of a window.

    Returns:
        Where the cap moves, the same stretch of each earlier cycle, the newest first, as far as the
        caps are the same; none in the first cycle. Else windows that do not overlap, the newest
        first.
    """
    now = window(row, history, count)
    if not now:
        return []
    if not moves(row):
        starts = range(len(history) + 1 - 2 * count, -1, -count)
        starts = starts[:: 1 + len(starts) // _MOST_WINDOWS]  # a long run has hundreds
        return [list(history[at : at + count]) for at in starts]
    found = cycle_of(row, history)
    if found is None:
        return []
    length = found[1] - found[0]
    windows = []
    for end in range(len(history) + 1 - length, count - 1, -length):
        before = list(history[end - count : end])
        if _same_caps(before, now):
            windows.append(before)
    return windows


def _cycle(row: Record) -> float:
    value = number(row, "cycle")
    return -1.0 if value is None else value


def _same_caps(some: Sequence[Record], others: Sequence[Record]) -> bool:
    one, other = mean(some, "cap"), mean(others, "cap")
    return one is not None and other is not None and abs(one - other) <= 0.05 * other


def learned(row: Record, history: Sequence[Record], share: float) -> bool:
    """Whether the training questions are as good as learned.

    Args:
        row: the newest row.
        history: the rows before it, oldest first.
        share: of right answers, among responses that finished, from which they are.
    """
    value = _finished(window(row, history) or [*history, row])
    return value is not None and value >= share


def finished_before(step: int, row: Record, history: Sequence[Record]) -> float | None:
    """The share of right answers among training's finished responses, before an evaluation.

    Args:
        step: steps done at the evaluation.
        row: the newest row.
        history: the rows before it, oldest first.

    Returns:
        The mean of the `WINDOW` steps before; None where they are not all there.
    """
    newest = number(row, "step")
    if newest is None:
        return None
    back = int(newest) - step  # rows behind the last one before the evaluation, less the newest
    end = len(history) - back
    if not WINDOW <= end <= len(history):
        return None
    return _finished(history[end - WINDOW : end])


def _finished(rows: Sequence[Record]) -> float | None:
    finished = mean(rows, "accuracy_finished")
    return mean(rows, "accuracy") if finished is None else finished
