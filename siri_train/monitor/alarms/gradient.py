"""Alarms about the gradient's norm and the loss."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.history import column
from siri_train.monitor.alarms.registry import Raised, Record, alarm


@alarm(
    "non-finite-gradient",
    cause="the gradient was infinite or NaN; the update was skipped",
    action="lower train.lr or train.grad_clip; look for infinite log-probs in rollouts/",
)
def _non_finite_gradient(row: Record, history: Sequence[Record]) -> Raised | None:
    skipped = row.get("skipped_updates")
    return Raised(skipped) if skipped else None


@alarm(
    "grad-norm-spike",
    cause="{times:g} times the median of the last {count} steps ({typical:.3g})",
    action="often the step before a collapse: lower train.lr or resume before this step",
    limits=("grad_norm_spike",),
)
def _grad_norm_spike(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    norms = [norm for norm in column(history[-50:], "grad_norm") if norm]
    if not row.get("grad_norm") or len(norms) < 20:
        return None
    typical = sorted(norms)[len(norms) // 2]
    if not row["grad_norm"] > limits.grad_norm_spike * typical:
        return None
    times = limits.grad_norm_spike
    return Raised(row["grad_norm"], times=times, count=len(norms), typical=typical)
