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
    cause="entropy is {now:.3g} nats per token; {than}",
    action="a jump: resume from a checkpoint before it; a drift: change loss.entropy_coef or "
    "loss.clip_high before it becomes a collapse or a blow-up",
    limits=("entropy_band", "learned"),
    window=10,
)
def _out_of_band(row: Record, history: Sequence[Record], limits: AlarmsConfig) -> Raised | None:
    now = mean(window(row, history, _SHORT), "entropy")
    if now is None or _collapse(row, history, limits) or _blowup(row, history, limits):
        return None
    for low, high, than in _bands(row, history, now):
        knows = learned(row, history, limits.learned)
        # Where a task is learned entropy is next to nothing, and so is twice of it.
        if now > limits.entropy_band * high and not (knows and now < _NOWHERE):
            return Raised(now, now=now, than=than)
        # Entropy falls as a policy learns: less than this, or with rising accuracy, is usual.
        if 1.5 * limits.entropy_band * now < low and not (knows or _rising(row, history)):
            return Raised(now, now=now, than=than)
    return None


def _start(history: Sequence[Record]) -> float | None:
    """The run's first entropies, once they are past."""
    first = column(history[:WINDOW], "entropy")
    return median(first) if len(history) >= 2 * WINDOW and len(first) >= WINDOW // 2 else None


def _bands(
    row: Record, history: Sequence[Record], now: float
) -> Iterator[tuple[float, float, str]]:
    """Least and largest usual mean of a few steps, and in words why they are.

    They are those of shortly before, those at like points, or those of a while ago.
    """
    # At first entropy falls fast, by learning.
    if len(history) >= 2 * WINDOW:
        yield from _shortly_before(row, history, now)
    if moves(row):
        for rows in earlier(row, history)[:1]:
            yield from _named(rows, "at the same place of the last cycle")
    else:
        end = len(history) - _GAP
        rows = list(history[max(0, end - _SPAN) : max(0, end)])
        if len(rows) >= _SPAN // 2:
            yield from _named(rows, f"until {_GAP} steps ago")


def _shortly_before(
    row: Record, history: Sequence[Record], now: float
) -> Iterator[tuple[float, float, str]]:
    """The mean of a few steps until 20 ago, moved as far as the cap moved it since.

    Entropy moves with the cap. How far shows the same stretch of the cycle before; it may do so
    earlier or later than there, within what the cycle has seen. In the first cycle nobody knows
    yet: it may fall from there, and rise to what it was before.
    """
    end = len(history) + 1 - 2 * _SHORT
    when = f"{2 * _SHORT} steps ago"
    before = mean(history[max(0, end - _SHORT) : end], "entropy")
    cycle = cycle_of(row, history)
    span = end if cycle is None else cycle[1] - cycle[0]
    seen = _means(history[max(0, end - span) : end])
    if before is None or not seen:
        return
    if not moves(row):
        yield before, before, f"{when} it was {before:.3g}"
    elif cycle is None:
        yield 0.0, max(seen), f"until {when} it was {max(seen):.3g} at most"
    elif not min(seen) <= 2 * now <= 2 * max(seen):
        like = earlier(row, history, 3 * _SHORT)[:1]
        then = [mean(rows[at : at + _SHORT], "entropy") for rows in like for at in (0, 2 * _SHORT)]
        if len(then) == 2 and then[0] and then[1]:
            moved = then[1] / then[0]
            than = (
                f"{when} it was {before:.3g}, and the last cycle moved it {moved:.2g} times there"
            )
            yield before * min(1.0, moved), before * max(1.0, moved), than


def _named(rows: Sequence[Record], when: str) -> Iterator[tuple[float, float, str]]:
    values = _means(rows)
    if values:
        low, high = min(values), max(values)
        yield low, high, f"{when} it lay between {low:.3g} and {high:.3g}"


def _means(rows: Sequence[Record]) -> list[float]:
    """Means of a few steps each."""
    parts = [mean(rows[i : i + _SHORT], "entropy") for i in range(0, len(rows), _SHORT)]
    return [part for part in parts if part is not None]


def _rising(row: Record, history: Sequence[Record]) -> bool:
    """Whether accuracy has risen over the last steps: then the policy converges."""
    now = mean(window(row, history), "accuracy")
    end = max(WINDOW, len(history) - _LATELY)
    before = mean(history[end - WINDOW : end], "accuracy")
    return now is not None and before is not None and now > before + 0.05
