"""Held-out accuracy: evaluations, their uncertainty, and those at like points of a cycle.

An evaluation scatters about the truth because its questions are a sample, which its interval tells,
and because models a few steps apart differ, which no interval tells. Both count here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from siri_train.monitor.alarms.history import number

Record = Mapping[str, Any]

_SIGMAS_OF_95 = 1.96
_MEDIAN_OF_NORMAL = 0.6745


@dataclass(frozen=True)
class Point:
    """The accuracy of an evaluation at its largest budget.

    Args:
        step: steps done.
        accuracy: share of right answers.
        error: its standard error over questions.
        name: of the end of a phase; None between.
    """

    step: int
    accuracy: float
    error: float
    name: str | None

    @property
    def high(self) -> bool:
        """Whether it is at an expanded end, or at the start, where the cap is as long."""
        return self.name in ("start", "siri-high")


def points(evaluations: Sequence[Record], until: float | None = None) -> list[Point]:
    """The evaluations that have an accuracy, oldest first.

    Args:
        evaluations: rows of ``eval.jsonl``.
        until: the last step; None: all.
    """
    found = []
    for row in evaluations:
        step = number(row, "step")
        if step is None or (until is not None and step > until):
            continue
        accuracy, bounds = _last(row.get("accuracy")), _last(row.get("accuracy_interval"))
        if not isinstance(accuracy, (int, float)) or not math.isfinite(accuracy):
            continue
        error = 0.0
        if isinstance(bounds, (list, tuple)) and len(bounds) == 2:
            error = (bounds[1] - bounds[0]) / (2 * _SIGMAS_OF_95)
        name = row.get("name")
        found.append(Point(int(step), float(accuracy), error, name if name else None))
    return found


def mean_accuracy(some: Sequence[Point]) -> float:
    """The mean accuracy of at least one point."""
    return sum(point.accuracy for point in some) / len(some)


def assumed(some: Sequence[Point], scatter: float) -> float:
    """The standard deviation of one evaluation about the truth, without a look at the values.

    Args:
        some: evaluations of one run.
        scatter: between evaluations, beyond their intervals.
    """
    return math.hypot(max((point.error for point in some), default=0.0), scatter)


def spread(some: Sequence[Point], scatter: float) -> float:
    """The standard deviation of one evaluation about the truth, with all that shakes it.

    Args:
        some: evaluations of one run, in order.
        scatter: what is assumed between evaluations beyond their intervals.

    Returns:
        The larger of what is assumed and what second differences of the evaluations show: trends
        do not count.
    """
    least = assumed(some, scatter)
    values = [point.accuracy for point in some]
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    if len(bends) < 6:
        return least
    # The median: fast learning at first, or one jump, is no scatter.
    return max(least, statistics.median(bends) / _MEDIAN_OF_NORMAL / math.sqrt(6))


def positions(some: Sequence[Point]) -> list[tuple[str, int, int]]:
    """Where in its cycle each evaluation lies: (end before it, steps since that end, cycle).

    An expanded end closes a cycle, and counts as the end before itself. The start counts as an
    expanded end.

    Args:
        some: the evaluations of one run, in order, with the names of the ends.
    """
    found = []
    end, at, cycle = "siri-high", 0, 0
    for point in some:
        if point.name in ("siri-high", "siri-low"):
            cycle += point.name == "siri-high"
            end, at = point.name, point.step
        found.append((end, point.step - at, cycle))
    return found


def _last(values: Any) -> Any:
    return values[-1] if isinstance(values, (list, tuple)) and values else None
