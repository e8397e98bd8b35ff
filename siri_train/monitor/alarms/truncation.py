"""Alarms about responses that are truncated at the cap."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.history import number
from siri_train.monitor.alarms.registry import Raised, Record, alarm
from siri_train.monitor.alarms.trends import earlier, mean, window

_SHORT = 10


@alarm(
    "mostly-truncated",
    cause="{share:.0%} of the responses did not finish within the cap of {cap} tokens; the mean "
    "reward is {reward:.3g}",
    action="raise schedule.min_len, or start from a model that answers shorter",
    limits=("truncated",),
    window=10,
    covers=("truncation-rising", "pinned-at-cap", "length-explosion", "reward-decay"),
)
def _mostly_truncated(
    row: Record, history: Sequence[Record], limits: AlarmsConfig
) -> Raised | None:
    share = mostly(row, history, limits)
    if share is None:
        return None
    return Raised(share, share=share, cap=row["cap"], reward=row.get("reward_mean") or 0.0)


@alarm(
    "truncation-rising",
    cause="{now:.0%} of the responses of the last {steps} steps were truncated, {before:.0%} at "
    "like points before: responses outgrow the cap",
    action="read rollouts/ for responses that do not end; raise schedule.max_len, or pay for short "
    "answers (docs/rewards.md)",
    limits=("truncation_rise", "truncated"),
    window=20,
    covers=("length-explosion", "reward-decay"),
)
def rising(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    """Whether more responses are truncated than at like points before; see the alarm.

    Args:
        row: the newest row.
        history: the rows before it, oldest first.
        limits: thresholds.
    """
    rows = window(row, history)
    now = mean(rows, "truncated_frac")
    if now is None or now < limits.truncation_rise or mostly(row, history, limits) is not None:
        return None
    shares = [mean(old, "truncated_frac") for old in earlier(row, history)]
    before = min((share for share in shares if share is not None), default=None)
    if before is None or now - before < limits.truncation_rise:
        return None
    return Raised(now, now=now, before=before, steps=len(rows))


def mostly(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> float | None:
    """The share of truncated responses, if nearly all are.

    Args:
        row: the newest row.
        history: the rows before it, oldest first.
        limits: ``truncated``, for a mean over steps; a single step needs all.
    """
    share = number(row, "truncated_frac")
    if share is None or share == 1.0:
        return share
    lately = mean(window(row, history, _SHORT), "truncated_frac")
    fine = lately is None or lately < limits.truncated or share < limits.truncated - 0.1
    return None if fine else lately
