"""All findings on a run, and the checkpoints to ship."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from siri_train.report.data import RunFolder

from .accuracy import accuracy
from .chosen import subjects
from .comparisons import Comparison, compared
from .entropy import entropy
from .health import groups, mismatch, truncation
from .length import length
from .names import Names
from .progress import finished, progress
from .raised import Kind, alarms, kinds
from .seeds import merged
from .ship import ship
from .subject import Subject
from .topics import agreeing
from .turns import turns
from .types import Finding, Ship, State, Verdict

T = TypeVar("T")


def judge(folder: RunFolder) -> Verdict:
    """Judge a run by its files.

    Args:
        folder: of one run, or of several: then the first whose cap moves is judged, and the others
            are what it is compared with. Runs that differ in the seed alone are judged as one.

    Returns:
        The verdict. Whatever is missing or damaged is said in it; nothing is raised.
    """
    subject, others = subjects(folder)
    names = Names(folder)
    found = _or(list[Comparison](), lambda: compared(subject, others))
    raised = _or(list[Kind](), lambda: kinds(subject))
    by_member = [_or(list[Kind](), partial(kinds, member)) for member in subject.members]
    made: list[tuple[str, str, Callable[[Subject], Finding]]] = [
        ("state", "State of the run", progress),
        ("length", "Length and cap", length),
        ("accuracy", "Accuracy", lambda one: accuracy(one, found, others)),
        ("entropy", "Entropy", lambda one: entropy(one, found)),
        ("turns", "Turns of the length", lambda one: turns(one, names)),
        ("truncation", "Truncation", truncation),
        ("groups", "Groups that teach", groups),
        ("mismatch", "Sampler and trainer", mismatch),
        ("alarms", "Alarms", alarms),
    ]
    findings = []
    for key, title, make in made:
        if key == "accuracy":  # compares means over seeds
            findings.append(agreeing(_safely(key, title, make, subject), raised))
            continue
        own = [
            agreeing(_safely(key, title, make, member), alarms_of)
            for member, alarms_of in zip(subject.members, by_member, strict=True)
        ]
        findings.append(merged(own, [member.label for member in subject.members]))
    nothing: tuple[tuple[Ship, ...], str] = (
        (),
        "No checkpoint to recommend: the evaluations could not be read.",
    )
    shipped, advice = _or(nothing, lambda: ship(subject, others, names))
    state: State = "finished" if all(map(finished, subject.members)) else "unfinished"
    steps = subject.count("train", "steps")
    return Verdict(
        subject.described, state, subject.done, steps, tuple(findings), shipped, advice,
        tuple(other.described for other in others),
    )  # fmt: skip


def _safely(key: str, title: str, make: Callable[[Subject], Finding], subject: Subject) -> Finding:
    """A finding, or what kept it from being made: a page is needed most where files are odd."""
    try:
        return make(subject)
    except Exception as error:  # any: the page must not fail by what a file holds
        text = f"It could not be judged: {type(error).__name__}: {error}"
        return Finding(key, "missing", f"{title}: not judged", text)


def _or(default: T, make: Callable[[], T]) -> T:
    try:
        return make()
    except Exception:  # as above
        return default
