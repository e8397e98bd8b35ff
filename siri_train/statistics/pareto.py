"""The accuracy-length plane: points that no other beats, and the area that they cover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from siri_train.statistics.intervals import DRAWS, Interval, quantiles
from siri_train.statistics.resample import Floats, drawn_means, finite


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that are not dominated.

    One dominates another if it has at most as many tokens and at least the same accuracy, and is
    better in one of the two. Equal points do not dominate each other.

    Args:
        points: (tokens, accuracy) each.

    Returns:
        Their places in ``points``, ascending.

    Raises:
        ValueError: see :func:`siri_train.statistics.resample.finite`.
    """
    if not len(points):
        return []
    array = finite(points, "points", 2)
    best, last, kept = -np.inf, np.inf, []
    # By tokens, of equal ones the most accurate first: what is no better than the best so far has
    # at least as many tokens and is dominated, unless it is that point again.
    for place in np.lexsort((-array[:, 1], array[:, 0])):
        tokens, accuracy = array[place]
        if accuracy > best or (accuracy == best and tokens == last):
            kept.append(int(place))
            best, last = accuracy, tokens
    return sorted(kept)


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """The area between the points and a reference that they should beat (Zitzler and Thiele 1999).

    It is the area of all (tokens, accuracy) that are no worse than the reference and no better
    than some point. A front that moves up or to the left has more. Points that do not beat the
    reference in both add nothing.

    Args:
        points: (tokens, accuracy) each; dominated ones change nothing.
        reference: (tokens, accuracy): the most tokens and the least accuracy that count.

    Returns:
        Tokens times share. Divided by the tokens of a reference with accuracy 0 it is the mean,
        over all lengths up to there, of the best accuracy at most so long.

    Raises:
        ValueError: see :func:`siri_train.statistics.resample.finite`.
    """
    if not len(points):
        return 0.0
    array = finite(points, "points", 2)
    return float(_areas(array[None, :, 0], array[None, :, 1], reference)[0])


def hypervolume_interval(
    tokens: ArrayLike,
    accuracy: ArrayLike,
    reference: tuple[float, float],
    *,
    draws: int = DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile interval of the hypervolume over drawn questions.

    In each draw all checkpoints answer the same drawn questions, and the front is found anew. The
    best of several noisy checkpoints looks better than it is: hypervolume and interval lie
    too high by about the noise of one accuracy, the more, the more checkpoints there are.

    Args:
        tokens: ``[checkpoints, questions]``, mean response tokens of each question.
        accuracy: ``[checkpoints, questions]``, share of right answers of each question.
        reference: see :func:`hypervolume`.
        draws: how many.
        level: share of the draws inside.
        seed: of the draws.

    Raises:
        ValueError: see :func:`siri_train.statistics.intervals.bootstrap`; or other questions in
            one than in the other.
    """
    lengths, shares = finite(tokens, "tokens", 2), finite(accuracy, "accuracy", 2)
    if lengths.shape != shares.shape:
        raise ValueError(
            f"tokens and accuracy: got {list(lengths.shape)} and {list(shares.shape)}; takes a "
            "row for each checkpoint with a number for each question, in both"
        )
    means = drawn_means(np.concatenate([lengths, shares]).T, draws, seed)
    count = len(lengths)
    return quantiles(_areas(means[:, :count], means[:, count:], reference), level)


def _areas(tokens: Floats, accuracy: Floats, reference: tuple[float, float]) -> Floats:
    """The hypervolumes of several sets of points, ``[sets, points]``."""
    most, least = reference
    order = np.argsort(tokens, axis=1, kind="stable")
    x = np.minimum(np.take_along_axis(tokens, order, 1), most)
    # The best accuracy at most so long, above the reference; it holds until the next point.
    y = np.maximum.accumulate(np.take_along_axis(accuracy, order, 1), axis=1)
    until = np.concatenate([x[:, 1:], np.full((len(x), 1), most)], axis=1)
    return (np.maximum(y - least, 0) * (until - x)).sum(axis=1)
