"""Did accuracy hold: at both ends of the schedule, against the start and every other run?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from siri_train.report.data import Evaluation

from .compared import HELD, Said, accuracy_at
from .comparisons import EXPANDED, LOST, OWN, PEAK, START, Comparison, budgets, ends
from .subject import Subject
from .types import Finding, Status
from .words import counted, listed, per_cent, points, signed

_KEY = "accuracy"
OTHERS: dict[Said, str] = {
    "fell": "below",
    "not told apart": "not told apart from",
    "held": "held against",
    "the same": "the same as",
    "rose": "above",
}
"""The words for these beside another run."""


def accuracy(subject: Subject, found: Sequence[Comparison], others: Sequence[Subject]) -> Finding:
    """The finding.

    It is bad where the run fell behind its own start, lost more than `LOST` since its best, or is
    below another run at the first place that is looked at (the expanded end, the full budget).
    Below another run elsewhere only, or a smaller loss, is mixed. It is good where nothing that is
    shown fell, and the first place is told apart.

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
    judged = " ".join(filter(None, [_right(evaluated), _sets(subject, evaluated[0][1])]))
    text = f"{judged} {_how_to_read(subject, found)}"
    title = "Accuracy " + "; ".join([*_headline(at, subject), *_losses(at, found)])
    return Finding(_KEY, _status(at, found), title, text, figures, tuple(details), _table(found))


def _right(evaluated: Sequence[tuple[str, Evaluation]]) -> str:
    """The accuracies in a sentence."""
    parts = []
    for end, one in evaluated:
        values = [f"{_value(one, budget)} within {budget:,} tokens" for budget in budgets(one)]
        parts.append(f"at the {end} (step {one.step:,}) {listed(values)}")
    name = evaluated[0][1].set
    of = "" if name is None else f" of the set {name}"
    return f"Held-out questions{of} answered right: {'; '.join(parts)}."


def _sets(subject: Subject, one: Evaluation) -> str:
    """Where sets have names: which one chooses checkpoints, and which one is reported."""
    if one.set is None:
        return ""
    chooses = next((each for each in (one, *one.others) if each.set == subject.select), one)
    if chooses is not one:
        return (
            f"Checkpoints are chosen on {_counted_set(chooses)} and reported on the others; "
            f"the judgement is on {_counted_set(one)}."
        )
    if not one.others:
        return ""
    return (
        f"Checkpoints are chosen on {_counted_set(one)}, too, so a chosen one looks better there "
        "than it is (eval.select names another set)."
    )


def _counted_set(one: Evaluation) -> str:
    questions = "" if one.questions is None else f" ({counted(one.questions, 'question')})"
    return f"{one.set}{questions}"


def _how_to_read(subject: Subject, found: Sequence[Comparison]) -> str:
    """The meaning of words and figures."""
    paired = [one.change.paired for one in found]
    how = (
        "both were asked the same questions, and are compared question by question" if all(paired)
        else "they come from the two intervals" if not any(paired)
        else "where both were asked the same questions, they are compared question by question"
    )  # fmt: skip
    text = (
        "Below are differences in percentage points, each with the range that holds the true one "
        f"in 95 of 100 cases; {how}. “Held”: a fall of {100 * HELD:.0f} points or more is ruled "
        "out. “Not told apart”: so few questions do not decide it."
    )
    if len(found) > 1:
        text += (
            f" Of {len(found):,} comparisons some would show a difference by luck alone; “above”, "
            "“below”, “rose” and “fell” allow for that."
        )
    if subject.seeds:
        text += (
            f" All figures are means over {counted(len(subject.seeds), 'seed')}; the intervals "
            "include how much the seeds differ."
        )
    return text


def _status(at: Sequence[Comparison], found: Sequence[Comparison]) -> Status:
    """The worst that is shown decides."""
    fell = [one for one in found if one.change.said == "fell"]
    if any(
        one in at or one.against == START for one in fell if one.against not in (PEAK, EXPANDED)
    ):
        return "bad"
    if any(one.against in OWN and one.change.value < -LOST for one in fell):
        return "bad"
    if fell or any(one.change.said == "not told apart" for one in at if one.against != PEAK):
        return "unclear"
    return "good"


def _headline(at: Sequence[Comparison], subject: Subject) -> list[str]:
    """The first place in the title: against the start, since its best, beside other runs."""
    parts = _parts([one for one in at if one.against != PEAK])
    peak = next((one for one in at if one.against == PEAK and one.change.said == "fell"), None)
    start = next((one for one in at if one.against == START), None)
    # what never was above the start has no peak
    if peak is not None and (start is None or start.change.value > peak.change.value):
        parts.insert(0 if start is None else 1, _peaked(peak, subject))
    return parts


def _peaked(one: Comparison, subject: Subject) -> str:
    change = one.change
    row = next(each for each in subject.run.evals if each.step == one.other_step)
    return (
        f"it peaked at step {one.other_step:,} with {per_cent(row.best)} and has lost "
        f"{abs(100 * change.value):.1f} points since ({-100 * change.high:.1f} to "
        f"{-100 * change.low:.1f})"
    )


def _losses(at: Sequence[Comparison], found: Sequence[Comparison]) -> list[str]:
    """Losses elsewhere: own falls first, then a part for each place below other runs."""
    parts = []
    fell = [one for one in found if one.change.said == "fell"]
    rest = [one for one in fell if one not in at]
    said = {one.against for one in at if one.change.said == "fell"}
    for one in rest:
        whole = [each for each in fell if (each.end, each.against, each.set) ==
                 (one.end, one.against, one.set) and each.budget > one.budget]  # fmt: skip
        if one.against in OWN and (whole or one.against in said):  # said of the first place
            continue
        if one.against == EXPANDED:
            parts.append(f"{_verb(one)} from the expanded end to the last evaluation "
                         f"(step {one.step:,}){_short(one, at)}")  # fmt: skip
        elif one.against == START:
            parts.append(f"{_verb(one)} against the start at the {one.end} "
                         f"(step {one.step:,}){_short(one, at)}")  # fmt: skip
        elif one.against == PEAK:
            parts.append(f"{_verb(one)} from the {one.end} at step {one.other_step:,} to that at "
                         f"step {one.step:,}")  # fmt: skip
    first_said = False
    places: dict[tuple[str, int, str | None], list[Comparison]] = {}
    for one in rest:
        if one.against not in OWN:
            places.setdefault((one.end, one.budget, one.set), []).append(one)
    for (end, budget, name), below in places.items():
        beside = [one for one in found if (one.end, one.budget, one.set) == (end, budget, name)
                  and one.against not in OWN]  # fmt: skip
        worst = min(below, key=lambda one: one.change.value)
        told = f"{abs(100 * worst.change.value):.1f} points below {worst.against}"
        if len(beside) > 1:
            told = f"below {len(below):,} of {counted(len(beside), 'other run')}: {told}"
            told += " at worst" if len(below) > 1 else ""
        where = f"at the {end} within {budget:,} tokens"
        if name != at[0].set:
            where += f" on the set {name}"
        parts.append(f"{'and' if first_said else 'but'} {where} {told}")
        first_said = True
    return parts


def _short(one: Comparison, at: Sequence[Comparison]) -> str:
    """The budget and the set, where they are not those of the first place."""
    text = "" if one.budget == at[0].budget else f" within {one.budget:,} tokens"
    return text if one.set == at[0].set else f"{text} on the set {one.set}"


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


def _parts(at: Sequence[Comparison]) -> list[str]:
    """A checkpoint at a budget against the run's own, and against how many of the other runs."""
    rest = [one for one in at if one.against not in OWN]
    parts = [f"{_verb(one)} {_against_own(one)}{_bounds(one)}" for one in at
             if one.against in OWN]  # fmt: skip
    if len(rest) == 1:
        change = rest[0].change
        by = f" by {abs(100 * change.value):.1f} points" if change.said in ("rose", "fell") else ""
        same = _on_all(rest[0]) if change.identical else ""
        parts.append(f"{OTHERS[change.said]} {rest[0].against}{by}{same}{_bounds(rest[0])}")
    elif rest:
        counts = Counter(one.change.said for one in rest)
        said = [f"{words} {counts[said]}" for said, words in OTHERS.items() if counts[said]]
        parts.append(f"{listed(said)} of {counted(len(rest), 'other run')}")
    return parts


def _against_own(one: Comparison) -> str:
    if one.change.identical:
        return f"as {one.against}{_on_all(one)}"
    return f"{'from' if one.change.said == 'not told apart' else 'against'} {one.against}"


def _on_all(one: Comparison) -> str:
    """Where two checkpoints are the same: on how many questions."""
    questions = one.change.questions
    return "" if questions is None else f" (equal on each of the {counted(questions, 'question')})"


def _at(end: str, one: Evaluation, budget: int, found: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of a checkpoint at a budget."""
    return [each for each in found
            if (each.end, each.budget, each.set) == (end, budget, one.set)]  # fmt: skip


def _verb(one: Comparison) -> str:
    change = one.change
    if change.said in ("rose", "fell"):
        return f"{change.said} by {abs(100 * change.value):.1f} points"
    return change.said


def _bounds(one: Comparison) -> str:
    """The difference with its range, for what is no claim."""
    change = one.change
    return (
        f" ({points(change.value)}, {signed(100 * change.low)} to {signed(100 * change.high)})"
        if change.said in ("held", "not told apart") else ""
    )  # fmt: skip


def _against(at: Sequence[Comparison]) -> str:
    return " ".join(f"Against {_other(one)}: {_told(one)}." for one in at)


def _other(one: Comparison) -> str:
    return one.against if one.against == START else f"{one.against}, step {one.other_step:,}"


def _told(one: Comparison) -> str:
    change = one.change
    if change.identical:
        return f"the same{_on_all(one)}"
    bounds = f"({signed(100 * change.low)} to {signed(100 * change.high)})"
    seeds = "" if max(change.seeds) < 2 else f" over {_seeds(change.seeds)}"
    if change.said == "not told apart":
        wide = 100 * (change.high - change.low)
        text = f"not told apart, {points(change.value)} {bounds}, an interval of {wide:.1f} points"
        return text + seeds
    return f"{_word(one)}, {points(change.value)} {bounds}{seeds}"


def _seeds(seeds: tuple[int, int]) -> str:
    mine, theirs = seeds
    if mine == theirs:
        return f"{counted(mine, 'seed')} each"
    return f"{counted(mine, 'seed')} against {theirs:,}"


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
