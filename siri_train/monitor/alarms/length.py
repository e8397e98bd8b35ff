"""Alarms about the length of responses: at the cap, deaf to the cap, too long, too short."""

from __future__ import annotations

import math
from collections.abc import Sequence

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.held_out import mean_accuracy, points
from siri_train.monitor.alarms.history import column, number
from siri_train.monitor.alarms.registry import Raised, Record, alarm
from siri_train.monitor.alarms.trends import (
    WINDOW,
    cycle_of,
    earlier,
    learned,
    mean,
    moves,
    noise,
    window,
)
from siri_train.monitor.alarms.truncation import mostly

_BINDS = 0.05
"""Share of truncated responses in a compression from which the cap says anything to the policy."""
_SWING = 0.15
"""Least swing of the cap, of its mean, that lengths are asked to follow."""
_PARTS = 48
"""Stretches of a cycle of which the mean is taken before lags are tried."""


@alarm(
    "pinned-at-cap",
    cause="for {steps} steps at least half of the responses have been as long as the cap ({cap} "
    "tokens now), {truncated:.0%} were truncated: the policy fills whatever it is given",
    action="read rollouts/ for responses that do not end; raise schedule.max_len, or start from a "
    "model that ends its responses",
    limits=("pinned", "truncated"),
    window=50,
    covers=("truncation-rising", "length-explosion"),
)
def _pinned(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    rows = window(row, history, _patience(row, history))
    if not rows or mostly(row, history, limits) is not None:
        return None
    cap, first = number(row, "cap"), number(rows[0], "cap")
    if cap is None or first is None or cap < first:  # it falls: lengths come later
        return None
    there = [
        (number(r, "response_len_p50") or 0.0) >= limits.pinned * (number(r, "cap") or math.inf)
        for r in rows
    ]
    if sum(there) < 0.95 * len(rows):
        return None
    truncated = mean(rows, "truncated_frac") or 0.0
    return Raised(row["response_len_p50"], steps=len(rows), cap=row["cap"], truncated=truncated)


def _patience(row: Record, history: Sequence[Record]) -> int:
    """Steps for which responses may fill the cap: a policy follows a moved cap late."""
    if not moves(row):
        return 50
    found = cycle_of(row, history)
    return max(WINDOW, (found[1] - found[0]) // 2) if found else 200


@alarm(
    "length-not-tracking",
    cause="in the last cycle the median length did not follow the cap: at the best lag "
    "({lag} steps) the correlation was {correlation:.2f}, and length moved by {gain:.2f} of the "
    "cap's swing",
    action="look at truncated_frac: a cap that truncates few responses needs a lower "
    "schedule.min_len; a policy that stays short needs a longer schedule.cycle, or "
    "loss.entropy_coef in expansion",
    limits=("tracking_correlation", "tracking_gain", "learned"),
    window=50,
)
def _not_tracking(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    found = cycle_of(row, history)
    if found is None:
        return None
    rows = history[found[0] : found[1]]
    fall = [r for r in rows if r.get("phase") == "compression"]
    truncated = max(mean(fall[len(fall) // 2 :], "truncated_frac") or 0.0, 0.0)
    if truncated < _BINDS or learned(rows[-1], rows[:-1], limits.learned):
        return None
    step = max(1, len(rows) // _PARTS)
    parts = [rows[i : i + step] for i in range(0, len(rows) - step + 1, step)]
    caps = [mean(part, "cap") for part in parts]
    # The median: truncation alone moves the mean.
    lengths = [mean(part, "response_len_p50") for part in parts]
    if None in caps or None in lengths:
        return None
    best = _best_lag([math.log(c or 1) for c in caps], [math.log(max(x or 1, 1)) for x in lengths])
    if best is None:
        return None
    lag, correlation, gain = best
    if correlation >= limits.tracking_correlation and gain >= limits.tracking_gain:
        return None
    return Raised(correlation, lag=lag * step, correlation=correlation, gain=gain)


def _best_lag(caps: list[float], lengths: list[float]) -> tuple[int, float, float] | None:
    """(lag, correlation, slope) where length correlates most with the cap of some time before.

    The cap repeats from cycle to cycle, so a cycle's lengths late in it follow the caps before, and
    those at its begin the caps at the end of the cycle before.
    """
    count = len(caps)
    middle, centre = sum(caps) / count, sum(lengths) / count
    cap, length = [c - middle for c in caps], [x - centre for x in lengths]
    power, other = sum(c * c for c in cap), sum(x * x for x in length)
    if max(caps) - min(caps) < _SWING or power == 0:
        return None
    if other == 0:
        return 0, 0.0, 0.0
    best = None
    for lag in range(count // 2 + 1):
        both = sum(cap[i - lag] * length[i] for i in range(count))
        found = (lag, both / math.sqrt(power * other), both / power)
        if best is None or found[1] > best[1]:
            best = found
    return best


@alarm(
    "length-explosion",
    cause="responses have {now:.0f} tokens, {times:.1f} times as many as at like points before "
    "({before:.0f}){why}",
    action="read rollouts/ for padding and repetition; pay for short answers (docs/rewards.md), or "
    "lower schedule.max_len",
    limits=("length_explosion", "accuracy_drop"),
    window=20,
)
def _explosion(
    row: Record,
    history: Sequence[Record],
    limits: AlarmsConfig,
    evaluations: Sequence[Record] = (),
) -> Raised | None:
    found = _usual(row, history)
    if found is None:
        return None
    now, before, since = found
    if now < limits.length_explosion * before:
        return None
    gain = _held_out_change(row, since, evaluations)
    times = now / before
    if gain is None:
        # Growing may be learning: without evaluations only a growth that is larger still counts.
        if times < limits.length_explosion**2:
            return None
        why = "; there is no evaluation to say whether that is worth anything"
    elif gain > limits.accuracy_drop:
        return None
    else:
        why = f", and held-out accuracy changed by {100 * gain:+.1f} points"
    return Raised(now, now=now, times=times, before=before, why=why)


@alarm(
    "length-hacking",
    cause="responses have {now:.0f} tokens, at like points before they had {before:.0f}, and "
    "accuracy fell by {lost:.1f} points: they are shorter and worse",
    action="answers get short faster than the policy learns to be brief: raise schedule.min_len or "
    "schedule.cycle, lower what the reward pays for short answers",
    limits=("length_shrink", "accuracy_drop"),
    window=20,
    covers=("reward-decay", "accuracy-decay", "accuracy-not-recovered", "reward-plateau"),
)
def shorter_and_worse(
    row: Record,
    history: Sequence[Record],
    limits: AlarmsConfig,
    evaluations: Sequence[Record] = (),
) -> Raised | None:
    """Whether responses got shorter and accuracy fell; see the alarm.

    Args:
        row: the newest row.
        history: the rows before it, oldest first.
        limits: thresholds.
        evaluations: the evaluations so far, oldest first.
    """
    found = _usual(row, history, longest=True)
    if found is None or found[0] > (1 - limits.length_shrink) * found[1]:
        return None
    fall, since = _fall_of_accuracy(row, history)
    if fall <= limits.accuracy_drop:
        return None
    change = _held_out_change(row, since, evaluations)
    if change is not None and change >= -limits.accuracy_drop:
        return None
    now, before, _ = found
    return Raised(now, now=now, before=before, lost=100 * fall)


def _usual(
    row: Record, history: Sequence[Record], longest: bool = False
) -> tuple[float, float, float] | None:
    """(mean of the newest window, that of the first or the longest one before, its last step)."""
    now = mean(window(row, history), "response_len_mean")
    windows = [(mean(old, "response_len_mean"), old) for old in earlier(row, history)]
    known = [(value, number(old[-1], "step") or 0.0) for value, old in windows if value]
    if now is None or not known:
        return None
    value, step = max(known) if longest else min(known[:1] + known[-1:])
    return now, value, step


def _held_out_change(row: Record, since: float, evaluations: Sequence[Record]) -> float | None:
    """How held-out accuracy changed since a step; None without evaluations on both sides."""
    some = points(evaluations, number(row, "step"))
    old = [point for point in some if point.step <= since + 1][-2:]
    new = [point for point in some if point.step > since + 1][-2:]
    return mean_accuracy(new) - mean_accuracy(old) if old and new else None


def _fall_of_accuracy(row: Record, history: Sequence[Record]) -> tuple[float, float]:
    """How far the accuracy of training fell below the best of like points, surely; their step."""
    rows = window(row, history)
    now = mean(rows, "accuracy")
    windows = [(mean(old, "accuracy"), old) for old in earlier(row, history)]
    known = [(value, old) for value, old in windows if value is not None]
    if now is None or not known:
        return 0.0, 0.0
    value, old = max(known, key=lambda pair: pair[0])
    errors = [noise(column(some, "accuracy")) for some in (rows, old)]
    fall = value - now
    sure = fall > 4 * math.hypot(*errors) / math.sqrt(len(rows))
    return (fall if sure else 0.0), number(old[-1], "step") or 0.0
