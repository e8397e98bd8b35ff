"""Alarms about groups of responses whose rewards teach nothing."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.held_out import mean_accuracy, points
from siri_train.monitor.alarms.history import number
from siri_train.monitor.alarms.registry import Raised, Record, alarm
from siri_train.monitor.alarms.trends import learned, mean, window
from siri_train.monitor.alarms.truncation import mostly

_LONG = 40
"""Steps for which the groups of a learned task are all right before that is a finding."""
_TRUNCATED = 0.4
"""Share of truncated responses above which these, and not the questions, are why groups are wrong:
a cap that is down for a while does that, and other alarms are about truncation."""
_EVALUATIONS = 6
"""Evaluations that say whether held-out questions are learned or being learned."""


@alarm(
    "all-zero-rewards",
    cause="no response of this step was right",
    action="easier questions, a supervised stage first, or check reward.verifier on rollouts/",
)
def _none_right(row: Record, history: Sequence[Record]) -> Raised | None:
    if row.get("truncated_frac") == 1.0 or row.get("groups_all_zero") != 1.0:
        return None
    return Raised(row["groups_all_zero"])


@alarm(
    "groups-without-signal",
    cause="{share:.0%} of the groups of the last {steps} steps were all right ({right:.0%}) or all "
    "wrong ({wrong:.0%}): their advantages are 0{why}; {other} questions would teach more",
    action="take other questions, raise rollout.group_size, or leave such groups out with "
    "rollout.oversample (docs/dynamic-sampling.md)",
    limits=("groups_without_signal", "held_out_learned", "accuracy_scatter", "truncated"),
    clear_after=20,
)
def without_signal(
    row: Record,
    history: Sequence[Record],
    limits: AlarmsConfig,
    evaluations: Sequence[Record] = (),
) -> Raised | None:
    """Whether most groups teach nothing; see the alarm.

    Args:
        row: the newest row.
        history: the rows before it, oldest first.
        limits: thresholds.
        evaluations: the evaluations so far, oldest first.
    """
    rows = window(row, history)
    right, wrong = mean(rows, "groups_all_one"), mean(rows, "groups_all_zero")
    if right is None or wrong is None or right + wrong < limits.groups_without_signal:
        return None
    if number(row, "groups_all_zero") == 1.0 or mostly(row, history, limits) is not None:
        return None
    halves = (rows[: len(rows) // 2], rows[len(rows) // 2 :])
    if max(mean(half, "truncated_frac") or 0.0 for half in halves) > _TRUNCATED:
        return None
    easy = right > wrong
    why = ""
    if easy and learned(row, history, limits.learned):
        # The cap truncates long answers of a learned task: these are wrong, not the questions.
        by_cap = min(wrong, mean(rows, "truncated_frac") or 0.0)
        if right + wrong - by_cap < limits.groups_without_signal:
            return None
        if _as_good_as_learned(row, history, limits, evaluations):
            return None
        why = ", and held-out questions still have room"
    return Raised(
        right + wrong,
        share=right + wrong,
        steps=len(rows),
        right=right,
        wrong=wrong,
        why=why,
        other="harder" if easy else "easier",
    )


def _as_good_as_learned(
    row: Record,
    history: Sequence[Record],
    limits: AlarmsConfig,
    evaluations: Sequence[Record],
) -> bool:
    """Whether held-out questions are answered too, or will be: then there is nothing to complain.

    Without evaluations nobody knows, and right answers are what a run is for.
    """
    some = points(evaluations, number(row, "step"))
    rows = window(row, history, _LONG)
    if len(some) < _EVALUATIONS or not rows:
        return True
    alike = (mean(rows, "groups_all_one") or 0.0) + (mean(rows, "groups_all_zero") or 0.0)
    if alike < limits.groups_without_signal:
        return True
    lately, before = some[-_EVALUATIONS // 2 :], some[-_EVALUATIONS : -_EVALUATIONS // 2]
    # The third best: two lucky ones say nothing, and compressed models are a bit worse.
    good = sorted(point.accuracy for point in some[-_EVALUATIONS:])[-3]
    rising = mean_accuracy(lately) > mean_accuracy(before) + limits.accuracy_scatter
    return good >= limits.held_out_learned or rising
