"""Which checkpoints of a run have a name: the ends of cycles, lagged ones, the best."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from siri_train.schedule import LengthSchedule


def ends(
    schedule: LengthSchedule, done: int, lag: int, run: int | None = None
) -> dict[int, tuple[str, ...]]:
    """The checkpoints that are kept by name after ``done`` steps: names by step.

    Args:
        schedule: its cycles' ends are siri-low and siri-high.
        done: optimiser steps done.
        lag: with N > 0 also siri-low-lagged and siri-high-lagged, N steps after each end. A step
            that is an end itself, as after half a cycle, has both names, its own first.
        run: all steps of the run, whose last is the end of a phase that lasts as long as the run;
            None: it is not known.
    """
    own = {
        **dict.fromkeys(schedule.compressed_ends(done, run), "siri-low"),
        **dict.fromkeys(schedule.expanded_ends(done, run), "siri-high"),
    }
    late = {s + lag: f"{name}-lagged" for s, name in own.items() if lag and s + lag <= done}
    return {
        step: tuple(names[step] for names in (own, late) if step in names)
        for step in sorted({*own, *late})
    }


def score(row: dict[str, Any], metric: str) -> float:
    """The score of a record of ``eval.jsonl`` by ``checkpoint.best``; more is better.

    ``accuracy`` and ``pass_at_k`` are at the largest budget, ``accuracy_low_budget`` at the
    smallest.
    """
    if metric == "accuracy_low_budget":
        return row["accuracy"][0]
    return row[metric][-1]


def best(
    evaluations: Sequence[dict[str, Any]], metric: str | None, available: Collection[int]
) -> dict[str, Any] | None:
    """The evaluation with the best score; of equal ones the shorter, then the earlier.

    Args:
        evaluations: records of ``eval.jsonl``.
        metric: see :func:`score`; None: there is no best.
        available: step counts that are saved or can still be. Others do not count: a run that
            switches the metric on late cannot bring back what it has deleted.
    """
    if metric is None:
        return None
    rows = [row for row in evaluations if row["step"] in available]
    return max(rows, key=lambda r: (score(r, metric), -r["tokens"], -r["step"]), default=None)
