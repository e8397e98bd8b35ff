"""A run's evaluations beside its start, its own best, and every other run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from siri_train.report.data import Evaluation

from .compared import Difference, corrected, difference
from .subject import Subject, at_step, of_set

END_NAMES = {"siri-high": "expanded end", "siri-low": "compressed end"}
LAST = "last evaluation"
START, EXPANDED, PEAK = "the start", "its expanded end", "its best earlier evaluation"
OWN = (START, EXPANDED, PEAK)
"""Evaluations of the run itself: against them it rises or falls, beside others it is above them."""
LOST = 0.05
"""Accuracy lost since the run's own best that neither a cap which falls again nor noise excuses."""


@dataclass(frozen=True)
class Comparison:
    """A checkpoint of the run against another one, at a budget.

    Args:
        end: of the run's checkpoint in words: "expanded end", "compressed end", "last evaluation".
        step: of it.
        budget: tokens.
        against: what it is compared with, in words.
        other_step: of that.
        change: the difference.
        set: of questions; None where sets have no names.
    """

    end: str
    step: int
    budget: int
    against: str
    other_step: int
    change: Difference
    set: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Its figures; differences are shares."""
        return {
            "end": self.end,
            "step": self.step,
            "budget": self.budget,
            "against": self.against,
            "against_step": self.other_step,
            "set": self.set,
            "said": self.change.said,
            "difference": self.change.value,
            "interval": [self.change.low, self.change.high],
            "p_value": self.change.p_value,
            "paired": self.change.paired,
            "questions": self.change.questions,
            "seeds": list(self.change.seeds),
        }


def compared(subject: Subject, others: Sequence[Subject]) -> list[Comparison]:
    """The last evaluation at each end against the start and against every other run.

    It is held against the most accurate earlier one of its kind, too, where that is higher: ends
    against ends, and of a run without ends the last evaluation against all. The last evaluation of
    a run with ends, if it lies behind them, is held against the expanded end. Another run's
    evaluation is the one after as many steps, else the nearest one. The p-values are corrected for
    all of the comparisons.

    Args:
        subject: the run.
        others: of the same folder.
    """
    found: list[Comparison] = []
    start = at_step(subject.run, 0)
    places = ends(subject)
    for end, one in places:
        if one.step == 0:
            continue
        opponents: list[tuple[str, Subject, Evaluation | None]] = [(START, subject, start)]
        if end == LAST and places[0][0] == END_NAMES["siri-high"]:
            opponents.append((EXPANDED, subject, places[0][1]))
        opponents += [(other.described, other, _near(other, one.step)) for other in others]
        for name, other, evaluation in opponents:
            if evaluation is None or evaluation is one:
                continue
            for mine, theirs in _same_sets(subject.select, one, evaluation):
                for budget in mine.budgets[-1:] if mine is not one else budgets(mine):
                    change = difference(subject, mine, other, theirs, budget)
                    if change is not None:
                        found.append(
                            Comparison(end, one.step, budget, name, theirs.step, change, mine.set)
                        )
        found += _against_peak(subject, end, one)
    changes = corrected([one.change for one in found])
    return [replace(one, change=change) for one, change in zip(found, changes, strict=True)]


def _against_peak(subject: Subject, end: str, one: Evaluation) -> list[Comparison]:
    """The evaluation against the most accurate earlier one of its kind, at the full budget."""
    names = [name for name, words in END_NAMES.items() if words == end]
    earlier = [each for each in subject.run.evals if 0 < each.step < one.step]
    if names:
        steps = subject.ends(names[0])
        earlier = [each for each in earlier if each.step in steps]
    elif len(ends(subject)) > 1:  # it is held against the expanded end
        return []
    rated = [(best, each) for each in earlier
             if (best := of_set(each, subject.select).best) is not None]  # fmt: skip
    if not rated or not one.budgets:
        return []
    _, peak = max(rated, key=lambda pair: (pair[0], -pair[1].step))
    if peak.best is None or one.best is None or peak.best <= one.best:
        return []
    # a peak that other questions have chosen is no better than it looks
    chosen_here = of_set(peak, subject.select).set == one.set
    tries = len(rated) if chosen_here else 1
    change = difference(subject, one, subject, peak, one.budgets[-1], tries=tries)
    if change is None:
        return []
    return [Comparison(end, one.step, one.budgets[-1], PEAK, peak.step, change, one.set)]


def budgets(one: Evaluation) -> tuple[int, ...]:
    """The full budget and, where there is another, the low one.

    Args:
        one: an evaluation.
    """
    return tuple(dict.fromkeys((*one.budgets[-1:], *one.budgets[:1])))


def ends(subject: Subject) -> list[tuple[str, Evaluation]]:
    """The evaluations at the last expanded and compressed end, and one behind both: the last one.

    Args:
        subject: the run.
    """
    found = []
    for name, words in END_NAMES.items():
        rows = [at_step(subject.run, step) for step in subject.ends(name)]
        last = [row for row in rows if row is not None]
        if last:
            found.append((words, last[-1]))
    behind = max((one.step for _, one in found), default=-1)
    return found + [(LAST, one) for one in subject.run.evals[-1:] if one.step > behind]


def _same_sets(
    select: str | None, one: Evaluation, other: Evaluation
) -> list[tuple[Evaluation, Evaluation]]:
    """The evaluations of both on each set, without the one that selects beside others."""
    mine = [one, *(each for each in one.others if each.set != select)]
    theirs = {each.set: each for each in (other, *other.others)}
    return [(each, theirs[each.set]) for each in mine if each.set in theirs]


def _near(other: Subject, step: int) -> Evaluation | None:
    """The evaluation of another run after as many steps, else the nearest one behind its start."""
    rows = [one for one in other.run.evals if one.step > 0]
    return min(rows, key=lambda one: (abs(one.step - step), one.step), default=None)
