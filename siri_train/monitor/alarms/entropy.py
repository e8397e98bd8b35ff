"""Alarms about the entropy of the policy: collapsed, blown up, out of the run's own band."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.history import column, median
from siri_train.monitor.alarms.registry import Raised, Record, alarm
from siri_train.monitor.alarms.trends import (
    WINDOW,
    cycle_of,
    earlier,
    learned,
    mean,
    moves,
    window,
)

_NOWHERE = 0.2
"""Nats per token below which a rise is no blow-up, however small the entropy was before."""
_SPAN, _GAP, _SHORT = 100, 100, 10
_LATELY = 50
"""Steps over which accuracy rises while a policy converges."""


@alarm(
    "entropy-collapse",
    cause="entropy is {now:.3g} nats per token, {share:.1%} of what it was at first ({start:.3g}), "
    "and accuracy no longer rises: the responses to a question are all alike",
    action="raise loss.entropy_coef or loss.clip_high, or resume from a checkpoint before the fall",
    limits=("entropy_collapse", "learned"),
    window=10,
    covers=("entropy-out-of-band", "reward-plateau"),
)
def _collapse(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    start, now = _start(history), mean(window(row, history, _SHORT), "entropy")
    if start is None or now is None or now >= limits.entropy_collapse * start:
        return None
    if learned(row, history, limits.learned) or _rising(row, history):
        return None
    return Raised(now, now=now, start=start, share=now / start)


@alarm(
    "entropy-blowup",
    cause="entropy is {now:.3g} nats per token, {times:.1f} times what it was at first "
    "({start:.3g}): the policy turns to noise",
    action="lower train.lr, loss.entropy_coef or loss.clip_high, or resume from a checkpoint "
    "before the rise",
    limits=("entropy_blowup",),
    window=10,
    covers=("entropy-out-of-band",),
)
def _blowup(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    start, now = _start(history), mean(window(row, history, _SHORT), "entropy")
    if start is None or now is None or now < max(limits.entropy_blowup * start, _NOWHERE):
        return None
    return Raised(now, now=now, start=start, times=now / start)


@alarm(
    "entropy-out-of-band",
    cause="entropy is {now:.3g} nats per token; {when} it {was}",
    action="a jump: resume from a checkpoint before it; a drift: change loss.entropy_coef or "
    "loss.clip_high before it becomes a collapse or a blow-up",
    limits=("entropy_band", "learned"),
    window=10,
)
def _out_of_band(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    now = mean(window(row, history, _SHORT), "entropy")
    if now is None or _collapse(row, history, limits) or _blowup(row, history, limits):
        return None
    for low, high, when in _bands(row, history):
        was = f"was {high:.3g}" if low == high else f"lay between {low:.3g} and {high:.3g}"
        knows = learned(row, history, limits.learned)
        # Where a task is learned entropy is next to nothing, and so is twice of it.
        if now > limits.entropy_band * high and not (knows and now < _NOWHERE):
            return Raised(now, now=now, was=was, when=when)
        # Entropy falls as a policy learns: less than this, or with rising accuracy, is usual.
        if 1.5 * limits.entropy_band * now < low and not (knows or _rising(row, history)):
            return Raised(now, now=now, was=was, when=when)
    return None


def _start(history: Sequence[Record]) -> float | None:
    """The run's first entropies, once they are past."""
    first = column(history[:WINDOW], "entropy")
    return median(first) if len(history) >= 2 * WINDOW and len(first) >= WINDOW // 2 else None


def _bands(row: Record, history: Sequence[Record]) -> Iterator[tuple[float, float, str]]:
    """Least and largest mean of a few steps: shortly before, at like points, or a while ago."""
    # At first entropy falls fast, by learning.
    if len(history) >= 2 * WINDOW:
        yield from _shortly_before(row, history)
    if moves(row):
        for rows in earlier(row, history)[:1]:
            yield from _band(rows, "at the same place of the last cycle")
    else:
        end = len(history) - _GAP
        rows = list(history[max(0, end - _SPAN) : max(0, end)])
        if len(rows) >= _SPAN // 2:
            yield from _band(rows, f"until {_GAP} steps ago")


def _shortly_before(row: Record, history: Sequence[Record]) -> Iterator[tuple[float, float, str]]:
    """The mean of a few steps until 20 ago, moved as far as the cap moved it since.

    Entropy moves with the cap. How far shows the same stretch of the cycle before. In the first
    cycle nobody knows that yet: it may fall from there, and rise to what it was before.
    """
    end = len(history) + 1
    for least, _, when in _band(
        history[max(0, end - 3 * _SHORT) : end - 2 * _SHORT], "20 steps ago"
    ):
        if not moves(row):
            yield least, least, when
            continue
        like = earlier(row, history, 3 * _SHORT)[:1]
        parts = [mean(rows[at : at + _SHORT], "entropy") for rows in like for at in (0, 2 * _SHORT)]
        if len(parts) == 2 and parts[0] and parts[1]:
            moved = parts[1] / parts[0]
            yield least * min(1.0, moved), least * max(1.0, moved), when
        elif cycle_of(row, history) is None:
            seen = list(_band(history[: end - 2 * _SHORT], ""))
            yield 0.0, seen[0][1], when


def _band(rows: Sequence[Record], when: str) -> Iterator[tuple[float, float, str]]:
    parts = [mean(rows[i : i + _SHORT], "entropy") for i in range(0, len(rows), _SHORT)]
    values = [part for part in parts if part is not None]
    if values:
        yield min(values), max(values), when


def _rising(row: Record, history: Sequence[Record]) -> bool:
    """Whether accuracy has risen over the last steps: then the policy converges."""
    now = mean(window(row, history), "accuracy")
    end = max(WINDOW, len(history) - _LATELY)
    before = mean(history[end - WINDOW : end], "accuracy")
    return now is not None and before is not None and now > before + 0.05
