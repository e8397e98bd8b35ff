"""Accuracy at every token budget: what each model's responses are worth when they are cut there."""

from __future__ import annotations

from markupsafe import Markup

from .data import RunFolder, interval, number
from .scale import Point
from .svg import Chart, Line, extent, render
from .table import COLOUR

LEAST = 3
"""Budgets that make a curve; with fewer the headline table says it all."""
Bar = tuple[float, float, float]
_OTHERS = ("alt1", "alt2", "alt3", "cap", "siri")


def budget_chart(folder: RunFolder) -> Chart | None:
    """A curve a named checkpoint; None where none has enough budgets.

    The checkpoints are those of ``summary.json``; while a run goes on, the latest evaluation of
    each name.

    Args:
        folder: as it was read.
    """
    lines = []
    others = iter(_OTHERS * (len(folder.summary) + 1))
    for name, points, bars in _named(folder):
        if len(points) >= LEAST:
            css = COLOUR.get(name) or next(others)
            lines.append(Line(name, points, css, "dots", bars=bars))
    chart = Chart(
        "Accuracy at every budget", lines, "percent", "longest response, tokens", ceiling=1.0
    )
    return chart if extent(chart) is not None else None


def budget_pictures(chart: Chart) -> list[Markup]:
    """The chart for wide and for narrow screens.

    Args:
        chart: see `budget_chart`.
    """
    return [
        render(chart, 720, 360, "budgets-a"),
        render(chart, 360, 300, "budgets-b", end_labels=False),
    ]


def _named(folder: RunFolder) -> list[tuple[str, list[Point], list[Bar]]]:
    found = [
        (str(row.get("name", "")), *_curve(row.get("budgets"), row.get("accuracy_at"),
                                           row.get("accuracy_at_interval")))
        for row in folder.summary
    ]  # fmt: skip
    if found:
        return found
    latest = {one.name: one for run in folder.runs for one in run.evals if one.name}
    return [
        (str(name), *_curve(one.budgets, one.accuracy, one.intervals))
        for name, one in latest.items()
    ]


def _curve(budgets: object, shares: object, bounds: object) -> tuple[list[Point], list[Bar]]:
    """Points and bars, whatever a damaged file holds."""
    lists = [value if isinstance(value, (list, tuple)) else [] for value in (budgets, shares)]
    points: list[Point] = [
        (x, number(y)) for budget, y in zip(*lists, strict=False) if (x := number(budget))
    ]
    bars = []
    if isinstance(bounds, (list, tuple)):
        for (x, y), limits in zip(points, map(interval, bounds), strict=False):
            if y is not None and limits is not None:
                bars.append((x, *limits))
    order = sorted(points, key=lambda point: point[0])
    return order, sorted(bars)
