"""Held-out accuracy over the steps: every evaluation, and the ends of the cycles alone."""

from __future__ import annotations

from .data import Evaluation, Run, RunFolder, number
from .many import MOST_BARS
from .scale import Point
from .svg import Chart, Line
from .table import accuracy_text

_ENDS = {"siri-low": "compressed", "siri-high": "expanded"}


def held_out_chart(folder: RunFolder, chosen: dict[str, str]) -> tuple[Chart, str]:
    """Evaluations over the steps, at the largest and the smallest budget.

    Args:
        folder: as it was read.
        chosen: the runs' colour classes by name.
    """
    several = len(folder.runs) > 1
    few = len(folder.runs) <= MOST_BARS
    lines = []
    both = False
    for order, run in enumerate(folder.runs):
        css, prefix = chosen[run.name], f"{run.label} " if several else ""
        budgets = sorted({budget for one in run.evals for budget in one.budgets})
        for budget in [budgets[-1], *budgets[:1]] if few and len(budgets) > 1 else budgets[-1:]:
            points: list[Point] = []
            bars = []
            for one in [*run.evals, *run.partial]:
                if one in run.partial:  # over other seeds: a point that nothing is joined to
                    points.append((one.step - 0.5, None))
                if budget in one.budgets:
                    place = one.budgets.index(budget)
                    points.append((float(one.step), one.accuracy[place]))
                    bounds = one.intervals[place]
                    if few and bounds and one.accuracy[place] is not None:
                        bars.append((float(one.step), *bounds))
            low = len(budgets) > 1 and budget == budgets[0]
            both = both or low
            lines.append(
                Line(
                    f"{prefix}at {budget:,}", points, css, "rings" if low else "dots", bars=bars,
                    run=order,
                )
            )  # fmt: skip
    text = (
        "Accuracy on held-out questions after so many steps"
        + (", with its interval. " if few else ". ")
        + "“At N”: with at most N response tokens."
    )
    if not few:
        text += (
            f" Of more than {MOST_BARS} runs only the largest budget is drawn; intervals and other "
            "budgets are in the table of all evaluated checkpoints."
        )
    if both:
        text += (
            " Hollow: the same responses truncated at the smallest budget; a response that has "
            "not given its answer by then is wrong."
        )
    chart = Chart(
        "Held-out accuracy", lines, "percent", "steps done", ceiling=1.0, from_floor=False
    )
    return chart, text


def ends_chart(folder: RunFolder, chosen: dict[str, str]) -> tuple[Chart, str]:
    """Accuracy at the ends of the cycles, beside the best control.

    The start, and controls before the first end, are left out: they would stretch the axis until
    98 % and 97 % look the same.

    Args:
        folder: as it was read.
        chosen: the runs' colour classes by name.
    """
    cycled = [(place, run, ends_of(run)) for place, run in enumerate(folder.runs)]
    cycled = [one for one in cycled if any(one[2].values())]
    lines: list[Line] = []
    said: list[str] = []
    for place, run, ends in cycled:
        prefix = f"{run.label} " if len(cycled) > 1 else ""
        for name, kind in _ENDS.items():
            at_ends = ends[name]
            css = chosen[run.name] if len(cycled) > 1 else name.removeprefix("siri-")
            look = "rings" if name == "siri-low" and len(cycled) > 1 else "dots"
            lines.append(
                Line(f"{prefix}{kind}", _points(at_ends), css, look, bars=_bars(at_ends), run=place)
            )
            if at_ends and len(said) < 4:
                last = at_ends[-1]
                text = accuracy_text(last.best, last.best_interval)
                said.append(f"{prefix}{kind} end (after {last.step:,} steps) {text}")
    steps = [one.step for _, _, ends in cycled for some in ends.values() for one in some]
    first = min(steps, default=0)
    found = best_control(folder)
    text = (
        "Share of held-out questions answered right at the largest budget, at the end of each "
        "compression (where the cap is shortest) and of each expansion (where it is longest), with "
        "its interval. The axis fits these values and need not begin at 0."
    )
    if found is not None and cycled:
        place, run = found
        later = [one for one in run.evals if one.step >= first]
        others = sum(one.control for one in folder.runs) - 1
        lines.append(
            Line(run.label, _points(later), "control", "line", band=_bars(later), run=place)
        )
        if later:
            said.append(f"{run.label} {accuracy_text(later[-1].best, later[-1].best_interval)}")
        text += f" Grey: {run.label}, a run under a constant cap, with its interval"
        text += f" (the best of {others + 1})." if others else "."
    if said:
        text += f" At last: {'; '.join(said)}."
    return (
        Chart(
            "Accuracy at both ends of the cycles", lines if cycled else [], "percent", "steps done",
            ceiling=1.0, from_floor=False,
        ),
        text,
    )  # fmt: skip


def ends_of(run: Run) -> dict[str, list[Evaluation]]:
    """The evaluations at compressed (siri-low) and at expanded ends (siri-high), by step.

    By their names, and by the steps of the manifest's cycles where evaluations have no names.

    Args:
        run: as it was read.
    """
    steps: dict[str, set[int]] = {name: set() for name in _ENDS}
    cycles = run.manifest.get("cycles")
    for entry in cycles if isinstance(cycles, list) else []:
        which = entry.get("which") if isinstance(entry, dict) else None
        step = number(entry.get("step")) if isinstance(entry, dict) else None
        if which in tuple(steps) and step is not None:  # a damaged file may hold anything
            steps[str(which)].add(int(step))
    by_step = {one.step: one for one in sorted(run.evals, key=lambda one: one.name in _ENDS)}
    return {
        name: [
            one for step, one in sorted(by_step.items()) if one.name == name or step in steps[name]
        ]
        for name in _ENDS
    }


def best_control(folder: RunFolder) -> tuple[int, Run] | None:
    """Place and run of the control whose last evaluation is the most accurate.

    Args:
        folder: as it was read.
    """
    found = [
        (run.evals[-1].best, -place)
        for place, run in enumerate(folder.runs)
        if run.control and run.evals and run.evals[-1].best is not None
    ]
    if not found:
        return None
    place = -max(found, key=lambda one: (one[0] or 0.0, one[1]))[1]
    return place, folder.runs[place]


def _points(found: list[Evaluation]) -> list[Point]:
    return [(float(one.step), one.best) for one in found]


def _bars(found: list[Evaluation]) -> list[tuple[float, float, float]]:
    return [
        (float(one.step), *one.best_interval)
        for one in found
        if one.best is not None and one.best_interval is not None
    ]
