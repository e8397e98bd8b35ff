"""The values of the charts in the page, for its script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .axes import axes
from .charts import Figure
from .data import RunFolder
from .scale import Point

Values = dict[str, Any]


def embedded(folder: RunFolder, charts: Sequence[Figure]) -> Values:
    """The values that the script draws; lines with the same steps share one list of steps.

    Args:
        folder: as it was read.
        charts: of the page, in its order.
    """
    steps: dict[tuple[float, ...], int] = {}
    drawn = []
    for figure in charts:
        chart = figure.chart
        lines = []
        for line in chart.lines:
            at = tuple(_short(x) for x, _ in line.values)
            lines.append(
                {
                    "label": line.label,
                    "css": line.css,
                    "look": line.look,
                    "run": line.run,
                    "window": line.window,
                    "x": steps.setdefault(at, len(steps)),
                    "y": _values(line.values),
                    **({"words": list(line.words)} if line.words else {}),
                    "band": [[_short(x), _rounded(a), _rounded(b)] for x, a, b in line.band],
                    "bars": [[_short(x), _rounded(a), _rounded(b)] for x, a, b in line.bars],
                }
            )
        drawn.append(
            {
                "title": chart.title,
                "x": chart.x_label,
                "unit": chart.unit,
                "floor": 0 if chart.from_floor else None,
                "ceiling": chart.ceiling,
                "lines": lines,
                "lanes": bool(chart.y_names),
                "heat": chart.heat.to_json() if chart.heat is not None else None,
            }
        )
    return {"steps": list(steps), "charts": drawn, "axes": axes(folder)}


def _values(points: Sequence[Point]) -> list[float | None]:
    return [_rounded(y) for _, y in points]


def _rounded(value: float | None) -> float | None:
    """Six digits: enough for a chart, and half the bytes."""
    return None if value is None else _short(float(f"{value:.6g}"))


def _short(value: float) -> float:
    """A whole number without its ".0"."""
    return int(value) if abs(value) < 1e15 and value == int(value) else value
