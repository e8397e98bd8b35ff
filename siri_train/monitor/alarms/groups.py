"""Alarms about groups of responses whose rewards teach nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.held_out import Point, assumed, mean_accuracy, points
from siri_train.monitor.alarms.history import number
from siri_train.monitor.alarms.registry import Raised, Record, alarm
from siri_train.monitor.alarms.trends import cycle_of, finished_before, learned, mean, moves, window
from siri_train.monitor.alarms.truncation import mostly

_LONG = 40
"""Steps for which the groups of a learned task are all right before that is a finding."""
_TRUNCATED = 0.4
"""Share of truncated responses above which these, and not the questions, are why groups are wrong:
a cap that is down for a while does that, and other alarms are about truncation."""
_EVALUATIONS, _LEAST, _MOST = 12, 6, 50
"""Newest evaluations among which those are looked for at which training was learned already, how
many of these must be there, and how many of a cycle are looked at."""
_RECENT = 3
"""Evaluations whose mean is held against that of as many before: whether accuracy rises."""
_SIGMAS = 2.5
"""Standard errors beyond which held-out accuracy is surely below that of training, or rises."""


@alarm(
    "all-zero-rewards",
    cause="no response of this step was right",
    action="easier questions, a supervised stage first, or check reward.verifier on rollouts/",
    covers=("few-informative-groups",),
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
    limits=(
        "groups_without_signal",
        "learned",
        "held_out_learned",
        "accuracy_scatter",
        "truncated",
    ),
    window=20,
    covers=("all-zero-rewards", "few-informative-groups", "reward-plateau"),
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

    An evaluation is held against training just before it, and all of them together, so neither a
    lucky one nor a compressed model, which is worse at both, decides. Without enough evaluations
    nobody knows, and right answers are what a run is for.
    """
    rows = window(row, history, _LONG)
    alike = (mean(rows, "groups_all_one") or 0.0) + (mean(rows, "groups_all_zero") or 0.0)
    if alike < limits.groups_without_signal:
        return True
    some = _while_learned(row, history, limits, evaluations)
    if len(some) < _LEAST:
        return True
    sigma = assumed([point for _, point in some], limits.accuracy_scatter)
    gap = statistics.fmean(share - point.accuracy for share, point in some)
    level = mean_accuracy([point for _, point in some])
    room = gap > _SIGMAS * sigma / math.sqrt(len(some)) and level < limits.held_out_learned
    lately, before = some[-_RECENT:], some[-2 * _RECENT : -_RECENT]
    rise = mean_accuracy([p for _, p in lately]) - mean_accuracy([p for _, p in before])
    return not room or rise > _SIGMAS * sigma * math.sqrt(2 / _RECENT)


def _while_learned(
    row: Record,
    history: Sequence[Record],
    limits: AlarmsConfig,
    evaluations: Sequence[Record],
) -> list[tuple[float, Point]]:
    """The newest evaluations at which training was learned, with training's accuracy before each.

    Where the cap moves they are those of a whole cycle at least, since compressed models are worse:
    none before training has been learned for so long.
    """
    now = int(number(row, "step") or 0)
    some = points(evaluations, now)
    count = _EVALUATIONS
    if moves(row):
        cycle = cycle_of(row, history)
        begin = now - (cycle[1] - cycle[0]) if cycle else 0
        if cycle is None or (finished_before(begin, row, history) or 0.0) < limits.learned:
            return []
        count = max(count, sum(point.step > begin for point in some))
    newest = some[-count:][:: 1 + count // _MOST]
    pairs = [(finished_before(point.step, row, history), point) for point in newest]
    return [(share, point) for share, point in pairs if share and share >= limits.learned]
