"""Names above a chart: of marks and of phases, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from .scale import text_width

_MARK_ROOM = 34.0  # of a mark's name, on either side


def anchors(places: Sequence[float], edge: float) -> list[str]:
    """Which side of each mark its name stands on: neighbours have theirs on different sides.

    Args:
        places: of the marks, in coordinates of the picture.
        edge: the right one of the plot.

    Returns:
        A ``text-anchor`` each.
    """
    order = sorted(places)
    found = []
    for x in places:
        at = order.index(x)
        close = at + 1 < len(order) and order[at + 1] - x < _MARK_ROOM
        behind = at > 0 and x - order[at - 1] < _MARK_ROOM
        at_edge = x >= edge - 14
        found.append(
            "end" if close or (at_edge and not behind) else "start" if behind else "middle"
        )
    return found


def phase_names(
    spans: list[tuple[str, float, float, str]], busy: list[tuple[float, float]]
) -> list[tuple[float, str]]:
    """(x, name) of the phases that have room; all or none, apart from what marks cover.

    A name on some phases and not on others would look like a difference between them.

    Args:
        spans: (class, begin, end, name) of each phase.
        busy: (begin, end) of the names of marks.
    """
    if not all(b - a > text_width(label, 11) + 8 for _, a, b, label in spans[:-1] or spans):
        return []
    names = []
    for _, a, b, label in spans:
        half = text_width(label, 11) / 2
        low, high = (a + b) / 2 - half - 4, (a + b) / 2 + half + 4
        clear = all(end < low or begin > high for begin, end in busy)
        if label and clear and b - a > 2 * half:
            names.append(((a + b) / 2, label))
    return names


def extent_of(x: float, anchor: str, label: str) -> tuple[float, float]:
    """Where a mark's name begins and ends.

    Args:
        x: of the mark.
        anchor: see `anchors`.
        label: the name.
    """
    wide = text_width(label, 11, bold=True)
    begin = {"end": x - wide, "start": x}.get(anchor, x - wide / 2)
    return begin, begin + wide
