"""Alarms about the entropy of the policy: collapsed, blown up, out of the run's own band."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.history import column
from siri_train.monitor.alarms.registry import Raised, Record, alarm
from siri_train.monitor.alarms.trends import (
    WINDOW,
    cycle_of,
    earlier,
    learned,
    mean,
    median,
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
    clear_after=5,
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
    clear_after=5,
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
    clear_after=5,
)
def _out_of_band(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    now = mean(window(row, history, _SHORT), "entropy")
    if now is None or _collapse(row, history, limits) or _blowup(row, history, limits):
        return None
    for low, high, when in _bands(row, history, now):
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


def _bands(
    row: Record, history: Sequence[Record], now: float
) -> Iterator[tuple[float, float, str]]:
    """Least and largest mean of a few steps: shortly before, at like points, or a while ago."""
    end = len(history) + 1
    # At first entropy falls fast, by learning.
    if len(history) >= 2 * WINDOW and not _swings(row, history, now):
        before = history[max(0, end - 3 * _SHORT) : max(0, end - 2 * _SHORT)]
        yield from _band(before, "20 steps ago")
    if moves(row):
        for rows in earlier(row, history)[:1]:
            yield from _band(rows, "at the same place of the last cycle")
    else:
        end = len(history) - _GAP
        rows = list(history[max(0, end - _SPAN) : max(0, end)])
        if len(rows) >= _SPAN // 2:
            yield from _band(rows, f"until {_GAP} steps ago")


def _swings(row: Record, history: Sequence[Record], now: float) -> bool:
    """Whether the cap moves, and entropy, which moves with it, was about there in the cycle before.

    In the first cycle nobody knows yet how far it falls with the cap.
    """
    if not moves(row):
        return False
    end, found = max(0, len(history) + 1 - 2 * _SHORT), cycle_of(row, history)
    span = end if found is None else found[1] - found[0]
    seen = list(_band(history[max(0, end - span) : end], ""))
    return bool(seen) and (found is None or seen[0][0] <= 2 * now) and now <= seen[0][1]


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
