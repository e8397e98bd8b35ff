"""Which checkpoints of a run have a name: the ends of cycles, lagged ones, the best."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from siri_train.schedule import LengthSchedule


def ends(schedule: LengthSchedule, done: int, lag: int) -> dict[int, str]:
    """The checkpoints that are kept by name after ``done`` steps: names by step.

    Args:
        schedule: its cycles' ends are siri-low and siri-high.
        done: optimiser steps done.
        lag: with N > 0 also siri-low-lagged and siri-high-lagged, N steps after each end.
    """
    named = dict.fromkeys(schedule.compressed_ends(done), "siri-low")
    named |= dict.fromkeys(schedule.expanded_ends(done), "siri-high")
    if lag:
        named |= {s + lag: f"{name}-lagged" for s, name in named.items() if s + lag <= done}
    return named


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
