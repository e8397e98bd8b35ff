"""Alarms about the distance from the reference model."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.registry import Raised, Record, alarm
from siri_train.monitor.alarms.trends import mean, window


@alarm(
    "reference-drift",
    cause="the KL divergence from the reference model is {now:.3g} nats per token in the mean of "
    "the last 10 steps: the policy has left it",
    action="raise loss.kl_coef, lower train.lr, or resume from a checkpoint before the rise",
    limits=("ref_kl",),
    window=10,
)
def _drift(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    now = mean(window(row, history, 10), "ref_kl")
    return Raised(now, now=now) if now is not None and now > limits.ref_kl else None
