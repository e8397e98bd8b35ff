"""Two evaluations compared: the difference of their accuracy with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

from siri_train.monitor.question_records import QuestionRecord
from siri_train.report.data import Evaluation
from siri_train.statistics.paired import Paired, paired_test

from .seeds import same_place
from .subject import Subject

HELD = 0.02
"""Accuracy that has fallen by less than this share, at the interval's lower end, has held."""
ALPHA = 0.05
DRAWS, FLIPS = 1000, 4000
"""Draws of the paired test: a verdict has many tests."""
DRAWS_OF_SEEDS = 10_000
"""Draws where the scatter between few seeds is in the interval: Student's t has long tails."""

Said = Literal["rose", "fell", "the same", "held", "not told apart"]


@dataclass(frozen=True)
class Difference:
    """Accuracy of one evaluation less that of another.

    Args:
        value: a share.
        low: lower bound of its 95 % interval.
        high: upper bound.
        p_value: of no difference; after `corrected` Holm's.
        paired: question by question; else from the two intervals.
        questions: how many, where that is known.
        identical: whether every question has the same result on both sides.
        seeds: how many of each side the accuracies are means of.
    """

    value: float
    low: float
    high: float
    p_value: float
    paired: bool
    questions: int | None
    identical: bool = False
    seeds: tuple[int, int] = (1, 1)

    @property
    def said(self) -> Said:
        """The difference in words: "rose" and "fell" are claims, "held" excludes a larger fall."""
        if self.identical:
            return "the same"
        if self.p_value < ALPHA and self.low > 0:
            return "rose"
        if self.p_value < ALPHA and self.high < 0:
            return "fell"
        return "held" if self.low >= -HELD else "not told apart"


def accuracy_at(one: Evaluation, budget: int) -> tuple[float, tuple[float, float] | None] | None:
    """Accuracy and its interval at a budget; None where it is unknown.

    Args:
        one: an evaluation on one set.
        budget: tokens.
    """
    if budget not in one.budgets:
        return None
    place = one.budgets.index(budget)
    value = one.accuracy[place]
    return None if value is None else (value, one.intervals[place])


def difference(
    subject: Subject,
    one: Evaluation,
    other: Subject,
    two: Evaluation,
    budget: int,
    *,
    quick: bool = False,
    tries: int = 1,
) -> Difference | None:
    """``one`` less ``two`` at a budget.

    Paired by question where both runs recorded the same questions; else from the two intervals
    (the MOVER method), which is wider as it does not know that the questions are the same. Of
    several seeds it is the difference of the means over seeds, and what other seeds would give is
    in the interval.

    Args:
        subject: the run of ``one``.
        one: an evaluation on one set.
        other: the run of ``two``.
        two: an evaluation on the same set.
        budget: tokens.
        quick: with fewer draws, for one of many candidates.
        tries: how many evaluations one of the two is the best of, by the same questions: interval
            and p-value allow for the choice (Bonferroni).

    Returns:
        None where an accuracy or an interval is unknown, or the sets differ.
    """
    a, b = accuracy_at(one, budget), accuracy_at(two, budget)
    if a is None or b is None or one.set != two.set:
        return None
    sides = [same_place(run, of) for run, of in ((subject, one), (other, two))]
    seeds = len(sides[0]), len(sides[1])
    records = [[run.records.get((of.step, of.set)) for run, of in side] for side in sides]
    shares = _shares(records, budget)
    if shares is not None:
        mine, theirs = shares
        test = paired_test(
            mine,
            theirs,
            draws=DRAWS // 4 if quick else DRAWS if max(seeds) < 2 else DRAWS_OF_SEEDS,
            flips=FLIPS // 4 if quick else FLIPS * min(tries, 10),
        )
        if abs(test.difference - (a[0] - b[0])) < 1e-6:  # the two files agree
            same = all(row == mine[0] for row in [*mine, *theirs])
            low, high = (0.0, 0.0) if same else _not_empty(test, a, b)
            found = Difference(
                test.difference, low, high, test.p_value, True, test.questions, same, seeds
            )
            return _chosen(found, tries)
    unpaired = _unpaired(a, b, one.questions, seeds)
    return None if unpaired is None else _chosen(unpaired, tries)


def _shares(
    records: Sequence[Sequence[QuestionRecord | None]], budget: int
) -> tuple[list[list[float]], list[list[float]]] | None:
    """``[seeds][questions]`` of both sides; None where not all have the same questions."""
    known = [one for side in records for one in side if one is not None]
    if not known or len(known) < sum(map(len, records)):
        return None
    if len({one.fingerprint for one in known}) > 1 or len({len(one.ids) for one in known}) > 1:
        return None
    if not all(budget in one.budgets for one in known):
        return None
    first, second = (
        [one.shares(one.budgets.index(budget)) for one in side if one is not None]
        for side in records
    )
    return first, second


def _chosen(found: Difference, tries: int) -> Difference:
    """Wider, and with a larger p-value, where one side is the best of several."""
    if tries <= 1 or found.identical:
        return found
    normal = NormalDist()
    wider = normal.inv_cdf(1 - 0.025 / tries) / normal.inv_cdf(0.975)
    low, high = (found.value + wider * (end - found.value) for end in (found.low, found.high))
    return replace(found, low=low, high=high, p_value=min(1.0, tries * found.p_value))


def corrected(found: Sequence[Difference]) -> list[Difference]:
    """With Holm's p-values: at most one claim in 20 such lists is false where nothing differs.

    Args:
        found: all comparisons of a verdict.
    """
    order = sorted(range(len(found)), key=lambda place: found[place].p_value)
    result = list(found)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, found[place].p_value * (len(found) - rank)))
        result[place] = replace(found[place], p_value=highest)
    return result


Known = tuple[float, "tuple[float, float] | None"]


def _unpaired(
    a: Known, b: Known, questions: int | None, seeds: tuple[int, int] = (1, 1)
) -> Difference | None:
    (p, of_p), (q, of_q) = a, b
    if of_p is None or of_q is None:
        return None
    value = p - q
    low = value - math.hypot(p - of_p[0], of_q[1] - q)
    high = value + math.hypot(of_p[1] - p, q - of_q[0])
    side = value - low if value > 0 else high - value
    if value == 0:
        p_value = 1.0
    elif side <= 0:
        p_value = 0.0
    else:
        normal = NormalDist()
        p_value = 2 * (1 - normal.cdf(abs(value) / side * normal.inv_cdf(0.975)))
    return Difference(value, low, high, p_value, False, questions, False, seeds)


def _not_empty(test: Paired, a: Known, b: Known) -> tuple[float, float]:
    """The bootstrap of answers that are all the same is empty: then the wider interval counts."""
    if test.high > test.low:
        return test.low, test.high
    wide = _unpaired(a, b, None)
    if wide is None:
        return test.low, test.high
    return min(wide.low, test.difference), max(wide.high, test.difference)
