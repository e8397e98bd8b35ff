"""Alarms about held-out accuracy: what compression took and expansion did not give back, decay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.held_out import Point, mean_accuracy, points, positions, spread
from siri_train.monitor.alarms.registry import Raised, Record, alarm
from siri_train.monitor.alarms.trends import mean, window

_LOOKS = 3
"""Evaluations of which a decay is judged together, so that one bad one raises nothing."""


@alarm(
    "accuracy-not-recovered",
    cause="held-out accuracy was {before:.1%} before the compression (step {step}), {low:.1%} at "
    "its end, and is {now:.1%} at the expanded end: {lost:.1f} points are lost, of which chance "
    "and the questions drawn explain {chance:.1f}",
    action="the cap falls too low or too fast: raise schedule.min_len or schedule.cycle, and "
    "resume from the checkpoint before the compression",
    on="evaluation",
    limits=("accuracy_drop", "accuracy_sigmas", "accuracy_scatter"),
    covers=("accuracy-decay", "reward-decay"),
)
def _not_recovered(
    row: Record,
    evaluations: Sequence[Record],
    limits: AlarmsConfig,
    rows: Sequence[Record] = (),
) -> Raised | None:
    found = _unrecovered(points([*evaluations, row]), limits)
    if found is None or _paid(found[0], rows):
        return None
    return found[0].raised(low=found[1])


@alarm(
    "accuracy-decay",
    cause="held-out accuracy is {now:.1%} over the last {looks} evaluations; at like points of the "
    "run it was {before:.1%} (around step {step}): {lost:.1f} points are lost, of which chance "
    "and the questions drawn explain {chance:.1f}",
    action="take the checkpoint of before; lower train.lr, or add loss.kl_coef",
    on="evaluation",
    limits=("accuracy_drop", "accuracy_sigmas", "accuracy_scatter"),
    window=3,
    covers=("reward-decay",),
)
def _decay(
    row: Record,
    evaluations: Sequence[Record],
    limits: AlarmsConfig,
    rows: Sequence[Record] = (),
) -> Raised | None:
    some = points([*evaluations, row])
    lost = _lost(some, limits)
    if lost is None or _unrecovered(some, limits) or _paid(lost, rows):
        return None
    return lost.raised()


@alarm(
    "reward-hacking",
    cause="the reward of training rose from {reward_before:.3g} to {reward_now:.3g} while held-out "
    "accuracy fell from {before:.1%} (around step {step}) to {now:.1%}",
    action="read rollouts/ of the best paid responses: the reward pays for something else than "
    "right answers; check reward.verifier, reward.function and its options, and take the "
    "checkpoint of before",
    on="evaluation",
    limits=("accuracy_drop", "accuracy_sigmas", "accuracy_scatter"),
    window=3,
    covers=("accuracy-decay", "accuracy-not-recovered"),
)
def _hacking(
    row: Record,
    evaluations: Sequence[Record],
    limits: AlarmsConfig,
    rows: Sequence[Record] = (),
) -> Raised | None:
    some = points([*evaluations, row])
    at_end = _unrecovered(some, limits)
    for lost in (at_end[0] if at_end else None, _lost(some, limits)):
        rewards = lost and _paid(lost, rows)
        if lost and rewards:
            return lost.raised(reward_before=rewards[0], reward_now=rewards[1])
    return None


@dataclass(frozen=True)
class Lost:
    """A fall of held-out accuracy that chance does not explain.

    Args:
        before: mean accuracy of the evaluations held against.
        now: mean accuracy of the newest ones.
        at: step of the newest of those held against.
        chance: what chance explains, in points.
    """

    before: float
    now: float
    at: int
    chance: float

    def raised(self, **details: float) -> Raised:
        """The alarm of it, in points."""
        return Raised(
            round(100 * (self.before - self.now), 3),
            before=self.before,
            now=self.now,
            step=self.at,
            lost=100 * (self.before - self.now),
            chance=self.chance,
            looks=_LOOKS,
            **details,
        )


def _fell(
    before: Sequence[Point], now: Sequence[Point], sigma: float, limits: AlarmsConfig, tries: int
) -> Lost | None:
    """The fall, if chance does not explain it; it had ``tries`` occasions to look like one."""
    drop = mean_accuracy(before) - mean_accuracy(now)
    sigmas = math.sqrt(limits.accuracy_sigmas**2 + 2 * math.log(tries))
    chance = sigmas * sigma * math.sqrt(1 / len(before) + 1 / len(now))
    if drop <= max(limits.accuracy_drop, chance):
        return None
    return Lost(mean_accuracy(before), mean_accuracy(now), before[-1].step, 100 * chance)


def _unrecovered(some: Sequence[Point], limits: AlarmsConfig) -> tuple[Lost, float] | None:
    """The loss from one expanded end (or the start) to the last; accuracy between them."""
    ends = [i for i, point in enumerate(some) if point.high]
    if len(ends) < 2:
        return None
    before, now = some[ends[-2]], some[ends[-1]]
    lows = [p for p in some[ends[-2] : ends[-1]] if p.name == "siri-low"]
    if not lows or before.accuracy - lows[-1].accuracy <= limits.accuracy_drop:
        return None
    # Around the ends the cap hardly moves: what was evaluated there counts as well.
    near = (now.step - before.step) / 8
    old = [p for p in some[: ends[-1]] if abs(p.step - before.step) <= near]
    new = [p for p in some[: ends[-1] + 1] if 0 <= now.step - p.step <= near]
    sigma = spread(some[: ends[-1] + 1], limits.accuracy_scatter)
    lost = _fell(old, new, sigma, limits, len(ends) - 1)
    return (lost, lows[-1].accuracy) if lost else None


def _lost(some: Sequence[Point], limits: AlarmsConfig) -> Lost | None:
    """The loss of the last evaluations against the best ones at like points."""
    if len(some) < 2 * _LOOKS:
        return None
    now, sigma = some[-_LOOKS:], spread(some, limits.accuracy_scatter)
    found = [_fell(before, now, sigma, limits, len(some)) for before in _alike(some)]
    lost = [one for one in found if one is not None]
    return max(lost, key=lambda one: one.before, default=None)


def _alike(some: Sequence[Point]) -> list[list[Point]]:
    """Evaluations before the last ones, as many as these and at the same places of a cycle."""
    old = some[:-_LOOKS]
    if not any(point.name in ("siri-low", "siri-high") for point in some):
        return [list(old[at - _LOOKS : at]) for at in range(len(old), _LOOKS - 1, -_LOOKS)]
    where = positions(some)
    groups = []
    for back in range(1, where[-1][2] + 1):
        group = []
        for end, offset, cycle in where[-_LOOKS:]:
            at = (end, offset, cycle - back)
            group += [point for point, place in zip(old, where, strict=False) if place == at]
        if len(group) == _LOOKS:
            groups.append(group)
    return groups


def _paid(lost: Lost, rows: Sequence[Record]) -> tuple[float, float] | None:
    """The reward of training at the good evaluation and now, if it rose as held-out fell."""
    if not rows:
        return None
    then = [row for row in rows if row["step"] < lost.at]
    before = mean(window(then[-1], then[:-1]) if then else [], "reward_mean")
    now = mean(window(rows[-1], rows[:-1]), "reward_mean")
    if before is None or now is None:
        return None
    # Fewer truncated responses raise it a little: a reward that is hacked parts from accuracy.
    if now - before < max(lost.before - lost.now, 0.05 * abs(before)):
        return None
    return before, now
