"""Alarms about responses that are truncated at the cap."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.monitor.alarms.registry import Raised, Record, alarm


@alarm(
    "all-truncated",
    cause="no response finished within the cap of {cap} tokens; the mean reward is {reward:.3g}",
    action="raise schedule.min_len, or start from a model that answers shorter",
)
def _all_truncated(row: Record, history: Sequence[Record]) -> Raised | None:
    if row.get("truncated_frac") != 1.0:
        return None
    reward = row.get("reward_mean") or 0.0
    return Raised(row["truncated_frac"], cap=row["cap"], reward=reward)
