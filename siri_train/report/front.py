"""The Pareto front of all evaluations: its points by name, and how much each run's points cover."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from siri_train.statistics.pareto import front, hypervolume, hypervolume_interval

from .checkpoint_names import point_name
from .data import Evaluation, Run, RunFolder, number
from .questions import Records, all_records
from .table import COLOUR, accuracy_text

Values = dict[str, Any]

DRAWS = 500
"""Draws of questions, for the intervals of hypervolumes."""
_MOST_CHECKPOINTS = 100


class Placed(NamedTuple):
    """An evaluation that has a place on the plane.

    Args:
        run: its run's place in the folder.
        one: the evaluation.
        tokens: mean response tokens at the largest budget.
        accuracy: share of right answers there.
    """

    run: int
    one: Evaluation
    tokens: float
    accuracy: float


def placed(folder: RunFolder) -> list[Placed]:
    """All evaluations of all runs that say tokens and accuracy; of named sets the first.

    Args:
        folder: as it was read.
    """
    return [
        Placed(place, one, one.tokens, one.best)
        for place, run in enumerate(folder.runs)
        for one in run.evals
        if one.tokens is not None and one.best is not None
    ]


def on_front(points: list[Placed]) -> list[Placed]:
    """Those that no other dominates, by tokens.

    Args:
        points: see `placed`.
    """
    best = front([(one.tokens, one.accuracy) for one in points])
    return sorted((points[k] for k in best), key=lambda one: (one.tokens, one.accuracy))


def nadir(points: list[Placed]) -> tuple[float, float]:
    """The reference of the hypervolume: the most tokens and the least accuracy of any point.

    Args:
        points: at least one.
    """
    return max(one.tokens for one in points), min(one.accuracy for one in points)


def front_table(
    folder: RunFolder,
    chosen: dict[str, str],
    known: dict[str, Records] | None = None,
    runs: Collection[int] | None = None,
) -> Values | None:
    """The two tables beside the plane.

    Args:
        folder: as it was read.
        chosen: the runs' colour classes by name.
        known: its records of questions, if they were read already.
        runs: places of the runs that compare, see `siri_train.report.eval_sets`; None: all.

    Returns:
        ``points`` of the front by tokens, ``volumes`` of the runs, the largest first, and the
        ``reference`` in words; None without a point.
    """
    points = [one for one in placed(folder) if runs is None or one.run in runs]
    if not points:
        return None
    reference = nadir(points)
    records = all_records(folder) if known is None else known
    volumes = []
    for place, run in enumerate(folder.runs):
        own = [(one.tokens, one.accuracy) for one in points if one.run == place]
        if own:
            volume = hypervolume(own, reference)
            bounds = _interval(run, records[run.name], reference)
            text = f"{volume:.2f}" + (f" ({bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else "")
            volumes.append(
                {"label": run.label, "css": chosen[run.name], "text": text, "value": volume}
            )
    shown = [
        (
            (one.tokens, one.accuracy),
            {
                "css": chosen[folder.runs[one.run].name],
                "label": point_name(folder, folder.runs[one.run], one.one),
                "tokens": f"{one.tokens:,.1f}",
                "accuracy": accuracy_text(one.accuracy, one.one.best_interval),
            },
        )
        for one in {(one.run, one.one.step): one for one in on_front(points)}.values()
    ]
    # which questions these answered is not known: they go with runs that are all of one set
    alone = _of_summary_alone(folder) if runs is None else []
    shown += alone
    best = sorted((shown[k] for k in front([place for place, _ in shown])), key=lambda one: one[0])
    return {
        "points": [values for _, values in best],
        "of": len({(one.run, one.one.step) for one in points}) + len(alone),
        "volumes": sorted(volumes, key=lambda one: -one["value"]),
        "reference": f"{reference[0]:,.1f} tokens, {100 * reference[1]:.1f} %",
    }


def _of_summary_alone(folder: RunFolder) -> list[tuple[tuple[float, float], Values]]:
    """Checkpoints of the summary whose run is no run of the folder, as controls that lie deeper."""
    names = {run.name for run in folder.runs}
    found = []
    for row in folder.summary:
        tokens, accuracy = number(row.get("tokens")), number(row.get("accuracy"))
        run = row.get("run")
        if tokens is None or accuracy is None or run is None or str(run) in names:
            continue
        values = {
            "css": COLOUR.get(str(row.get("name")), "other"),
            "label": str(row.get("name", "")),
            "tokens": f"{tokens:,.1f}",
            "accuracy": accuracy_text(accuracy, row.get("accuracy_interval")),
        }
        found.append(((tokens, accuracy), values))
    return found


def _interval(
    run: Run, records: Records, reference: tuple[float, float]
) -> tuple[float, float] | None:
    """The hypervolume's interval over questions, where all evaluations recorded theirs."""
    wanted = {one.step: one for one in run.evals if one.tokens is not None and one.best is not None}
    own = [records.get(step) for step in wanted]
    if len(own) > _MOST_CHECKPOINTS or len({one.fingerprint if one else "" for one in own}) != 1:
        return None
    there = [one for one in own if one is not None]
    if not there:
        return None
    low, high = hypervolume_interval(
        [one.tokens for one in there], [one.shares() for one in there], reference, draws=DRAWS
    )
    return low, high
