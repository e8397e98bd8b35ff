"""Did accuracy hold: at both ends of the schedule, against the start and every other run?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from siri_train.report.data import Evaluation

from .compared import HELD, Difference, Said, accuracy_at, corrected, difference
from .subject import Subject, at_step
from .types import Finding, Status
from .words import counted, listed, per_cent, points, signed

_KEY = "accuracy"
OTHERS: dict[Said, str] = {
    "fell": "below",
    "not told apart": "not told apart from",
    "held": "held against",
    "rose": "above",
}
"""The words for these beside another run."""
END_NAMES = {"siri-high": "expanded end", "siri-low": "compressed end"}
_LAST = "last evaluation"
OWN = ("the start", "its expanded end")
"""Evaluations of the run itself: against them it rises or falls, beside others it is above them."""
LOST = 0.05
"""Accuracy lost behind the last expanded end that a cap which falls again does not excuse."""


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
        }


def compared(subject: Subject, others: Sequence[Subject]) -> list[Comparison]:
    """The last evaluation at each end against the start and against every other run.

    The last evaluation of all, if it lies behind the ends, is held against the expanded end, too.
    Another run's evaluation is the one after as many steps, else the nearest one. The p-values are
    corrected for all of the comparisons.

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
        opponents = [("the start", subject, start)]
        if end == _LAST and places[0][0] == END_NAMES["siri-high"]:
            opponents.append(("its expanded end", subject, places[0][1]))
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
    changes = corrected([one.change for one in found])
    return [replace(one, change=change) for one, change in zip(found, changes, strict=True)]


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
    return found + [(_LAST, one) for one in subject.run.evals[-1:] if one.step > behind]


def accuracy(subject: Subject, found: Sequence[Comparison], others: Sequence[Subject]) -> Finding:
    """The finding.

    Args:
        subject: the run.
        found: as `compared` gave it.
        others: of the same folder.
    """
    evaluated = ends(subject)
    if not evaluated:
        text = "eval.jsonl holds no evaluation, so nothing is known of held-out questions."
        return Finding(_KEY, "missing", "Accuracy: not evaluated", text)
    figures: dict[str, Any] = {
        "comparisons": [one.to_json() for one in found],
        "ends": [_figures(end, one) for end, one in evaluated],
        "margin": HELD,
    }
    places = [(end, one, budget) for end, one in evaluated for budget in budgets(one)]
    details = [_line(*place, found) for place in places if _at(*place, found)]
    details += _other_sets(found, evaluated)
    details += _left_out(found, others, evaluated)
    first, main = evaluated[0]
    at = _at(first, main, main.budgets[-1], found) if main.budgets else []
    if not at:
        value = per_cent(main.best)
        if main.best is None:
            title, text = "Accuracy: unknown", "The evaluation has no accuracy."
        else:
            title = f"Accuracy {value}, nothing to compare with"
            text = f"{_where(first, main)}: {value}. There is nothing to compare it with."
        return Finding(_KEY, "missing", title, text, figures, tuple(details))
    status, title = _summary(at, found)
    text = " ".join(
        f"{_where(end, one)}, within {budget:,} tokens: {_value(one, budget)}: "
        f"{'; '.join(_parts(rows))}."
        for end, one, budget in places
        if (rows := _at(end, one, budget, found))
    )
    pairs = "the same questions" if all(one.change.paired for one in found) else (
        "the intervals of the two" if not any(one.change.paired for one in found)
        else "the same questions where both runs have them"
    )  # fmt: skip
    text += (
        f" Differences are in points with 95 % intervals, from {pairs}; held means that a "
        f"fall of {100 * HELD:.0f} points is outside the interval, not told apart that these "
        "questions do not decide it."
    )
    if len(found) > 1:
        text += f" Claims of a difference are corrected for {len(found)} comparisons (Holm)."
    return Finding(_KEY, status, title, text, figures, tuple(details), _table(found))


def _table(found: Sequence[Comparison]) -> tuple[tuple[str, ...], ...]:
    """The comparisons for the page, the head first."""
    named = any(one.set is not None for one in found)
    head = ("checkpoint", *(("set",) if named else ()), "within", "against", "its step", "points",
            "95 % interval", "said")  # fmt: skip
    rows = [
        (f"{one.end}, step {one.step:,}", *((one.set or "",) if named else ()),
         f"{one.budget:,} tokens", one.against, f"{one.other_step:,}",
         signed(100 * one.change.value),
         f"{signed(100 * one.change.low)} to {signed(100 * one.change.high)}", _word(one))
        for one in found
    ]  # fmt: skip
    return (head, *rows)


def _summary(at: Sequence[Comparison], found: Sequence[Comparison]) -> tuple[Status, str]:
    """Status and title, from the comparisons of the expanded end at the full budget."""
    parts = _parts(at)
    fell = [one for one in at if one.change.said == "fell"]
    low = [one for one in found if one.against == "the start" and one.change.said == "fell"
           and one.budget == at[0].budget]  # fmt: skip
    short = [one for one in found if (one.end, one.set) == (at[0].end, at[0].set)
             and one.budget < at[0].budget and one.against not in OWN]  # fmt: skip
    worse = sum(one.change.said == "fell" for one in short)
    if worse:
        parts.append(
            f"within {short[0].budget:,} tokens below {worse:,} of "
            f"{counted(len(short), 'other run')}"
        )
    if not fell:
        parts += [f"{_verb(one)} against the start at the {one.end} (step {one.step:,})"
                  for one in low if one.end != at[0].end]  # fmt: skip
    since = [one for one in found if one.against == "its expanded end" and one.budget ==
             at[0].budget and one.set == at[0].set and one.change.said == "fell"]  # fmt: skip
    parts += [f"{_verb(one)} from the expanded end to the last evaluation (step {one.step:,})"
              for one in since]  # fmt: skip
    status: Status = "good"
    if fell or low or any(one.change.value < -LOST for one in since):
        status = "bad"
    elif any(one.change.said == "not told apart" for one in at):
        status = "unclear"
    return status, "Accuracy " + "; ".join(parts)


def _parts(at: Sequence[Comparison]) -> list[str]:
    """A checkpoint at a budget against the start, and against how many of the other runs."""
    start = next((one for one in at if one.against == "the start"), None)
    own = next((one for one in at if one.against == "its expanded end"), None)
    rest = [one for one in at if one.against not in OWN]
    parts = [
        f"{_verb(one)} {'from' if one.change.said == 'not told apart' else 'against'} {one.against}"
        for one in (start, own)
        if one is not None
    ]
    if len(rest) == 1:
        change = rest[0].change
        by = f" by {abs(100 * change.value):.1f} points" if change.said in ("rose", "fell") else ""
        parts.append(f"{OTHERS[change.said]} {rest[0].against}{by}")
    elif rest:
        counts = Counter(one.change.said for one in rest)
        said = [f"{words} {counts[said]}" for said, words in OTHERS.items() if counts[said]]
        parts.append(f"{listed(said)} of {counted(len(rest), 'other run')}")
    return parts


def _at(end: str, one: Evaluation, budget: int, found: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of a checkpoint at a budget."""
    return [each for each in found
            if (each.end, each.budget, each.set) == (end, budget, one.set)]  # fmt: skip


def _verb(one: Comparison) -> str:
    change = one.change
    if change.said in ("rose", "fell"):
        return f"{change.said} by {abs(100 * change.value):.1f} points"
    return change.said


def _against(at: Sequence[Comparison]) -> str:
    return " ".join(f"Against {_other(one)}: {_told(one)}." for one in at)


def _other(one: Comparison) -> str:
    named = one.against == "the start"
    return one.against if named else f"{one.against}, step {one.other_step:,}"


def _told(one: Comparison) -> str:
    change = one.change
    bounds = f"({signed(100 * change.low)} to {signed(100 * change.high)})"
    if change.said == "not told apart":
        wide = 100 * (change.high - change.low)
        return f"not told apart, {points(change.value)} {bounds}, an interval of {wide:.1f} points"
    return f"{_word(one)}, {points(change.value)} {bounds}"


def _word(one: Comparison) -> str:
    """A run rises and falls against its start; beside another run it is above or below."""
    if one.against in OWN:
        return one.change.said
    return {"rose": "above", "fell": "below"}.get(one.change.said, one.change.said)


def _line(end: str, one: Evaluation, budget: int, found: Sequence[Comparison]) -> str:
    """An end at a budget, with all that it is compared with."""
    text = f"{_where(end, one)}, within {budget:,} tokens: {_value(one, budget)}."
    return f"{text} {_against(_at(end, one, budget, found))}"


def _other_sets(
    found: Sequence[Comparison], evaluated: Sequence[tuple[str, Evaluation]]
) -> list[str]:
    lines = []
    for end, one in evaluated:
        for other in one.others:
            at = [each for each in found if (each.end, each.set) == (end, other.set)]
            if at and other.budgets:
                value = _value(other, other.budgets[-1])
                lines.append(
                    f"{_where(end, other)}, set {other.set}, within {other.budgets[-1]:,} tokens: "
                    f"{value}. {_against(at)}"
                )
    return lines


def _left_out(
    found: Sequence[Comparison],
    others: Sequence[Subject],
    evaluated: Sequence[tuple[str, Evaluation]],
) -> list[str]:
    """Runs that nothing could be compared with."""
    there = {one.against for one in found}
    if all(one.step == 0 for _, one in evaluated):
        return []
    names = [other.described for other in others if other.described not in there]
    if not names:
        return []
    return [
        f"Not compared with {listed(names)}: no evaluation there on the same set within the same "
        "budget, or no interval."
    ]


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


def _where(end: str, one: Evaluation) -> str:
    return f"{end[0].upper()}{end[1:]} (step {one.step:,})"


def _value(one: Evaluation, budget: int) -> str:
    found = accuracy_at(one, budget)
    if found is None:
        return "unknown"
    value, bounds = found
    told = "" if bounds is None else f" ({100 * bounds[0]:.1f} to {100 * bounds[1]:.1f})"
    return per_cent(value) + told


def _figures(end: str, one: Evaluation) -> dict[str, Any]:
    return {
        "end": end,
        "step": one.step,
        "set": one.set,
        "budgets": list(one.budgets),
        "accuracy": list(one.accuracy),
        "tokens": one.tokens,
    }
