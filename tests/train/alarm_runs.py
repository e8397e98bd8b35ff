"""Runs to try the alarms on: of two packages with labelled failures, recorded ones, drawn ones.

`rows` are as in ``metrics.jsonl``, `evals` as in ``eval.jsonl``; a run is the pair.
"""

from __future__ import annotations

import bisect
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor import alarms
from siri_train.monitor.alarms.history import MOST_ROWS, kept
from siri_train.monitor.alarms.state import AlarmState

Row = dict[str, Any]
Run = tuple[list[Row], list[Row]]

RECORDED = Path(__file__).parent / "recorded"
LIMITS = AlarmsConfig()


def evaluation(step: int, accuracy: float, half: float, name: str | None = None) -> Row:
    """A row of eval.jsonl, with the half width of its interval."""
    bounds = [max(0.0, accuracy - half), min(1.0, accuracy + half)]
    return {
        "step": step, "name": name, "budgets": [100], "accuracy": [accuracy],
        "accuracy_interval": [bounds],
    }  # fmt: skip


def of_rldoctor(records: list[Row], config: Row) -> Run:
    """The records of ``rl_doctor.simulate`` under our keys.

    Its groups have 8 responses and say only how many of them are all alike: all right and all
    wrong are split as independent responses would be. It has no median length: the mean is one.
    """
    rows, evals = [], []
    cap, size = config["max_response_length"], config["num_generations"]
    for record in records:
        # Its reward is right answers and a tenth of a format reward.
        share = min(1.0, max(0.0, record["rewards/correctness/mean"]))
        right, wrong = share**size, (1 - share) ** size
        alike = record["frac_reward_zero_std"] / max(right + wrong, 1e-12)
        length, cut = record["completions/mean_length"], record["completions/clipped_ratio"]
        rows.append(
            {
                "step": record["step"], "cycle": 1, "phase": "constant", "cap": cap,
                "reward_mean": record["reward"], "accuracy": share,
                "accuracy_finished": min(1.0, share / max(1 - cut, 1e-9)), "truncated_frac": cut,
                "response_len_mean": length, "response_len_p50": length,
                "groups_all_one": right * alike, "groups_all_zero": wrong * alike,
                "entropy": record["entropy"], "ref_kl": record["kl"],
                "clip_frac_low": record["clip_ratio/low_mean"],
                "clip_frac_high": record["clip_ratio/high_mean"],
                "grad_norm": record["grad_norm"], "lr": record["learning_rate"], "loss": 0.0,
                "rollout_tokens_per_s": record["perf/throughput"],
                "time_rollout": 0.7 * record["step_time"],
                "time_train": 0.3 * record["step_time"], "skipped_updates": 0,
            }
        )  # fmt: skip
        if "eval/accuracy" in record:
            # Its noise has a standard deviation of 0.012; the interval says as much.
            evals.append(evaluation(record["step"] + 1, record["eval/accuracy"], 1.96 * 0.012))
    return rows, evals


def of_rlprobe(series: dict[str, np.ndarray]) -> Run:
    """The series of ``rlprobe.testing.synth`` under our keys; it has no evaluations.

    Its reward is a share like an accuracy.
    """
    names = {
        "reward_mean": "reward_mean", "accuracy": "reward_mean", "entropy": "entropy_mean",
        "truncated_frac": "truncation_rate", "response_len_mean": "completion_len_mean",
        "response_len_p50": "completion_len_mean", "ref_kl": "kl_mean", "loss": "loss",
        "clip_frac_low": "clip_fraction", "repetitive_frac": "repetition_rate",
        "grad_norm": "grad_norm", "lr": "lr",
        "time_rollout": "generation_time_s", "time_train": "optimization_time_s",
    }  # fmt: skip
    rows = []
    for step in range(len(series["reward_mean"])):
        row: Row = {ours: float(series[theirs][step]) for ours, theirs in names.items()}
        alike, bad = float(series["zero_variance_group_frac"][step]), series["nan_count"][step]
        share = min(1.0, max(0.0, row["accuracy"]))
        tokens = row["response_len_mean"] * 512
        rows.append(
            {
                **row, "step": step, "cycle": 1, "phase": "constant", "cap": 1024,
                "accuracy": share, "accuracy_finished": share,
                "groups_all_one": alike * share, "groups_all_zero": alike * (1 - share),
                "clip_frac_low": row["clip_frac_low"] / 2,
                "clip_frac_high": row["clip_frac_low"] / 2, "skipped_updates": int(bad),
                "tokens": tokens, "rollout_tokens_per_s": tokens / row["time_rollout"],
            }
        )  # fmt: skip
    return rows, []


def recorded() -> dict[str, Run]:
    """Our own recorded runs by name; those of which the name ends in ``.ill`` are not healthy."""
    found = {}
    for path in sorted(RECORDED.glob("*.json.xz")):
        run = json.loads(lzma.decompress(path.read_bytes()))
        found[path.name.removesuffix(".json.xz")] = run["metrics"], run["eval"]
    return found


def found(run: Run, stride: int = 1, limits: AlarmsConfig = LIMITS) -> dict[str, int]:
    """The alarms that are true at any step, each with the first one; at every ``stride``-th row."""
    rows, evals = run
    slim = [kept(row) for row in rows]
    steps = [row["step"] for row in evals]
    first: dict[str, int] = {}
    for at in range(stride - 1, len(rows), stride):
        seen = evals[: bisect.bisect_right(steps, rows[at]["step"])]
        for one in alarms.check(rows[at], slim[max(0, at - MOST_ROWS) : at], limits, seen):
            first.setdefault(one["alarm"], one["step"])
    for at, row in enumerate(evals):
        before = slim[: max(0, row["step"])]
        for one in alarms.check_evaluation(row, evals[:at], limits, before):
            first[one["alarm"]] = min(one["step"], first.get(one["alarm"], one["step"]))
    return first


def raised(run: Run, stride: int = 1) -> dict[str, int]:
    """The alarms that a run raises, each with the first step; at every ``stride``-th row.

    Other than `found`, it leaves out what an alarm that is on tells already.
    """
    rows, evals = run
    state, written, waiting = AlarmState(), [], list(evals)
    slim = [kept(row) for row in rows]
    for at, row in enumerate(rows):
        while waiting and waiting[0]["step"] <= row["step"]:
            one, seen = waiting.pop(0), evals[: len(evals) - len(waiting) - 1]
            true = alarms.check_evaluation(one, seen, LIMITS, slim[:at])
            written += state.update(max(0, one["step"] - 1), true, "evaluation")
        if (at + 1) % stride == 0:
            seen = evals[: len(evals) - len(waiting)]
            true = alarms.check(row, slim[max(0, at - MOST_ROWS) : at], LIMITS, seen)
            written += state.update(row["step"], true)
    first: dict[str, int] = {}
    for line in written:
        first.setdefault(line["alarm"], line["step"])
    return first


def replayed(
    run: Run, limits: AlarmsConfig = LIMITS, state: AlarmState | None = None, start: int = 0
) -> list[Row]:
    """The rows of alarms.jsonl that a run with these logs writes.

    Args:
        run: whole.
        limits: thresholds.
        state: of a run that continues.
        start: the step from which it continues; the evaluation there is done.
    """
    rows, evals = run
    state, written = state or AlarmState(), []
    seen = [row for row in evals if start and row["step"] <= start]
    waiting, slim = evals[len(seen) :], [kept(row) for row in rows[:start]]
    for row in [*rows[start:], None]:
        while waiting and (row is None or waiting[0]["step"] <= row["step"]):
            one = waiting.pop(0)
            raised = alarms.check_evaluation(one, seen, limits, slim)
            written += state.update(max(0, one["step"] - 1), raised, "evaluation")
            seen.append(one)
        if row is not None:
            written += state.update(row["step"], alarms.check(row, slim, limits, seen))
            slim.append(kept(row))
    return written
