"""How checkpoints are called on the page: as in its headline table."""

from __future__ import annotations

from .data import Evaluation, Run, RunFolder, number

_ENDS = ("siri-low", "siri-high")


def measured(folder: RunFolder) -> bool:
    """Whether "siri-low" of the summary is where length turned, not where the cap was shortest.

    Args:
        folder: as it was read.
    """
    return any(row.get("name") == "siri-low-scheduled" for row in folder.summary)


def shown_name(folder: RunFolder, run: Run, one: Evaluation) -> str:
    """The name of an evaluated checkpoint; empty if it has none.

    Evaluations call the ends of the schedule siri-low and siri-high. Where the summary gives these
    names to others, they are "siri-low-scheduled" and "siri-high-scheduled".

    Args:
        folder: as it was read.
        run: whose evaluation it is.
        one: the evaluation.
    """
    if not measured(folder):
        return one.name or ""
    for row in folder.summary:
        if str(row.get("run")) == run.name and number(row.get("step")) == one.step:
            return str(row.get("name"))
    return f"{one.name}-scheduled" if one.name in _ENDS else one.name or ""


def point_name(folder: RunFolder, run: Run, one: Evaluation) -> str:
    """Run, steps and the checkpoint's name if it has one.

    Args:
        folder: as it was read.
        run: whose evaluation it is.
        one: the evaluation.
    """
    name = shown_name(folder, run, one)
    return f"{run.label} after {one.step:,} steps" + (f" ({name})" if name else "")
