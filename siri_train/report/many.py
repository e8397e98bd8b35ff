"""Bounds that keep a page of many long runs small and quick: runs that wait, curves that are thin.

Nothing is left out without a word: `said` tells the reader what the page shows of what there is.
"""

from __future__ import annotations

from collections.abc import Sequence

from .readers import number
from .records import Run, RunFolder

MOST_SHOWN = 12
"""Runs whose curves are there when the page opens; the others wait to be switched on."""
MOST_RUNS = 48
"""Runs of a page."""
MOST_BANDS = 4
"""Runs whose lengths have a band: more would cover each other."""
MOST_FAINT = 6
"""Runs whose single steps are drawn behind the mean."""
MOST_BARS = 6
"""Runs whose held-out accuracy is drawn with intervals, and at the smallest budget too."""
WHOLE_VALUES = 300_000
"""Values that a page holds with all their steps."""
THINNED_VALUES = 90_000
"""Values of a page that would hold more."""
LEAST_VALUES = 40
"""Values that a curve keeps in any case."""
PICTURE_LINES = 8
"""Curves that are drawn with as many corners as they need; more curves share these corners."""


def waiting(folder: RunFolder) -> frozenset[int]:
    """The places of the runs that are not shown when the page opens.

    Shown are the best control, then those that are the most accurate in their last evaluation; of
    runs without one those that were the most accurate in their last steps of training.

    Args:
        folder: as it was read.
    """
    if len(folder.runs) <= MOST_SHOWN:
        return frozenset()
    ranked = sorted(range(len(folder.runs)), key=lambda place: _rank(folder.runs[place], place))
    control = next((place for place in ranked if folder.runs[place].control), None)
    if control is not None:
        ranked.insert(0, ranked.pop(ranked.index(control)))
    return frozenset(ranked[MOST_SHOWN:])


def limit(lengths: Sequence[int], whole: int, thinned: int) -> int | None:
    """Values that each of several lists may keep so that all together stay within a bound.

    Short lists stay whole, and what they leave is shared by the long ones.

    Args:
        lengths: of the lists.
        whole: values that may stay as they are.
        thinned: values where there are more.

    Returns:
        None where nothing is to be thinned.
    """
    if sum(lengths) <= whole:
        return None
    room, left = thinned, sorted(lengths)
    while left and left[0] * len(left) <= room:
        room -= left.pop(0)
    return max(room // max(len(left), 1), LEAST_VALUES)


def said(folder: RunFolder, kept: int | None) -> list[str]:
    """Sentences on the runs that the page does not draw at first, and on thinned curves.

    Args:
        folder: as it was read.
        kept: values of a curve after thinning; None: all.
    """
    lines = []
    hidden = waiting(folder)
    if hidden:
        count = len(folder.runs)
        lines.append(
            f"{count - len(hidden)} of {count} runs are drawn when the page opens: the best "
            "control and the most accurate by their last evaluation. The others are here too: "
            "switch them on under “Runs” above the charts."
        )
    if kept is not None:
        lines.append(
            f"To keep the page small each curve has about {kept:,} of its steps here: of every "
            "stretch the lowest and the highest value, as logged. Means were made of all steps. "
            "Smoothing needs all steps and is not offered. For every step make a page of fewer "
            "runs: siri-train compare RUN RUN --page FILE, or siri-train report RUN."
        )
    return lines


def _rank(run: Run, place: int) -> tuple[bool, float, int]:
    last = next((one.best for one in reversed(run.evals) if one.best is not None), None)
    if last is not None:
        return False, -last, place
    end = [value for row in run.metrics[-20:] if (value := number(row.get("accuracy"))) is not None]
    return True, -sum(end) / len(end) if end else 1.0, place
