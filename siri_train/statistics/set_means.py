"""The mean over evaluation sets, each counting once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from siri_train.statistics.intervals import Interval


def mean_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """The interval of a mean of independent figures, from the interval of each.

    The distances to the lower bounds, and those to the upper ones, are added as the roots of the
    sum of their squares (the MOVER method, Zou and Donner 2008). Sets have different questions, so
    their figures are independent; a set with few questions makes the interval wide.

    Args:
        values: a figure for each set, at least one.
        intervals: of each, as (low, high) around it.

    Raises:
        ValueError: no value, or not one interval for each.
    """
    if not values or len(values) != len(intervals):
        raise ValueError(
            f"got {len(values)} values and {len(intervals)} intervals; takes one interval for each "
            "value, at least one"
        )
    middle = sum(values) / len(values)
    below = [value - bounds.low for value, bounds in zip(values, intervals, strict=True)]
    above = [bounds.high - value for value, bounds in zip(values, intervals, strict=True)]
    return Interval(
        middle - math.hypot(*below) / len(values), middle + math.hypot(*above) / len(values)
    )
