"""Paired comparison of two methods on the same questions."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from siri_train.statistics.intervals import DRAWS, quantiles
from siri_train.statistics.resample import Floats, draw_questions, finite

FLIPS = 10_000
"""Draws of a sign-flip test; with so few questions that all flips are fewer, all are counted."""
_AT_ONCE = 1 << 22

Verdict = Literal["higher", "lower", "no difference shown"]


class Paired(NamedTuple):
    """The difference of two methods on the same questions.

    Args:
        difference: mean of the first less mean of the second.
        low: lower bound of its interval.
        high: upper bound.
        p_value: of no difference between the methods on these questions, from sign flips.
        questions: how many.
        seeds: training runs of the method that has fewer. With 1 the comparison is about this pair
            of runs only: what another seed would give is in none of these numbers.
    """

    difference: float
    low: float
    high: float
    p_value: float
    questions: int
    seeds: int


def paired_test(
    a: ArrayLike,
    b: ArrayLike,
    *,
    draws: int = DRAWS,
    flips: int = FLIPS,
    level: float = 0.95,
    seed: int = 0,
) -> Paired:
    """Compare two methods on the same questions.

    The interval has two levels. Questions are drawn by the bootstrap, the same for both methods.
    With several runs of a method the spread between runs is added: few runs cannot be drawn from,
    so that part is a draw of Student's t with the runs' pooled variance and degrees of
    freedom. The p-value is of the sign-flip test on the questions' differences of means over
    runs: if the methods are equal, each difference could as well have the other sign. It knows
    nothing of other runs; :func:`verdict` asks for both.

    Args:
        a: ``[runs, questions]``, or one run ``[questions]``: a number for each question, as its
            share of right answers or its mean tokens.
        b: the same of the other method, with the same questions in the same order; the number of
            runs may differ.
        draws: of the interval.
        flips: of the p-value.
        level: of the interval.
        seed: of both.

    Raises:
        ValueError: no number, one that is not finite, or not the same number of questions.
    """
    one, two = _runs(a, "a"), _runs(b, "b")
    if one.shape[1] != two.shape[1]:
        raise ValueError(
            f"a and b: got {one.shape[1]} and {two.shape[1]} questions; takes the same questions "
            "in the same order"
        )
    differences = _unrounded(one.mean(axis=0), two.mean(axis=0))
    count = len(differences)
    drawn = [counts @ differences for counts in draw_questions(count, draws, seed)]
    figures = np.concatenate(drawn) / count + _between_runs(one, two, draws, seed + 1)
    low, high = quantiles(figures, level)
    p_value = sign_flips(differences, flips, seed + 2)
    return Paired(float(differences.mean()), low, high, p_value, count, min(len(one), len(two)))


def verdict(paired: Paired, alpha: float = 0.05) -> Verdict:
    """The first method against the second, in words.

    "higher" or "lower" needs both: a p-value below ``alpha``, and an interval without 0.

    Args:
        paired: what :func:`paired_test` gave.
        alpha: chance of a false verdict where there is no difference; that of one test, so of 20
            tests one is false on average.
    """
    if paired.p_value < alpha and paired.low > 0:
        return "higher"
    if paired.p_value < alpha and paired.high < 0:
        return "lower"
    return "no difference shown"


def sign_flips(differences: ArrayLike, flips: int = FLIPS, seed: int = 0) -> float:
    """The two-sided p-value of a mean difference of 0, by flipping signs (Fisher 1935).

    The share of all choices of signs whose mean is at least as far from 0. Differences of 0 have
    no sign. If there are more choices than ``flips``, so many are drawn, and the one observed
    counts too: then the p-value is never below 1 / (flips + 1).

    Args:
        differences: one a question.
        flips: most choices of signs that are counted.
        seed: of the drawn ones.

    Raises:
        ValueError: no difference, or one that is not finite.
    """
    array = finite(differences, "differences", 1)
    array = array[array != 0]
    count = len(array)
    if not count:
        return 1.0
    # Sums that are equal but for rounding count as equal.
    needed = abs(array.sum()) - 1e-9 * float(np.abs(array).sum())
    if 2**count <= flips:
        bits = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return float((np.abs((2 * bits - 1) @ array) >= needed).mean())
    rng = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // count)
    as_far = 0
    for first in range(0, flips, at_once):
        rows = min(at_once, flips - first)
        signs = 2.0 * rng.integers(0, 2, size=(rows, count), dtype=np.int8) - 1
        as_far += int((np.abs(signs @ array) >= needed).sum())
    return (1 + as_far) / (1 + flips)


def _unrounded(one: Floats, two: Floats) -> Floats:
    """The differences, 0 where two means are equal but for rounding: three times 0.1 is not 0.3.

    Such differences can have one sign on all questions, which no test would take for chance.
    """
    differences = one - two
    differences[np.abs(differences) <= 1e-12 * np.maximum(np.abs(one), np.abs(two))] = 0.0
    return differences


def _between_runs(one: Floats, two: Floats, draws: int, seed: int) -> Floats:
    """Draws of what other runs would add to the difference; 0 with one run of each."""
    degrees = len(one) + len(two) - 2
    if not degrees:
        return np.zeros(draws)
    means = one.mean(axis=1), two.mean(axis=1)
    variance = sum(float(((m - m.mean()) ** 2).sum()) for m in means) / degrees
    error = (variance * (1 / len(one) + 1 / len(two))) ** 0.5
    return error * np.random.default_rng(seed).standard_t(degrees, draws)


def _runs(values: ArrayLike, name: str) -> Floats:
    """``[runs, questions]``, also of one run without the first axis."""
    try:
        return finite(np.atleast_2d(values), name, 2)
    except ValueError as error:
        text = str(error)
        if text.startswith(f"{name}:"):
            raise
        # Rows of different lengths.
        raise ValueError(f"{name}: {text}; takes rows of numbers of one length") from error
