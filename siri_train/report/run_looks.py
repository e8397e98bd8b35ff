"""How the runs of a page are told apart: a colour, and from the sixth run on a dash and a marker.

Five colours and the control's grey differ by at least 23 units of CIE Lab from each other, in light
and in dark mode, also as people with protanopia, deuteranopia or tritanopia see them. More colours
would not. So further runs take the same colours with another dash of their curves and another shape
of their points.
"""

from __future__ import annotations

from .records import RunFolder

COLOURS = ("siri", "run1", "run2", "run3", "run4")
"""Classes of the style sheet."""
PATTERNS = ("", "p1", "p2", "p3", "p4", "p5")
"""Classes of dashes and shapes; the first is a whole curve with round points."""
_WIDTHS = ("", "wide-line")
_MARKERS = {
    "p1": "M-3.2 -3.2H3.2V3.2H-3.2Z",
    "p2": "M0 -4.6 4.6 0 0 4.6 -4.6 0Z",
    "p3": "M0 -4.4 4.2 3.2 -4.2 3.2Z",
    "p4": "M0 4.4 4.2 -3.2 -4.2 -3.2Z",
    "p5": "M-1.5 -4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5V-1.5H-1.5Z",
}


def colours(folder: RunFolder) -> dict[str, str]:
    """The classes of each run, by its name: no two runs have the same.

    SIRI is blue and the first control grey. Five runs differ by colour alone, thirty by colour and
    dash, sixty by the width of their curves too; then the looks begin anew.

    Args:
        folder: as it was read.
    """
    looks = [
        " ".join(filter(None, (colour, pattern, width)))
        for width in _WIDTHS
        for pattern in PATTERNS
        for colour in COLOURS
    ]
    alone = all(run.control for run in folder.runs)
    grey = next((run.name for run in folder.runs if run.control and not alone), None)
    others = [run.name for run in folder.runs if run.name != grey]
    found = {name: looks[place % len(looks)] for place, name in enumerate(others)}
    return {run.name: found.get(run.name, "control") for run in folder.runs}


def marker(css: str) -> str:
    """The outline of a run's points, around 0; empty: a circle.

    Args:
        css: the run's classes, see `colours`.
    """
    return next((path for name, path in _MARKERS.items() if name in css.split()), "")
