"""Intervals over questions: the bootstrap, and Wilson's for shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from siri_train.statistics.resample import Floats, draw_questions, drawn_means, finite

DRAWS = 2000
"""Draws of a bootstrap interval."""


class Interval(NamedTuple):
    """Bounds of a figure.

    Args:
        low: the lower one.
        high: the upper one.
    """

    low: float
    high: float


def mean(values: Floats) -> Any:
    """The mean over questions, the first axis."""
    return values.mean(axis=0)


def bootstrap(
    values: ArrayLike,
    statistic: Callable[[Floats], Any] = mean,
    *,
    draws: int = DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile interval of a figure over drawn questions (Efron 1979).

    Questions are drawn with replacement, as many as there are; the interval lies between quantiles
    of the figure over the draws. Where all values are equal it is empty: of shares take
    :func:`share_interval`, which is not.

    Args:
        values: a number for each question.
        statistic: the figure: takes an array of values, gives a number; default: their mean, for
            which a draw costs least.
        draws: how many.
        level: share of the draws inside.
        seed: of the draws.

    Raises:
        ValueError: no value, one that is not finite, no draw, or a level outside (0, 1).
    """
    array = finite(values, "values", 1)
    if statistic is mean:
        figures = drawn_means(array[:, None], draws, seed)[:, 0]
    else:
        places = np.arange(len(array))
        figures = np.array(
            [
                float(statistic(array[np.repeat(places, row.astype(np.int64))]))
                for counts in draw_questions(len(array), draws, seed)
                for row in counts
            ]
        )
    return quantiles(figures, level)


def quantiles(figures: Floats, level: float) -> Interval:
    """The bounds between which ``level`` of the drawn figures lie, as much left out on each side.

    Args:
        figures: one a draw.
        level: between 0 and 1, without these.

    Raises:
        ValueError: another level.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}; takes a share between 0 and 1, as 0.95")
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def share_intervals(
    shares: ArrayLike, *, draws: int = DRAWS, level: float = 0.95, seed: int = 0
) -> list[Interval]:
    """Intervals of mean shares over questions, of several figures with the same draws.

    Each reaches as far as the bootstrap's or as Wilson's, whichever is farther on a side. The
    bootstrap alone is empty where every question is right, or every one wrong, and too narrow
    near these; Wilson's is not. With some hundred questions the two differ little.

    Args:
        shares: ``[questions, figures]``, between 0 and 1.
        draws: of the bootstrap.
        level: of the intervals.
        seed: of the draws.

    Returns:
        An interval for each figure, within [0, 1].

    Raises:
        ValueError: see :func:`bootstrap`; or a share outside [0, 1].
    """
    array = finite(shares, "shares", 2)
    if array.min() < 0 or array.max() > 1:
        raise ValueError(f"shares: got {array.min():g} to {array.max():g}; takes 0 to 1")
    figures = drawn_means(array, draws, seed)
    found = []
    for drawn, values in zip(figures.T, array.T, strict=True):
        one, two = quantiles(drawn, level), wilson(values.tolist(), level)
        found.append(Interval(max(0.0, min(one.low, two.low)), min(1.0, max(one.high, two.high))))
    return found


def share_interval(
    shares: Sequence[float], *, draws: int = DRAWS, level: float = 0.95, seed: int = 0
) -> Interval:
    """The interval of one mean share; see :func:`share_intervals`.

    Args:
        shares: for each question a share between 0 and 1, as that of its right answers.
        draws: of the bootstrap.
        level: of the interval.
        seed: of the draws.

    Raises:
        ValueError: see :func:`share_intervals`.
    """
    columns = finite(shares, "shares", 1)[:, None]
    return share_intervals(columns, draws=draws, level=level, seed=seed)[0]


def wilson(shares: Sequence[float], level: float = 0.95) -> Interval:
    """Wilson's score interval (1927) of a mean of shares over questions.

    The sample size is the number of questions, divided by the design effect: the variance between
    questions over that of single right or wrong answers. Averaging several answers to a question
    makes it smaller than 1. Where all questions have the same share, nothing is known about the
    spread between them, and the effect counts as 1.

    Args:
        shares: for each question the share of right answers.
        level: of the interval.
    """
    n = len(shares)
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = sum(shares) / n
    between = sum((share - p) ** 2 for share in shares) / n
    effect = between / (p * (1 - p)) if min(shares) < max(shares) else 1.0
    size = n / effect
    centre = (p + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(p * (1 - p) / size + z * z / (4 * size**2))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))
