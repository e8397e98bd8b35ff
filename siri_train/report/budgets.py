"""Accuracy at every token budget: what each model's responses are worth when they are cut there."""

from __future__ import annotations

from markupsafe import Markup

from .data import Evaluation, Row, Run, RunFolder, number
from .svg import Chart, Line, extent, render
from .table import COLOUR

LEAST = 3
"""Budgets that make a curve; with fewer the headline table says it all."""
_OTHERS = ("alt1", "alt2", "alt3", "cap", "siri")


def budget_chart(folder: RunFolder) -> Chart | None:
    """A curve a named checkpoint, from its evaluation; None where none has enough budgets.

    The checkpoints are those of ``summary.json``; while a run goes on, the latest evaluation of
    each name.

    Args:
        folder: as it was read.
    """
    lines = []
    others = iter(_OTHERS * (len(folder.summary) + 1))
    for name, one in _named(folder):
        if len(one.budgets) < LEAST:
            continue
        points = [(float(b), a) for b, a in zip(one.budgets, one.accuracy, strict=True)]
        bars = [
            (float(budget), *bounds)
            for budget, bounds in zip(one.budgets, one.intervals, strict=True)
            if bounds is not None
        ]
        lines.append(Line(name, points, COLOUR.get(name) or next(others), "dots", bars=bars))
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


def _named(folder: RunFolder) -> list[tuple[str, Evaluation]]:
    found = []
    for row in folder.summary:
        one = _evaluation_of(row, folder.runs)
        if one is not None:
            found.append((str(row.get("name", "")), one))
    if found:
        return found
    latest = {one.name: one for run in folder.runs for one in run.evals if one.name}
    return [(str(name), one) for name, one in latest.items()]


def _evaluation_of(row: Row, runs: list[Run]) -> Evaluation | None:
    """The evaluation that a row of the summary was made from."""
    step, name = number(row.get("step")), row.get("run")
    for run in runs:
        if isinstance(name, str) and run.name != name:
            continue
        for one in run.evals:
            if one.step == step:
                return one
    return None
