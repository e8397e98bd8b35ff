"""All findings on a run, and the checkpoints to ship."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from siri_train.report.data import RunFolder

from .accuracy import Comparison, accuracy, compared
from .entropy import entropy
from .health import groups, mismatch, truncation
from .length import length
from .progress import finished, progress
from .raised import alarms
from .ship import ship
from .subject import subjects
from .turns import turns
from .types import Finding, Ship, State, Verdict

T = TypeVar("T")


def judge(folder: RunFolder) -> Verdict:
    """Judge a run by its files.

    Args:
        folder: of one run, or of several: then the first whose cap moves is judged, and the others
            are what it is compared with.

    Returns:
        The verdict. Whatever is missing or damaged is said in it; nothing is raised.
    """
    subject, others = subjects(folder)
    found = _or(list[Comparison](), lambda: compared(subject, others))
    made: list[tuple[str, str, Callable[[], Finding]]] = [
        ("state", "State of the run", lambda: progress(subject)),
        ("length", "Length and cap", lambda: length(subject)),
        ("accuracy", "Accuracy", lambda: accuracy(subject, found, others)),
        ("entropy", "Entropy", lambda: entropy(subject, found)),
        ("turns", "Turns of the length", lambda: turns(subject)),
        ("truncation", "Truncation", lambda: truncation(subject)),
        ("groups", "Groups that teach", lambda: groups(subject)),
        ("mismatch", "Sampler and trainer", lambda: mismatch(subject)),
        ("alarms", "Alarms", lambda: alarms(subject)),
    ]
    findings = tuple(_safely(*each) for each in made)
    nothing: tuple[tuple[Ship, ...], str] = (
        (),
        "No checkpoint to recommend: the evaluations could not be read.",
    )
    shipped, advice = _or(nothing, lambda: ship(subject, others))
    state: State = "finished" if finished(subject) else "unfinished"
    steps = subject.count("train", "steps")
    return Verdict(
        subject.described, state, subject.done, steps, findings, shipped, advice,
        tuple(other.described for other in others),
    )  # fmt: skip


def _safely(key: str, title: str, make: Callable[[], Finding]) -> Finding:
    """A finding, or what kept it from being made: a page is needed most where files are odd."""
    try:
        return make()
    except Exception as error:  # any: the page must not fail by what a file holds
        text = f"It could not be judged: {type(error).__name__}: {error}"
        return Finding(key, "missing", f"{title}: not judged", text)


def _or(default: T, make: Callable[[], T]) -> T:
    try:
        return make()
    except Exception:  # as above
        return default
