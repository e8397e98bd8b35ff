"""The page's table of all evaluated checkpoints, with those marked that another one beats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from siri_train.statistics.pareto import front

from .checkpoint_names import shown_name
from .data import Evaluation, Run, RunFolder
from .eval_sets import EvalSet
from .samples import evenly
from .table import accuracy_text

Values = dict[str, Any]

MOST_LINES = 600
"""Lines of the table; with more it leaves out smaller budgets, then checkpoints without a name."""


def evaluations(folder: RunFolder, asked: Sequence[EvalSet] | None = None) -> Values | None:
    """The table for the page's template: a line for each evaluation, set and budget.

    At the largest budget a checkpoint is on the Pareto front of its set, or dominated: another
    one, of any run that was asked the same, has at most as many tokens and at least the same
    accuracy, and is better in one of the two.

    Args:
        folder: as it was read.
        asked: its runs by what they were asked; None: all the same.

    Returns:
        ``head``, (text, class) of each column, and ``lines``, each with its ``cells`` and whether
        it is ``dominated``, and ``more``, the number of lines that were left out. None without
        evaluations.
    """
    firsts = [(run, first) for run in folder.runs for first in run.evals]
    found = [(run, one) for run, first in firsts for one in (first, *first.others)]
    if not found:
        return None
    named = any(one.set is not None for _, one in found)
    on_front: dict[int, bool] = {}
    for places in [one.runs for one in asked] if asked else [range(len(folder.runs))]:
        own = {id(folder.runs[place]) for place in places}
        on_front |= _on_front([one for run, one in found if id(run) in own])
    lines = []
    total = sum(len(one.budgets) for _, one in found)
    largest_only = total > MOST_LINES
    if largest_only:
        found = _fewer(found, on_front)
    for run, one in found:
        for place, budget in enumerate(one.budgets):
            largest = place == len(one.budgets) - 1
            if largest_only and not largest:
                continue
            state = on_front.get(id(one)) if largest else None
            cells = [run.label, shown_name(folder, run, one)]
            cells += [one.set or ""] if named else []
            cells += [f"{one.step:,}", f"{budget:,}", *_numbers(one, place)]
            cells.append("" if state is None else "on it" if state else "dominated")
            lines.append({"cells": cells, "dominated": state is False})
    head = [("run", ""), ("name", ""), *([("set", "")] if named else [])]
    names = ("steps", "budget", "accuracy", "mean tokens", "truncated", "backtracks / 1k")
    head += [(name, "n") for name in names]
    return {"head": [*head, ("front", "")], "lines": lines, "more": total - len(lines)}


def _fewer(
    found: list[tuple[Run, Evaluation]], on_front: dict[int, bool]
) -> list[tuple[Run, Evaluation]]:
    """Those with a name or on a front, the last of each run, and others evenly apart."""
    last = {id(run): id(one) for run, one in found}
    kept = {
        id(one) for run, one in found
        if one.name or on_front.get(id(one)) or last[id(run)] == id(one)
    }  # fmt: skip
    others = [one for _, one in found if id(one) not in kept]
    kept |= {id(one) for one in evenly(others, max(MOST_LINES - len(kept), 2))}
    return [(run, one) for run, one in found if id(one) in kept]


def _numbers(one: Evaluation, place: int) -> list[str]:
    tokens = _tokens(one, place)
    truncated = one.truncated[place] if place < len(one.truncated) else None
    return [
        accuracy_text(one.accuracy[place], one.intervals[place]),
        "-" if tokens is None else f"{tokens:,.1f}",
        "-" if truncated is None else f"{100 * truncated:.1f} %",
        "-" if one.backtrack is None else f"{one.backtrack:.2f}",
    ]


def _tokens(one: Evaluation, place: int) -> float | None:
    at = one.tokens_at[place] if place < len(one.tokens_at) else None
    return one.tokens if at is None and place == len(one.budgets) - 1 else at


def _on_front(found: list[Evaluation]) -> dict[int, bool]:
    """Whether an evaluation is on the front of its set, by identity; those that can be placed."""
    kept: dict[int, bool] = {}
    for name in dict.fromkeys(one.set for one in found):
        placed = [
            (one, one.tokens, one.best)
            for one in found
            if one.set == name and one.tokens is not None and one.best is not None
        ]
        best = set(front([(tokens, accuracy) for _, tokens, accuracy in placed]))
        kept |= {id(one): i in best for i, (one, _, _) in enumerate(placed)}
    return kept
