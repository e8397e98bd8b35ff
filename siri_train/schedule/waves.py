"""The cosine between two lengths, exact wherever it is rational."""

from __future__ import annotations

import math

from siri_train.schedule.length_schedule import LengthSchedule


def wave(s: LengthSchedule, num: int, den: int) -> float:
    """The cosine between ``max_len`` and ``min_len`` after a part of a turn from the top.

    Args:
        s: has both lengths, in tokens.
        num: numerator of the part.
        den: its denominator; half a turn is at ``min_len``.
    """
    top, bottom = float(s.max_len), float(s.min_len)
    return (top + bottom) / 2 + (top - bottom) / 2 * cos_turns(num, den)


def cos_turns(num: int, den: int) -> float:
    """cos(2 pi num / den), exact wherever it is rational, and exactly even and odd about its axes.

    ``math.cos`` misses 0 and 1/2 by an ulp, to either side: enough to round the two crossings of a
    half-token middle in different directions. In the first quarter only three values are rational
    (Niven's theorem).
    """
    num %= den
    num = min(num, den - num)
    if 4 * num > den:
        return -cos_turns(den - 2 * num, 2 * den)
    if 4 * num == den:
        return 0.0
    if 6 * num == den:
        return 0.5
    return math.cos(2 * math.pi * num / den)
