"""All findings on a run, and the checkpoints to ship."""

from __future__ import annotations

from collections.abc import Callable

from siri_train.report.data import RunFolder

from .progress import finished, progress
from .subject import Subject, subjects
from .types import Finding, Verdict


def judge(folder: RunFolder) -> Verdict:
    """What the files of a run say about it.

    Args:
        folder: of one run, or of several: then the first whose cap moves is judged, and the others
            are what it is compared with.

    Returns:
        The verdict. Whatever is missing or damaged is said in it; nothing is raised.
    """
    subject, others = subjects(folder)
    findings = [_safely(key, title, make) for key, title, make in (
        ("state", "State of the run", lambda: progress(subject)),
    )]  # fmt: skip
    del others
    state = "finished" if finished(subject) else "unfinished"
    steps = subject.count("train", "steps")
    return Verdict(subject.label, state, subject.done, steps, tuple(findings))


def _safely(key: str, title: str, make: Callable[[], Finding]) -> Finding:
    """A finding, or what kept it from being made: a page is needed most where files are odd."""
    try:
        return make()
    except Exception as error:  # any: the page must not fail by what a file holds
        text = f"It could not be judged: {type(error).__name__}: {error}"
        return Finding(key, "missing", f"{title}: not judged", text)


__all__ = ["Subject", "judge"]
