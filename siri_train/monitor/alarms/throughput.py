"""Alarms about the speed of sampling and updates."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.history import column, median, newest, number
from siri_train.monitor.alarms.registry import Raised, Record, alarm

_LIKE = 1.25  # a step is compared with those whose cap and tokens are within this factor
_MOST_LOOKED_AT, _COMPARED = 300, 100
_SECONDS = 600.0
"""Seconds for which speed stays low: another program of a few minutes is no decay."""


@alarm(
    "throughput-decay",
    cause="{what} runs at {now:.3g} tokens per second in the median of the last 30 steps; the "
    "run's first {count} steps of a like cap and number of tokens ran at {before:.3g}",
    action="look for another program on the machine, a hot or slowed GPU, a full key-value cache "
    "(rollout.vllm), a growing process (peak_memory_gb)",
    limits=("throughput",),
    window=30,
)
def _throughput_decay(
    row: Record, history: Sequence[Record], limits: AlarmsConfig
) -> Raised | None:
    if len(history) < 80:
        return None
    last = newest(row, history, 30)
    # The first steps compile, and fill caches.
    earlier = history[5 : -30 : 1 + len(history) // _MOST_LOOKED_AT]
    like = _like(earlier, last)[:_COMPARED]
    for what, key in (
        ("sampling", "rollout_tokens_per_s"),
        ("training", "train_tokens_per_s"),
    ):
        first, now = column(like, key), median(column(last, key))
        before = median(first)
        if len(first) < 20 or now is None or before is None:
            continue
        if now < limits.throughput * before and _lasts(row, history, key, now, before, limits):
            return Raised(now, what=what, now=now, before=before, count=len(first))
    return None


@alarm(
    "many-recomputed-tokens",
    cause="the logit gradient of {share:.0%} of the tokens was recomputed over the whole "
    "vocabulary, in the median of the last 20 steps: the kernel is slower than it could be",
    action="raise train.tail, or see why the policy's entropy is high",
    limits=("dense_rows",),
    window=20,
)
def _many_recomputed_tokens(
    row: Record, history: Sequence[Record], limits: AlarmsConfig
) -> Raised | None:
    shares = column(newest(row, history, 20), "dense_row_frac")
    share = median(shares)
    if len(shares) < 20 or share is None or share <= limits.dense_rows:
        return None
    # train.tail=0 and small vocabularies recompute all tokens, always and on purpose.
    left_out = column([*history[:20], *newest(row, history, 50)], "tail_mass_max")
    return Raised(share, share=share) if any(left_out) else None


def _lasts(
    row: Record,
    history: Sequence[Record],
    key: str,
    now: float,
    before: float,
    limits: AlarmsConfig,
) -> bool:
    """Whether it has been as slow for `_SECONDS`; steps that do not tell their time count whole."""
    slow: list[float] = []
    seconds = 0.0
    for one in [row, *reversed(history)]:
        times = [number(one, name) for name in ("time_rollout", "time_train")]
        if None in times:
            return True
        seconds += sum(time or 0.0 for time in times)
        slow.append(number(one, key) or now)
        if seconds >= _SECONDS:
            late = median(slow)
            return late is not None and late < limits.throughput * before
    return False


def _like(rows: Sequence[Record], last: Sequence[Record]) -> list[Record]:
    """The rows whose cap and number of tokens are about those of the newest ones."""
    found = list(rows)
    for key in ("cap", "tokens"):
        typical = median(column(last, key))
        if typical is not None:
            found = [
                one
                for one in found
                if (value := number(one, key)) is not None
                and typical <= value * _LIKE
                and value <= typical * _LIKE
            ]
    return found
