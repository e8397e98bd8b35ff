"""Several runs of one method with different seeds, judged as one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import stdev
from typing import Any

from siri_train.report.data import Evaluation

from .subject import Subject, at_step, of_set
from .types import Finding
from .words import counted, listed

_NO_METHOD = ("name", "output", "seed", "device", "threads", "monitor", "checkpoint")
"""Parts of a recipe in which two runs of one method may differ."""
_NAMED = 3
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""Student's t for a two-sided 95 % interval by degrees of freedom."""
_WORST = ("bad", "unclear", "good", "missing")


def by_method(groups: Sequence[tuple[str, list[Subject]]]) -> list[tuple[str, list[Subject]]]:
    """Runs whose recipes are the same but for the seed, put together; a group stays one.

    Args:
        groups: label and runs; those of several runs are seeds already.
    """
    found: list[tuple[str, list[Subject]]] = []
    places: dict[str, int] = {}
    for label, members in groups:
        method = _method(members[0]) if len(members) == 1 else None
        place = None if method is None else places.get(method)
        seed = members[0].settings.get("seed")
        if method is None or place is None:
            if method is not None:
                places[method] = len(found)
            found.append((label, list(members)))
        elif any(one.settings.get("seed") == seed for one in found[place][1]):
            found.append((label, list(members)))  # the same run once more is no other seed
        else:
            found[place][1].append(members[0])
    return [
        (label if len(members) == 1 or label != members[0].label else _names(members), members)
        for label, members in found
    ]


def together(label: str, members: Sequence[Subject]) -> Subject:
    """One subject of several seeds; a lone one stays what it is.

    Args:
        label: of the whole.
        members: at least one.
    """
    if len(members) == 1:
        return members[0]
    first = members[0]
    steps = [{one.step for one in each.run.evals} for each in members]
    common = set.intersection(*steps)
    if not any(common):  # nothing but the start: what any seed has is better than nothing
        common = set.union(*steps)
    evals = []
    for step in sorted(common):
        there = [one for each in members if (one := at_step(each.run, step)) is not None]
        evals.append(_mean(there))
    notes = tuple(f"{each.label}: {note}" for each in members for note in each.notes)
    run = replace(first.run, evals=evals, seeds=len(members))
    return replace(first, run=run, label=label, notes=notes, seeds=tuple(members))


def same_place(subject: Subject, one: Evaluation) -> list[tuple[Subject, Evaluation]]:
    """The evaluations that an evaluation of a subject is the mean of, each with its run.

    Args:
        subject: one run, or several seeds.
        one: an evaluation of it, on one set.
    """
    if not subject.seeds:
        return [(subject, one)]
    found = []
    for each in subject.seeds:
        whole = at_step(each.run, one.step)
        of = None if whole is None else of_set(whole, one.set)
        if of is not None and of.set == one.set:
            found.append((each, of))
    return found


def student(degrees: int) -> float:
    """Student's t of a two-sided 95 % interval.

    Args:
        degrees: of freedom, at least 1.
    """
    if degrees in _STUDENT:
        return _STUDENT[degrees]
    z = 1.959964  # Cornish and Fisher's expansion: from 5 degrees on right within 1 %
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def scatter(values: Sequence[float]) -> float:
    """Half the 95 % interval of a mean over seeds, as far as the seeds' scatter makes it.

    Args:
        values: one a seed; 0 for a single one, whose scatter is not known.
    """
    if len(values) < 2:
        return 0.0
    return student(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def merged(findings: Sequence[Finding], names: Sequence[str]) -> Finding:
    """A finding on several seeds: the worst one's words, and a line for each seed.

    Args:
        findings: of one key, one a seed.
        names: of the seeds.
    """
    if len(findings) == 1:
        return findings[0]
    names = _without_common_start(names)
    worst = min(findings, key=lambda one: _WORST.index(one.status))
    alike = sum(one.status == worst.status for one in findings)
    name = names[list(findings).index(worst)]
    many = counted(len(findings), "seed")
    some = f"alike in all {many}" if alike == len(findings) else f"{alike} of {many}"
    title = f"{worst.title} ({name}; {some})"
    lines = [
        line
        for each, one in zip(names, findings, strict=True)
        for line in (f"{each}: {one.title}.", *(f"{each}: {detail}" for detail in one.details))
    ]
    if len({(one.title, one.details) for one in findings}) == 1:
        title, lines = f"{worst.title} (all {many})", []
    figures: dict[str, Any] = {
        **worst.figures,
        "seeds": {each: dict(one.figures) for each, one in zip(names, findings, strict=True)},
    }
    return Finding(worst.key, worst.status, title, f"{name}: {worst.text}", figures, tuple(lines))


def _without_common_start(names: Sequence[str]) -> list[str]:
    """Each "arm, seed-0" as "seed-0", where all are of one arm."""
    heads = {name.rpartition(", ")[0] for name in names}
    return [name.rpartition(", ")[2] for name in names] if len(heads) == 1 else list(names)


def _method(subject: Subject) -> str | None:
    """The recipe without what may differ between seeds; None where it names no seed."""
    if subject.settings.get("seed") is None:
        return None
    rest = {str(key): value for key, value in subject.settings.items() if key not in _NO_METHOD}
    return json.dumps(rest, sort_keys=True, default=str)


def _names(members: Sequence[Subject]) -> str:
    labels = [one.label for one in members]
    if len(labels) > _NAMED:
        labels = [*labels[: _NAMED - 1], f"{len(labels) - _NAMED + 1} more"]
    return listed(labels)


def _mean(found: Sequence[Evaluation]) -> Evaluation:
    """The mean of the evaluations after as many steps, of those with the same budgets."""
    first = found[0]
    same = [one for one in found if one.budgets == first.budgets]
    accuracy: list[float | None] = []
    intervals: list[tuple[float, float] | None] = []
    for place in range(len(first.budgets)):
        pairs = [(value, one.intervals[place]) for one in same
                 if (value := one.accuracy[place]) is not None]  # fmt: skip
        mean = sum(value for value, _ in pairs) / len(pairs) if pairs else None
        accuracy.append(mean)
        intervals.append(None if mean is None else _interval(mean, pairs))
    others = [[each for one in same for each in one.others if each.set == other.set]
              for other in first.others]  # fmt: skip
    lengths = [one.tokens for one in same if one.tokens is not None]
    return replace(
        first,
        accuracy=tuple(accuracy),
        intervals=tuple(intervals),
        tokens=sum(lengths) / len(lengths) if lengths else None,
        others=tuple(_mean(each) for each in others),
    )


def _interval(
    mean: float, pairs: Sequence[tuple[float, tuple[float, float] | None]]
) -> tuple[float, float] | None:
    """The interval of a mean over seeds, for other questions and other seeds."""
    known = [(value, bounds) for value, bounds in pairs if bounds is not None]
    if not known:
        return None
    below = sum(value - low for value, (low, _) in known) / len(known)
    above = sum(high - value for value, (_, high) in known) / len(known)
    seeds = scatter([value for value, _ in pairs])
    return max(0.0, mean - math.hypot(below, seeds)), min(1.0, mean + math.hypot(above, seeds))
