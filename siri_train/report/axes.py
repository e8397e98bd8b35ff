"""The axes over training: steps, response tokens sampled, and seconds of sampling and training.

A place on the axis of steps stands before that step: 0 is the start, and an evaluation after 20
steps stands where step 20 begins. So the other axes count what was spent before a step.
"""

from __future__ import annotations

from typing import Any

from .data import Run, RunFolder, number
from .many import limit
from .markup import clean
from .samples import evenly

Values = dict[str, Any]

WHOLE_PLACES = 20_000
"""Steps of all runs whose tokens and seconds the page holds one by one."""
THINNED_PLACES = 10_000
"""The steps that it holds where there are more."""


def spent(run: Run) -> Values:
    """How far a run was before each of its steps, and at its end.

    Args:
        run: with its metrics.

    Returns:
        ``steps``, ``tokens`` and ``seconds``, lists of the same length. ``tokens`` counts all
        response tokens that were sampled, those thrown away too; ``seconds`` those of sampling and
        training. A step that has no figure counts as the run's mean; None where no step has one.
    """
    steps = [int(row["step"]) for row in run.metrics]
    tokens = [_sum(row, "tokens", "tokens_discarded") for row in run.metrics]
    seconds = [_sum(row, "time_rollout", "time_train") for row in run.metrics]
    return {
        "steps": [*steps, steps[-1] + 1] if steps else [],
        "tokens": _running(tokens),
        "seconds": _running(seconds),
    }


def axes(folder: RunFolder) -> Values:
    """The axes of the page, for its script.

    Args:
        folder: as it was read.

    Returns:
        ``runs``: see `spent`, in their order, each with its ``label``, and ``seeds`` and ``counts``
        of a mean that is not over all its seeds everywhere; ``phases``: the place of
        the run whose phases and
        named checkpoints the charts show; ``kinds``: the axes that at least one run has.
    """
    runs = [{"label": str(clean(run.label)), **spent(run), **_seeds(run)} for run in folder.runs]
    most = limit([len(one["steps"]) for one in runs], WHOLE_PLACES, THINNED_PLACES)
    for one in runs if most else ():  # between two places that are kept a run goes on evenly
        for key in ("steps", "tokens", "seconds"):
            one[key] = one[key] and evenly(one[key], most or 2)
    kinds = [key for key in ("tokens", "seconds") if any(one[key] for one in runs)]
    shaded = (
        place
        for place, run in enumerate(folder.runs)
        if any(row.get("phase") in ("compression", "expansion") for row in run.metrics)
    )
    return {"runs": runs, "phases": next(shaded, 0), "kinds": ["step", *kinds]}


def _seeds(run: Run) -> Values:
    """For a mean that is not of all seeds everywhere: over how many, from each of some steps on."""
    counts = run.counts
    uneven = any(count != run.seeds for _, count in counts)
    return {"seeds": run.seeds, "counts": counts} if uneven else {}


def _sum(row: dict[str, Any], key: str, more: str) -> float | None:
    """Both figures together; None without the first, or if it is below 0."""
    first, second = number(row.get(key)), number(row.get(more))
    if first is None or first < 0:
        return None
    return first + max(second or 0.0, 0.0)


def _running(amounts: list[float | None]) -> list[float] | None:
    there = [amount for amount in amounts if amount is not None]
    if not there or sum(there) <= 0:
        return None
    usual = sum(there) / len(there)
    total, found = 0.0, [0.0]
    for amount in amounts:
        total += usual if amount is None else amount
        found.append(float(f"{total:.9g}"))
    return [int(one) if one == int(one) else one for one in found]
