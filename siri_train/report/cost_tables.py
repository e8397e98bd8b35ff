"""The page's two tables of costs: a line a run, and a line a run and phase."""

from __future__ import annotations

from typing import Any

from .costs import PHASES, TIMES, Cost, RunCost, costs, device
from .data import RunFolder
from .held_out import best_control
from .scale import show

Values = dict[str, Any]

_NONE = "–"
NOT_RECORDED = "not recorded"
"""The cell of evaluations whose records are of a version that did not write their cost."""


def cost_tables(folder: RunFolder, chosen: dict[str, str]) -> Values | None:
    """The costs for the template.

    Args:
        folder: as it was read.
        chosen: the runs' colour classes by name.

    Returns:
        ``runs`` and ``phases``, each with ``head`` and ``lines``; ``notes`` in words. None without
        records of steps.
    """
    found = costs(folder)
    if not found:
        return None
    paid = any(one.price is not None for one in found)
    kinds = {device(one.run) for one in found}
    unit = {"gpu": "GPU hours", "cpu": "process hours"}.get(next(iter(kinds)), "hours")
    unit = unit if len(kinds) == 1 else "hours"
    control = best_control(folder)
    money = ["money"] if paid else []
    point = ["tokens / point", "s / point", *(["money / point"] if paid else [])]
    evaluated = [one for one in found if one.evals.count]
    together = {
        "head": ["run", "part", "tokens", "seconds", unit, *money],
        "lines": [
            {"css": chosen[one.run.name], "cells": [one.run.label, part, *cells]}
            for one in evaluated for part, cells in _parts(one, paid)
        ],
    }  # fmt: skip
    runs = {
        "head": ["run", "steps", "tokens", "sampling", "updates", unit, *money, "gained",
                 *point],
        "lines": [
            {
                "css": chosen[one.run.name],
                "cells": [one.run.label, f"{one.whole.steps:,}", *_amounts(one.whole, paid),
                          _points(one.gained), *_each(one.whole, one.gained, paid)],
            }
            for one in found
        ],
    }  # fmt: skip
    phases = {
        "head": ["run", "phase", "steps", "tokens", "sampling", "updates", unit, *money,
                 "accuracy"],
        "lines": [
            {
                "css": chosen[one.run.name],
                "cells": [one.run.label, phase, f"{one.phases[phase].steps:,}",
                          *_amounts(one.phases[phase], paid), _points(one.changes.get(phase))],
            }
            for one in found for phase in PHASES if phase in one.phases
        ],
    }  # fmt: skip
    reached = [_reached(one, paid) for one in found] if control is not None else []
    return {
        "runs": runs,
        "together": together if evaluated else None,
        "phases": phases if any(len(one.phases) > 1 for one in found) else None,
        "control": control[1].label if control is not None else "",
        "goal": f"{100 * (control[1].evals[-1].best or 0):.1f} %" if control is not None else "",
        "reached": reached,
        "notes": _notes(found, paid, unit),
    }


def _amounts(cost: Cost, paid: bool) -> list[str]:
    cells = [
        _NONE if cost.unknown("tokens") else show(cost.tokens, "tokens"),
        *(_NONE if cost.unknown(key) else _time(getattr(cost, name))
          for key, name in zip(TIMES, ("rollout", "train"), strict=True)),
        _NONE if cost.unknown(*TIMES) else _hours(cost.hours),
    ]  # fmt: skip
    return [*cells, *([_NONE if cost.unknown(*TIMES) else _money(cost.money)] if paid else [])]


def _parts(one: RunCost, paid: bool) -> list[tuple[str, list[str]]]:
    """Training, evaluations and their sum; a sum with an unknown part is unknown too."""
    train, evals = one.whole, one.evals
    timed = not train.unknown(*TIMES)
    amounts: list[tuple[str, list[float | None]]] = [
        (
            "training",
            [
                None if train.unknown("tokens") else train.tokens,
                train.seconds if timed else None,
                train.hours if timed else None,
                train.money if timed else None,
            ],
        ),
        (f"{evals.count} evaluations", [evals.tokens, evals.seconds, evals.hours, evals.money]),
    ]
    sums = [
        None if None in pair else sum(value or 0.0 for value in pair)
        for pair in zip(*(values for _, values in amounts), strict=True)
    ]
    return [
        (part, _written(values, paid, NOT_RECORDED if part != "training" else _NONE))
        for part, values in [*amounts, ("together", sums)]
    ]


def _written(values: list[float | None], paid: bool, none: str) -> list[str]:
    tokens, seconds, hours, money = values
    cells = [
        none if tokens is None else show(tokens, "tokens"),
        none if seconds is None else _time(seconds),
        none if hours is None else _hours(hours),
    ]
    priceless = _NONE if hours is not None else none
    return [*cells, *([priceless if money is None else _money(money)] if paid else [])]


def _hours(hours: float) -> str:
    return f"{hours:,.3g}" if hours < 1000 else f"{hours:,.0f}"


def _each(cost: Cost, gained: float | None, paid: bool) -> list[str]:
    """Amounts for a point of accuracy; none where nothing was gained."""
    if gained is None or gained <= 0:
        return [_NONE] * (3 if paid else 2)
    points = 100 * gained
    cells = [
        _NONE if cost.unknown("tokens") else show(cost.tokens / points, "tokens"),
        _NONE if cost.unknown(*TIMES) else f"{cost.seconds / points:,.3g}",
    ]
    each = None if cost.money is None or cost.unknown(*TIMES) else cost.money / points
    return [*cells, *([_money(each)] if paid else [])]


def _reached(one: RunCost, paid: bool) -> str:
    if one.reached is None:
        return f"{one.run.label}: in none of its evaluations"
    cost, evaluation = one.reached
    spent = [] if cost.unknown("tokens") else [f"{show(cost.tokens, 'tokens')} tokens"]
    if not cost.unknown(*TIMES):
        spent.append(_time(cost.seconds))
        spent += [f"{_money(cost.money)} in money"] if paid and cost.money is not None else []
    text = ", ".join(spent[:1]) + " and " * (len(spent) > 1) + ", ".join(spent[1:])
    return f"{one.run.label}: after {evaluation.step:,} steps" + (f", {text}" if text else "")


def _notes(found: list[RunCost], paid: bool, unit: str) -> list[str]:
    notes = [
        "Tokens are response tokens sampled in training, also those thrown away. Hours are seconds "
        "of sampling and updates times the processes of the run. Evaluations are in the table of "
        "training and evaluation alone; checkpoints and the supervised stage are in no figure, as "
        "their times are not recorded."
    ]
    if unit == "hours":
        notes.append("An hour is one of a GPU; of a run without a GPU it is one of a process.")
    if not paid:
        notes.append(
            "Money is not shown: the recipe's monitor.price_per_gpu_hour is null. Set it, or write "
            "it into the run's config.yaml, and write the page anew (siri-train report RUN)."
        )
    elif unit == "process hours":
        notes.append("The price is of a process hour: the runs used no GPU.")
    if paid and any(one.price is None for one in found):
        names = ", ".join(one.run.label for one in found if one.price is None)
        notes.append(f"Without a price, so without money: {names}.")
    if not all(one.ranks for one in found):
        notes.append(
            f"Records of older versions do not say how many processes ran: one is assumed, so the "
            f"{unit} of a run on several are too few."
        )
    gaps = [f"{one.run.label} {one.whole.gaps:,}" for one in found if one.whole.gaps]
    if gaps:
        notes.append(
            f"Steps without tokens or seconds, counted as 0: {', '.join(gaps)}. A figure that no "
            f"step has is “{_NONE}”."
        )
    return notes


def _time(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:,.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def _money(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.2f}" if value >= 0.1 else f"{value:.2g}"


def _points(change: float | None) -> str:
    if change is None:
        return _NONE
    return f"{100 * change:+.1f} points".replace("-", "−", 1)
