"""The values of the charts in the page, for its script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .axes import axes
from .charts import Figure
from .data import RunFolder
from .many import MOST_FAINT, THINNED_VALUES, WHOLE_VALUES, limit, waiting
from .scale import Point, thin
from .svg import Line

Values = dict[str, Any]


def embedded(folder: RunFolder, charts: Sequence[Figure]) -> Values:
    """The values that the script draws; lines with the same steps share one list of steps.

    Args:
        folder: as it was read.
        charts: of the page, in its order.
    """
    steps: dict[tuple[float, ...], int] = {}
    most = kept_values(charts)
    drawn = []
    for figure in charts:
        chart = figure.chart
        lines = []
        for line in chart.lines:
            values = thin(line.values, most) if most and _long(line) else line.values
            at = tuple(_short(x) for x, _ in values)
            thinned = len(values) < len(line.values)
            lines.append(
                {
                    "label": line.label,
                    "css": line.css,
                    "look": line.look,
                    "run": line.run,
                    "window": line.window,
                    "x": steps.setdefault(at, len(steps)),
                    "y": _values(values),
                    **({"mean": _means(line, at)} if thinned else {}),
                    **({"waiting": True} if line.waiting else {}),
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
                "faint": len({line.run for line in chart.lines}) <= MOST_FAINT,
                "heat": chart.heat.to_json() if chart.heat is not None else None,
            }
        )
    return {
        "steps": list(steps),
        "charts": drawn,
        "axes": axes(folder),
        "waiting": sorted(waiting(folder)),
    }


def kept_values(charts: Sequence[Figure]) -> int | None:
    """Values that each long curve of the page keeps; None where all keep all.

    Args:
        charts: of the page.
    """
    lines = [line for figure in charts for line in figure.chart.lines if _long(line)]
    lengths = [len(line.values) + 3 * len(line.band) for line in lines]
    return limit(lengths, WHOLE_VALUES, THINNED_VALUES)


def _long(line: Line) -> bool:
    """Whether a line may be thinned: evaluations and the ends of alarms are all kept."""
    return line.look not in ("dots", "rings", "lane")


def _means(line: Line, at: Sequence[float]) -> list[float | None]:
    """The curve as it is drawn, which is the mean of all steps, at those that are kept."""
    known = dict(line.points)
    return [_rounded(known.get(x)) for x in at]


def _values(points: Sequence[Point]) -> list[float | None]:
    return [_rounded(y) for _, y in points]


def _rounded(value: float | None) -> float | None:
    """Six digits: enough for a chart, and half the bytes."""
    return None if value is None else _short(float(f"{value:.6g}"))


def _short(value: float) -> float:
    """A whole number without its ".0"."""
    return int(value) if abs(value) < 1e15 and value == int(value) else value
