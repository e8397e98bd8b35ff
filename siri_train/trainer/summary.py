"""``summary.json``: what a run ended with, for the table and the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from siri_train.checkpoint.save_load import checkpoints
from siri_train.config.run import RunConfig
from siri_train.monitor.run_logs import reported, spent


def summary(
    config: RunConfig,
    evals: Sequence[dict[str, Any]],
    ends: Sequence[dict[str, Any]],
    *,
    done: int,
    supervised: bool,
) -> list[dict[str, Any]]:
    """Start, siri-low and siri-high, or the last step of a constant cap.

    Args:
        config: of the run.
        evals: the records of ``eval.jsonl``.
        ends: the cycle ends that were reached, in order, each with ``which`` and ``step``; the
            last of a name counts.
        done: the steps that the run ended after.
        supervised: whether the run began from its supervised stage.

    Returns:
        One entry a model with its accuracy, tokens, their intervals and path, as in
        ``summary.json``. With named sets its figures are those of the first set, and ``sets``
        holds those of every set by name.
    """
    names = [("start", 0)]
    last = {end["which"]: end["step"] for end in ends}
    names += last.items()
    if not last:
        constant = config.schedule.build().constant
        names.append(("constant-cap" if constant else "last", done))
    start = "sft" if supervised else config.model.path
    saved = checkpoints(config.run_dir)
    costs = spent(config.run_dir / "metrics.jsonl", {step for _, step in names})
    return [
        {**_entry(name, row, start, config, saved), **_cost(costs.get(step))}
        for name, step in names
        for row in evals
        if row["step"] == step
    ]


def _entry(
    name: str, row: dict[str, Any], start: str, config: RunConfig, saved: dict[int, Any]
) -> dict[str, Any]:
    folder = saved.get(row["step"])
    sets = row.get("sets", {})
    entry = {
        "name": name,
        "step": row["step"],
        **_figures(reported(row)),
        "path": str(folder.relative_to(config.run_dir)) if folder else start,
    }
    if sets:
        entry["sets"] = {
            named: _figures({"budgets": row["budgets"], **one}) for named, one in sets.items()
        }
    return entry


def _cost(spent: tuple[int, float] | None) -> dict[str, Any]:
    tokens, seconds = spent or (None, None)
    return {"trained_tokens": tokens, "train_seconds": seconds}


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "accuracy": row["accuracy"][-1],
        "accuracy_interval": row["accuracy_interval"][-1],
        "tokens": row["tokens"],
        # Evaluations of earlier versions have no such interval.
        "tokens_interval": row.get("tokens_interval"),
        "low_budget": row["budgets"][0],
        "accuracy_low_budget": row["accuracy"][0],
        "accuracy_low_budget_interval": row["accuracy_interval"][0],
        "budgets": row["budgets"],
        "accuracy_at": row["accuracy"],
        "accuracy_at_interval": row["accuracy_interval"],
        "backtrack_per_1k": row["backtrack_per_1k"],
    }
