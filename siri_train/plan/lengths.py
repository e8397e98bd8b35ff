"""Response lengths of a step: an assumption, because only a run can measure them.

The mean is a share of the cap. Around it lengths are log-normal, as those of reasoning
models are: a median well below the mean and a tail that the cap truncates.
"""

from __future__ import annotations

import math
from statistics import NormalDist

SHARE = 0.5
"""Mean length of a training response as a share of the cap.

The paper starts from 12333 of 16384 tokens (0.75) on AIME24 and 4745 (0.29) on MATH-500 (its Table
1); training questions lie between: DeepScaleR's first stage has 5500 at the start and 3500 at its
end, of 8192 (0.67 and 0.43), with the same questions and model. Later lengths follow the cap.
"""

LOW, HIGH = 0.35, 0.67
"""The range of it in those runs, averaged over a stage."""

SPREAD = 0.8
"""Standard deviation of the logarithm of a length before the cap cuts it."""

_NORMAL = NormalDist()


def mean_of_cut(median: float, spread: float = SPREAD) -> float:
    """Mean of min(X, 1) for a log-normal X.

    Args:
        median: of X.
        spread: standard deviation of log X.
    """
    end = math.log(1 / median)
    below = _NORMAL.cdf(end / spread - spread) * median * math.exp(spread * spread / 2)
    return below + 1 - _NORMAL.cdf(end / spread)


def median_for(share: float, spread: float = SPREAD) -> float:
    """The median, in caps, of lengths whose mean under the cap is a share of it.

    Args:
        share: mean length over cap, above 0 and below 1.
        spread: standard deviation of the logarithm of a length.
    """
    low, high = 1e-6, 1e6
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if mean_of_cut(middle, spread) < share else (low, middle)
    return math.sqrt(low * high)


def quantiles(share: float, count: int, spread: float = SPREAD) -> list[float]:
    """``count`` lengths for the distribution, ascending, in caps, whose mean is ``share``.

    Args:
        share: mean length over cap; 1: all responses are truncated.
        count: how many, at least 1.
        spread: standard deviation of the logarithm of a length.
    """
    if share >= 0.999:
        return [1.0] * count
    median = median_for(share, spread)
    drawn = [
        min(1.0, median * math.exp(spread * _NORMAL.inv_cdf((i + 0.5) / count)))
        for i in range(count)
    ]
    rest = share * count - sum(drawn)  # the middle of a slice is not its mean
    free = [value if value < 1 else 0.0 for value in drawn]
    room = sum(free)
    if not room or rest / room < -1:
        return [share] * count
    return [min(1.0, value + rest * part / room) for value, part in zip(drawn, free, strict=True)]


def truncated(share: float, spread: float = SPREAD) -> float:
    """Share of the responses that the cap cuts.

    Args:
        share: mean length over cap.
        spread: standard deviation of the logarithm of a length.
    """
    if share >= 0.999:
        return 1.0
    return 1 - _NORMAL.cdf(math.log(1 / median_for(share, spread)) / spread)
