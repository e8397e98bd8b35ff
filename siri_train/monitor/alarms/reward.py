"""Alarms about the reward of training: it no longer rises, it falls."""

from __future__ import annotations

import math
from collections.abc import Sequence

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.groups import without_signal
from siri_train.monitor.alarms.held_out import mean_accuracy, points
from siri_train.monitor.alarms.history import column, number
from siri_train.monitor.alarms.length import shorter_and_worse
from siri_train.monitor.alarms.registry import Raised, Record, alarm
from siri_train.monitor.alarms.trends import (
    cycle_of,
    earlier,
    learned,
    mean,
    moves,
    noise,
    window,
)
from siri_train.monitor.alarms.truncation import mostly, rising


@alarm(
    "reward-plateau",
    cause="reward and accuracy have not risen for {steps} steps (reward {before:.3g}, then "
    "{now:.3g}), with accuracy at {accuracy:.1%} there is room",
    action="if held-out accuracy has stopped too, end the run here, or change what it learns from: "
    "harder or easier questions, a larger rollout.group_size, train.lr, loss.entropy_coef",
    limits=("plateau_steps", "plateau_gain", "learned", "groups_without_signal"),
    window=50,
)
def _plateau(
    row: Record,
    history: Sequence[Record],
    limits: AlarmsConfig,
    evaluations: Sequence[Record] = (),
) -> Raised | None:
    half = _half(row, history, limits)
    if half is None:
        return None
    rows = window(row, history, 2 * half)
    if not rows:
        return None
    old, new = rows[:half], rows[half:]
    for key in ("reward_mean", "accuracy"):
        before, now = mean(old, key), mean(new, key)
        if before is None or now is None:
            return None
        # The most that it may have risen, at 2 standard errors.
        error = noise(column(rows, key)) * math.sqrt(2 / half)
        if now - before + 2 * error >= limits.plateau_gain * max(1.0, abs(before)):
            return None
    accuracy = mean(new, "accuracy") or 0.0
    best = max(
        accuracy, *(mean(part, "accuracy") or 0.0 for part in (new[: half // 2], rows[-20:]))
    )
    if best >= limits.learned or learned(row, history, limits.learned):
        return None
    if _held_out_rises(rows, half, limits, evaluations):
        return None
    if without_signal(row, history, limits, evaluations):
        return None
    before, now = mean(old, "reward_mean"), mean(new, "reward_mean")
    return Raised(now, steps=half, before=before, now=now, accuracy=accuracy)


@alarm(
    "reward-decay",
    cause="the mean reward of the last {steps} steps is {now:.3g}; at like points before it was "
    "{before:.3g}",
    action="resume from a checkpoint before the fall; lower train.lr",
    limits=("reward_decay", "truncated", "truncation_rise"),
    window=20,
    covers=("accuracy-decay", "reward-plateau"),
)
def _decay(
    row: Record,
    history: Sequence[Record],
    limits: AlarmsConfig,
    evaluations: Sequence[Record] = (),
) -> Raised | None:
    rows = window(row, history)
    now = mean(rows, "reward_mean")
    if now is None:
        return None
    # What is truncated earns nothing: that is an alarm already.
    if mostly(row, history, limits) is not None or rising(row, history, limits):
        return None
    found = [(mean(old, "reward_mean"), old) for old in earlier(row, history)]
    known = [(value, old) for value, old in found if value is not None]
    if not known:
        return None
    before, old = max(known, key=lambda pair: pair[0])
    error = math.hypot(
        noise(column(rows, "reward_mean")), noise(column(old, "reward_mean"))
    ) / math.sqrt(len(rows))
    if before - now <= max(limits.reward_decay * abs(before), 4 * error):
        return None
    if shorter_and_worse(row, history, limits, evaluations):
        return None
    return Raised(now, steps=len(rows), now=now, before=before)


def _half(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> int | None:
    """Steps of the two stretches that are compared: whole cycles, where the cap moves."""
    if not moves(row):
        return limits.plateau_steps // 2
    found = cycle_of(row, history)
    if found is None:
        return None
    length = found[1] - found[0]
    return length * max(1, math.ceil(limits.plateau_steps / 2 / length))


def _held_out_rises(
    rows: Sequence[Record], half: int, limits: AlarmsConfig, evaluations: Sequence[Record]
) -> bool:
    first, middle, last = (number(rows[i], "step") or 0.0 for i in (0, half, -1))
    some = points(evaluations, last)
    old = [point for point in some if first <= point.step <= middle]
    new = [point for point in some if middle < point.step]
    return bool(old and new) and mean_accuracy(new) - mean_accuracy(old) > limits.plateau_gain
