"""Alarms about what the responses say: repetition, wait words, thoughts."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.history import column, median, newest, number
from siri_train.monitor.alarms.registry import Raised, Record, alarm

_FEW_WORDS = 0.5  # per 1000 tokens: fewer at the start are none that could be lost
_LONGEST_CYCLE = 2000  # steps that are looked back for a whole expansion
_LEAST_EXPANSION = 20  # steps
_BETTER = 0.05  # accuracy: one that has grown by this has not lost what it needs


@alarm(
    "repetition",
    cause="{share:.0%} of the responses end in a loop of the same tokens, in the median of the "
    "last 5 steps ({before:.0%} at the start)",
    action="read rollouts/; raise rollout.temperature or lower train.lr, or resume before it began",
    limits=("repetitive", "repetitive_growth"),
    window=5,
)
def _repetition(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    shares = column(newest(row, history, 5), "repetitive_frac")
    share, before = median(shares), median(column(history[:20], "repetitive_frac"))
    if len(shares) < 5 or len(history) < 20 or share is None or before is None:
        return None
    grown = share > limits.repetitive_growth and share > 3 * before
    if not grown and share <= limits.repetitive:
        return None
    return Raised(share, share=share, before=before)


@alarm(
    "wait-words-gone",
    cause="wait words fell from {before:.2g} per 1000 tokens at the start to {now:.2g} in a whole "
    "expansion, and accuracy has not grown: the model has stopped to check itself",
    action="take an earlier checkpoint; raise schedule.min_len or lengthen schedule.cycle",
    limits=("wait_words",),
    window=50,
)
def _wait_words_gone(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    first = history[:20]
    before = median(column(first, "backtrack_per_1k"))
    if len(first) < 20 or before is None or before < _FEW_WORDS:
        return None
    expansion = _last_expansion(row, history)
    late = expansion[len(expansion) // 2 :]  # the length lags the cap, and so do the words
    now = median(column(late, "backtrack_per_1k"))
    if len(expansion) < _LEAST_EXPANSION or now is None or now > limits.wait_words * before:
        return None
    held, had = (median(column(rows, "accuracy")) for rows in (late, first))
    if held is not None and had is not None and held > had + _BETTER:
        return None
    return Raised(now, before=before, now=now)


@alarm(
    "wrong-think-setting",
    cause="{share:.0%} of the finished responses do not have the form that reward.think asks for, "
    "in each of the last 5 steps",
    action="required is for a model that closes its thoughts with </think>, none for one that does "
    "not mark them; optional takes both",
    limits=("think_mismatch",),
    window=5,
)
def _wrong_think_setting(
    row: Record, history: Sequence[Record], limits: AlarmsConfig
) -> Raised | None:
    rows = [one for one in newest(row, history, 5) if (number(one, "truncated_frac") or 0) <= 0.9]
    shares = column(rows, "think_mismatch_frac")
    if len(shares) < 5 or min(shares) <= limits.think_mismatch:
        return None
    return Raised(min(shares), share=min(shares))


def _last_expansion(row: Record, history: Sequence[Record]) -> Sequence[Record]:
    """The rows of the newest expansion that is over; of a constant cap the last 200."""
    if row.get("phase") == "constant":
        return history[-200:] if len(history) > 220 else []
    at = len(history)
    least = max(0, at - _LONGEST_CYCLE)
    if row.get("phase") == "expansion":  # one that is not over
        while at > least and history[at - 1].get("phase") == "expansion":
            at -= 1
    while at > least and history[at - 1].get("phase") != "expansion":
        at -= 1
    end = at
    while at > least and history[at - 1].get("phase") == "expansion":
        at -= 1
    return history[at:end]
