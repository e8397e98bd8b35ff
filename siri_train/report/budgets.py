"""Accuracy at every token budget: what each model's responses are worth when they are cut there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from siri_train.monitor.question_records import QuestionRecord

from .data import Evaluation, Run, RunFolder, interval, number
from .questions import Records, all_records, apart
from .scale import Point
from .svg import Chart, Line, extent, render
from .table import COLOUR, accuracy_text

LEAST = 3
"""Budgets that make a curve; with fewer the headline table says it all."""
MOST_DRAWN = 16
"""Curves of the picture; the table under it looks at all methods."""
Bar = tuple[float, float, float]
Values = dict[str, Any]
_OTHERS = ("alt1", "alt2", "alt3", "cap", "siri", "alt4", "alt5", "alt6", "alt7")


@dataclass(frozen=True)
class Method:
    """One model: a named checkpoint, or the last evaluation of a run.

    Attributes:
        name: of the checkpoint, or the run's and its steps.
        points: (budget, accuracy), ascending.
        bars: (budget, low, high) where there is an interval.
        record: its results question by question, where they are known.
    """

    name: str
    points: list[Point]
    bars: list[Bar]
    record: QuestionRecord | None = None

    def at(self, budget: float) -> float | None:
        """The accuracy at a budget that it was evaluated at."""
        return dict(self.points).get(budget)

    def bounds(self, budget: float) -> tuple[float, float] | None:
        """The interval there."""
        return next(((low, high) for x, low, high in self.bars if x == budget), None)


def methods(folder: RunFolder, known: dict[str, Records] | None = None) -> list[Method]:
    """The named checkpoints, then the last evaluation of every run that has none of them there.

    The checkpoints are those of ``summary.json``; while a run goes on, the latest evaluation of
    each name.

    Args:
        folder: as it was read.
        known: its records of questions, if they were read already.
    """
    records = all_records(folder) if known is None else known
    found: list[Method] = []
    taken: set[tuple[str, int]] = set()
    for row in folder.summary:
        run, step = _run_of(row, folder.runs), number(row.get("step"))
        curve = _curve(row.get("budgets"), row.get("accuracy_at"), row.get("accuracy_at_interval"))
        record = records[run.name].get(int(step)) if run is not None and step is not None else None
        found.append(Method(str(row.get("name", "")), *curve, record))
        if run is not None and step is not None:
            taken.add((run.name, int(step)))
    if not folder.summary:
        latest = {one.name: (one, run) for run in folder.runs for one in run.evals if one.name}
        for name, (one, run) in latest.items():
            found.append(_evaluated(str(name), one, records[run.name]))
            taken.add((run.name, one.step))
    for run in folder.runs:
        if run.evals and (run.name, run.evals[-1].step) not in taken:
            one = run.evals[-1]
            label = f"{run.label}, step {one.step:,}"
            found.append(_evaluated(label, one, records[run.name]))
    return [method for method in found if len(method.points) >= LEAST]


def budget_chart(folder: RunFolder, found: list[Method] | None = None) -> Chart | None:
    """A curve a method; None where none has enough budgets.

    Args:
        folder: as it was read.
        found: what `methods` gave for it, if it was called already.
    """
    found = methods(folder) if found is None else found
    used, lines = 0, []
    for one in found[:MOST_DRAWN]:
        css, look = COLOUR.get(one.name), "dots"
        if css is None:  # each colour once with filled points, then once with hollow ones
            css = _OTHERS[used % len(_OTHERS)]
            look = "rings" if used // len(_OTHERS) % 2 else "dots"
            used += 1
        lines.append(Line(one.name, one.points, css, look, bars=one.bars))
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


def budget_table(found: list[Method]) -> list[Values]:
    """The best method at each budget, for the template.

    Args:
        found: see `methods`.

    Returns:
        A line a budget: ``budget``, ``name`` and ``accuracy`` of the most accurate method, and
        ``close``, the names of those that are not told apart from it: the paired difference over
        the same questions is within its noise; where there are no records of questions, the
        intervals overlap.
    """
    lines = []
    for budget in sorted({x for one in found for x, y in one.points if y is not None}):
        there = [(y, -k, one) for k, one in enumerate(found) if (y := one.at(budget)) is not None]
        accuracy, _, best = max(there, key=lambda item: item[:2])
        others = [one for _, _, one in there if one is not best]
        close = [one.name for one in others if not _apart(best, one, budget)]
        lines.append(
            {
                "budget": f"{budget:,.0f}",
                "name": best.name,
                "accuracy": accuracy_text(accuracy, best.bounds(budget)),
                "close": close,
            }
        )
    return lines


def every_budget(found: list[Method]) -> Values:
    """All figures of the picture, for the template.

    Args:
        found: see `methods`.

    Returns:
        ``head``, the budgets, and ``lines``, each with the ``name`` of a method and its ``cells``;
        empty where it was not evaluated at a budget.
    """
    budgets = sorted({x for one in found for x, y in one.points if y is not None})
    lines = []
    for one in found:
        shares = [(one.at(budget), one.bounds(budget)) for budget in budgets]
        cells = ["" if y is None else accuracy_text(y, bounds) for y, bounds in shares]
        lines.append({"name": one.name, "cells": cells})
    return {"head": [f"{budget:,.0f}" for budget in budgets], "lines": lines}


def _apart(best: Method, other: Method, budget: float) -> bool:
    if best.record is not None and other.record is not None:
        paired = apart(best.record, other.record, int(budget))
        if paired is not None:
            return paired
    one, two = best.bounds(budget), other.bounds(budget)
    if one is None or two is None:
        return best.at(budget) != other.at(budget)
    return two[1] < one[0]


def _evaluated(name: str, one: Evaluation, records: Records) -> Method:
    return Method(
        name, *_curve(one.budgets, one.accuracy, one.intervals), records.get(one.step)
    )  # fmt: skip


def _run_of(row: Values, runs: list[Run]) -> Run | None:
    """The run of an entry of the summary: by its name, or by the evaluation that it repeats."""
    name = row.get("run")
    if name is not None:
        names = (str(name), str(name).rsplit("/", 1)[-1])
        return next((run for one in names for run in runs if run.name == one), None)
    if len(runs) == 1:
        return runs[0]
    shares = row.get("accuracy_at")
    shares = tuple(map(number, shares)) if isinstance(shares, (list, tuple)) else ()
    for run in runs if shares else ():
        if any(one.step == row.get("step") and one.accuracy == shares for one in run.evals):
            return run
    return None


def _curve(budgets: object, shares: object, bounds: object) -> tuple[list[Point], list[Bar]]:
    """Points and bars, whatever a damaged file holds."""
    given = (budgets, shares, bounds)
    lists = [value if isinstance(value, (list, tuple)) else [] for value in given]
    points: list[Point] = []
    bars: list[Bar] = []
    for place, (budget, share) in enumerate(zip(lists[0], lists[1], strict=False)):
        x, y = number(budget), number(share)
        limits = interval(lists[2][place]) if place < len(lists[2]) else None
        if x:
            points.append((x, y))
            if y is not None and limits is not None:
                bars.append((x, *limits))
    return sorted(points, key=lambda point: point[0]), sorted(bars)
