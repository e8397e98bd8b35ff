"""The dot plot of token groups: a panel a group, a row a run and phase, a dot a correctness."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from .data import RunFolder
from .markup import fill
from .scale import rounded, show, text_width, ticks
from .svg import FONT, cut
from .word_rates import KINDS, PHASES, by_phase, group_names, unsaid_groups

Values = dict[str, Any]

MOST_ROWS = 8
"""Rows of a panel: runs times their phases."""
_ROW, _HEAD, _FOOT, _GAP = 24.0, 26.0, 24.0, 26.0


def group_values(folder: RunFolder) -> list[Values]:
    """The figures of the plot: ``group``, and ``rows`` with ``label``, ``css`` and the kinds.

    Args:
        folder: as it was read.

    Returns:
        A group each that occurs. A kind's value is per 1000 tokens of the phase's responses, None
        where no step has one.
    """
    found = []
    of_runs = [(run, by_phase(run)) for run in folder.runs]
    unsaid = unsaid_groups(folder)
    for group in group_names(folder):
        if group in unsaid:
            continue
        rows = []
        for run, rates in of_runs:
            for phase in PHASES:
                values = {kind: rates.get((group, phase, kind)) for kind in KINDS}
                if any(value is not None for value in values.values()):
                    several = len(folder.runs) > 1 and run.label != phase
                    label = f"{run.label}, {phase}" if several else phase
                    rows.append({"label": label, "run": run.label, "phase": phase} | values)
        if rows:
            found.append({"group": group, "rows": rows[:MOST_ROWS], "more": len(rows[MOST_ROWS:])})
    return found


def group_pictures(folder: RunFolder) -> list[Markup]:
    """The plot for wide and for narrow screens; empty without values.

    Args:
        folder: as it was read.
    """
    panels = group_values(folder)
    if not panels:
        return []
    return [
        _picture(panels, 1040, 3 if len(panels) > 2 else len(panels), "groups-a"),
        _picture(panels, 350, 1, "groups-b"),
    ]


def _picture(panels: list[Values], width: float, columns: int, ident: str) -> Markup:
    wide = (width - (columns - 1) * _GAP) / columns
    drawn, top, height = [], 0.0, 0.0
    for place, panel in enumerate(panels):
        column = place % columns
        if column == 0:
            top, height = top + height, 0.0
        tall = _HEAD + _ROW * len(panel["rows"]) + _FOOT
        height = max(height, tall + 14)
        drawn.append(_panel(panel, column * (wide + _GAP), top, wide))
    words = "; ".join(
        f"{panel['group']}, {row['label']}: "
        + ", ".join(f"{kind} {row[kind]:.3g}" for kind in KINDS if row[kind] is not None)
        for panel in panels
        for row in panel["rows"]
    )
    return fill(
        "group_dots.svg", ident=ident, width=width, height=top + height, panels=drawn, words=words
    )


def _panel(panel: Values, left: float, top: float, wide: float) -> Values:
    rows = panel["rows"]
    most = int(0.42 * wide / text_width("n", FONT))
    labels = [cut(row["label"], most) for row in rows]
    start = left + max(text_width(label, FONT) for label in labels) + 10
    end = left + wide - 14
    values = [row[kind] for row in rows for kind in KINDS if row[kind] is not None]
    low, high = rounded(min(0.0, *values), max(values) or 1.0, 4)

    def px(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    marks = ticks(low, high, 4)
    step = marks[1] - marks[0] if len(marks) > 1 else None
    bottom = top + _HEAD + _ROW * len(rows)
    return {
        "group": panel["group"] + (f", first {len(rows)} rows" if panel["more"] else ""),
        "left": left,
        "top": top + 15,
        "grid": [(px(mark), show(mark, "number", step)) for mark in marks],
        "above": top + _HEAD,
        "below": bottom,
        "start": start,
        "end": end,
        "rows": [
            {
                "label": label,
                "y": top + _HEAD + _ROW * (place + 0.5),
                "dots": [
                    (kind, px(row[kind]), f"{panel['group']}, {row['label']}, {kind}: "
                     f"{row[kind]:.3g} per 1,000 tokens")
                    for kind in KINDS if row[kind] is not None
                ],
            }
            for place, (label, row) in enumerate(zip(labels, rows, strict=True))
        ],
    }  # fmt: skip
