"""The record of one step in ``metrics.jsonl``."""

from __future__ import annotations

import math
import resource
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from siri_train import distributed
from siri_train.monitor.token_groups import Rates
from siri_train.rollout.batch import RolloutBatch
from siri_train.schedule import LengthSchedule
from siri_train.trainer.update import UpdateStats

METRIC_KEYS = (
    "step", "cycle", "phase", "cap", "reward_mean", "accuracy", "accuracy_finished",
    "truncated_frac", "truncated_correct_frac", "unjudged",
    "response_len_mean", "response_len_p50", "response_len_p95", "response_len_hist",
    "groups_all_zero", "groups_all_one", "entropy", "loss", "grad_norm", "lr", "clip_frac_low",
    "clip_frac_high", "ratio_max", "rollout_kl", "rollout_ratio_max", "rollout_weight_mean",
    "probe_logprob_diff", "dense_row_frac", "tail_mass_max",
    "screened_frac", "screen_error_max",
    "backtrack_per_1k", "repetitive_frac", "think_mismatch_frac",
    "token_groups", "tokens", "tokens_right", "tokens_wrong",
    "rollout_tokens_per_s", "train_tokens_per_s", "time_rollout",
    "time_train", "peak_memory_gb", "ranks", "skipped_updates", "groups", "groups_failed",
    "groups_dropped", "groups_surplus", "groups_missing", "tokens_discarded", "rollout_retries",
)  # fmt: skip
"""Every key of a record, in the order they are written. The keys that only some losses have
(``UpdateStats.extra``) follow."""


BINS = 48
"""Bins of ``response_len_hist`` at most."""


def step_metrics(
    *,
    step: int,
    schedule: LengthSchedule,
    batch: RolloutBatch,
    stats: UpdateStats,
    lr: float,
    backtrack_per_1k: float,
    time_train: float,
    token_groups: Rates | None = None,
    probe_logprob_diff: float | None = None,
    form: Mapping[str, float | None] | None = None,
) -> dict[str, Any]:
    """The record of one step; ``docs/metrics.md`` explains every key.

    Rewards, lengths and accuracy are about whole groups, those that dynamic sampling dropped
    included; the last keys count the others (see :class:`RolloutBatch`). Shares are of responses,
    those of ``groups_all_zero`` and ``groups_all_one`` of groups. ``entropy`` is the sampler's;
    where the engine does not have it, the trained tokens'. ``rollout_tokens_per_s`` includes the
    discarded tokens. A value that does not exist in this step (no finished response, no mixed
    group) is None.

    Args:
        step: from 0.
        schedule: gives cycle and phase.
        batch: the responses, graded.
        stats: of the step's updates.
        lr: learning rate.
        backtrack_per_1k: backtracking words per 1000 response tokens.
        time_train: seconds of updates, weight sync and probe.
        token_groups: see :meth:`siri_train.monitor.token_groups.TokenGroups.rates`.
        probe_logprob_diff: nats, what the sync probe found; None where it was skipped.
        form: see :func:`siri_train.trainer.response_form.response_form`; None: not known.
    """
    completions = [c for group in batch.seen for c in group.completions]
    grades = [grade for group in batch.seen for grade in group.grades]
    of_each = [len(c.token_ids) for c in completions]
    lengths = sorted(of_each)
    tokens = sum(lengths)
    scored = [grade.reward for grade in grades if not math.isnan(grade.reward)]
    rights = [grade.right for grade in grades]
    finished = [g for g, c in zip(grades, completions, strict=True) if not c.truncated]
    groups = [{grade.right for grade in group.grades} for group in batch.seen]
    sampled = [c.entropies for c in completions]
    entropies = [e for values in sampled if values is not None for e in values]
    row = {
        "step": step,
        "cycle": schedule.cycle_index(step),
        "phase": schedule.phase(step),
        "cap": batch.cap,
        "reward_mean": _mean(scored),
        "accuracy": _mean([float(right is True) for right in rights]),
        "accuracy_finished": _mean([float(grade.correct) for grade in finished]),
        "truncated_frac": _mean([float(c.truncated) for c in completions]),
        "truncated_correct_frac": _mean([float(g.correct) for g in grades if g.truncated]),
        "unjudged": rights.count(None),
        "response_len_mean": tokens / len(lengths),
        "response_len_p50": statistics.median(lengths),
        "response_len_p95": lengths[math.ceil(0.95 * len(lengths)) - 1],
        "response_len_hist": histogram(lengths, schedule.max_len),
        "groups_all_zero": _mean([float(group == {False}) for group in groups]),
        "groups_all_one": _mean([float(group == {True}) for group in groups]),
        "entropy": _mean(entropies) if entropies else stats.means.get("entropy"),
        "loss": stats.loss,
        "grad_norm": stats.grad_norm,
        "lr": lr,
        "clip_frac_low": stats.means.get("clip_frac_low"),
        "clip_frac_high": stats.means.get("clip_frac_high"),
        "ratio_max": stats.ratio_max,
        "rollout_kl": stats.rollout_kl,
        "rollout_ratio_max": stats.rollout_ratio_max,
        "rollout_weight_mean": stats.means.get("rollout_weight_mean"),
        "probe_logprob_diff": probe_logprob_diff,
        "dense_row_frac": stats.dense_row_frac,
        "tail_mass_max": stats.tail_mass_max,
        "screened_frac": stats.screened_frac,
        "screen_error_max": stats.screen_error_max,
        "backtrack_per_1k": backtrack_per_1k,
        **(form or dict.fromkeys(("repetitive_frac", "think_mismatch_frac"))),
        "token_groups": token_groups or {},
        "tokens": tokens,
        "tokens_right": _tokens_where(True, rights, of_each),
        "tokens_wrong": _tokens_where(False, rights, of_each),
        "rollout_tokens_per_s": (tokens + batch.tokens_discarded) / max(batch.seconds, 1e-9),
        "train_tokens_per_s": stats.trained_tokens / max(time_train, 1e-9),
        "time_rollout": batch.seconds,
        "time_train": time_train,
        "peak_memory_gb": peak_memory_gb(),
        "ranks": distributed.world_size(),
        "skipped_updates": stats.skipped_updates,
        **batch.counts(),
    }
    assert tuple(row) == METRIC_KEYS
    return row | stats.extra


def histogram(lengths: Sequence[int], longest: int) -> dict[str, Any]:
    """How many responses have which length, in at most :data:`BINS` equal bins from 0.

    Args:
        lengths: of the responses, in tokens.
        longest: ``schedule.max_len``, where the last bin ends; it takes all above, too.

    Returns:
        ``width``, in tokens, and ``counts``: bin i counts the lengths from i * width on and below
        (i + 1) * width. Every step of a run has the same bins.
    """
    width = math.ceil(longest / BINS)
    counts = [0] * math.ceil(longest / width)
    for length in lengths:
        counts[min(length // width, len(counts) - 1)] += 1
    return {"width": width, "counts": counts}


def peak_memory_gb() -> float:
    """Peak memory in GiB: allocated on the GPU if there is one, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _tokens_where(right: bool, rights: Sequence[bool | None], lengths: Sequence[int]) -> int:
    return sum(n for verdict, n in zip(rights, lengths, strict=True) if verdict is right)
