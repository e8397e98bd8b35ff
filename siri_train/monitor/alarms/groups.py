"""Alarms about groups of responses whose rewards teach nothing."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.monitor.alarms.registry import Raised, Record, alarm


@alarm(
    "all-zero-rewards",
    cause="no response of this step was right",
    action="easier questions, a supervised stage first, or check reward.verifier on rollouts/",
)
def _none_right(row: Record, history: Sequence[Record]) -> Raised | None:
    if row.get("truncated_frac") == 1.0 or row.get("groups_all_zero") != 1.0:
        return None
    return Raised(row["groups_all_zero"])
