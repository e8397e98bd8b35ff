"""Alarms about the gradient's norm, the loss and the clip."""

from __future__ import annotations

import math
from collections.abc import Sequence

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.history import column, median, newest, number, start
from siri_train.monitor.alarms.registry import Raised, Record, alarm

_LEAST_ROWS = 160  # ten of warm-up, a hundred to compare with, fifty that are compared


@alarm(
    "non-finite-gradient",
    cause="the gradient was infinite or NaN; the update was skipped",
    action="lower train.lr or train.grad_clip; look for infinite log-probs in rollouts/",
)
def _non_finite_gradient(row: Record, history: Sequence[Record]) -> Raised | None:
    skipped = row.get("skipped_updates")
    return Raised(skipped) if skipped else None


@alarm(
    "non-finite-loss",
    cause="the loss of the step is {loss}: weights, log-probs or advantages hold values that are "
    "not finite",
    action="resume from the checkpoint before (--resume PATH) with a lower train.lr; look for "
    "infinite log-probs in rollouts/",
    covers=("non-finite-gradient",),
)
def _non_finite_loss(row: Record, history: Sequence[Record]) -> Raised | None:
    loss = row.get("loss")
    if not isinstance(loss, float) or math.isfinite(loss):
        return None
    return Raised(loss, loss=loss)


@alarm(
    "grad-norm-spike",
    cause="{times:g} times the median of the last {count} steps ({typical:.3g})",
    action="often the step before a collapse: lower train.lr or resume before this step",
    limits=("grad_norm_spike",),
)
def _grad_norm_spike(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    norms = sorted(norm for norm in column(history[-50:], "grad_norm") if norm)
    if not row.get("grad_norm") or len(norms) < 20:
        return None
    typical = norms[len(norms) // 2]
    # In a heavy-tailed series a large multiple of the median is nothing new.
    if not row["grad_norm"] > max(limits.grad_norm_spike * typical, 2 * norms[-2]):
        return None
    times = limits.grad_norm_spike
    return Raised(row["grad_norm"], times=times, count=len(norms), typical=typical)


@alarm(
    "grad-norm-creep",
    cause="the median gradient norm of the last 50 steps ({now:.3g}) is {times:.3g} times that of "
    "the run's first hundred steps, and still grows",
    action="lower train.lr; see whether entropy, clip_frac_high or rollout_kl grow with it",
    limits=("grad_norm_creep",),
    window=50,
)
def _grad_norm_creep(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    found = _growth(row, history)
    before = median(column(history[-100:-50], "grad_norm"))
    if found is None or before is None:
        return None
    times, now = min(found[:2]), found[2]
    if not times > limits.grad_norm_creep or now < before:
        return None
    return Raised(now, now=now, times=times)


@alarm(
    "grad-norm-vanishing",
    cause="the median gradient norm of the last 50 steps is {now:.3g}, {times:.2g} times that of "
    "the run's first hundred steps: the updates change nothing",
    action="read groups_all_zero and groups_all_one; check train.lr, loss and advantage, and "
    "whether the policy has collapsed (entropy)",
    limits=("grad_norm_vanishing",),
    window=50,
)
def _grad_norm_vanishing(
    row: Record, history: Sequence[Record], limits: AlarmsConfig
) -> Raised | None:
    found = _growth(row, history)
    if found is None or not max(found[:2]) < limits.grad_norm_vanishing:
        return None
    return Raised(found[2], now=found[2], times=max(found[:2]))


@alarm(
    "clip-saturation",
    cause="the clip acts on {share:.0%} of the trained tokens, in the median of the last 10 steps",
    action="lower train.lr or train.mini_batches, or set wider bounds of its clip",
    limits=("clip_frac",),
    window=10,
)
def _clip_saturation(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    rows = newest(row, history, 10)
    shares = [
        low + high
        for one in rows
        if (low := number(one, "clip_frac_low")) is not None
        and (high := number(one, "clip_frac_high")) is not None
    ]
    share = median(shares)
    if len(shares) < 10 or share is None or share <= limits.clip_frac:
        return None
    return Raised(share, share=share)


def _growth(row: Record, history: Sequence[Record]) -> tuple[float, float, float] | None:
    """The gradient norm against the run's start.

    A step with few mixed groups has a small gradient, and that alone is no fault. So there are two
    figures: of the norm as it is, and of the norm divided by the share of mixed groups.

    Returns:
        (both growths: median of the last 50 steps over that of the first hundred; the newest
        median); None where there are too few steps.
    """
    first, last = start(history), newest(row, history, 50)
    if len(history) + 1 < _LEAST_ROWS:
        return None
    pairs = [[_norms(one) for one in rows] for rows in (first, last)]
    known = [[pair for pair in part if pair is not None] for part in pairs]
    if min(map(len, known)) < 25:
        return None
    (plain, plain_now), (mixed, mixed_now) = (
        [median([pair[index] for pair in part]) or 0.0 for part in known] for index in (0, 1)
    )
    if not plain or not mixed:
        return None
    return plain_now / plain, mixed_now / mixed, plain_now


def _norms(row: Record) -> tuple[float, float] | None:
    """The gradient norm, and the same over the share of groups whose answers differ."""
    norm = number(row, "grad_norm")
    if norm is None:
        return None
    one_sided = (number(row, "groups_all_zero") or 0.0) + (number(row, "groups_all_one") or 0.0)
    return norm, norm / max(1.0 - one_sided, 0.02)
