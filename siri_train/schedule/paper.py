"""The shapes of the paper (arXiv 2509.25176, section 4.3), and the constant cap of a control."""

from __future__ import annotations

from siri_train.schedule.length_schedule import LengthSchedule, Shape
from siri_train.schedule.waves import wave


def _cosine(step: int, s: LengthSchedule) -> float:
    return wave(s, step % s.cycle, s.cycle)


def _stair(step: int, s: LengthSchedule) -> float:
    t, cycle = step % s.cycle, s.cycle
    if s.stair_order == "compress_first":
        low = 2 * t < cycle
    else:
        low = cycle <= 4 * t < 3 * cycle
    return float(s.min_len if low else s.max_len)


def _stair_cosine(step: int, s: LengthSchedule) -> float:
    """Flat an eighth of a turn each side of both ends, twice as fast between."""
    t, cycle = step % s.cycle, s.cycle
    if 8 * t < cycle or 8 * t >= 7 * cycle:
        return float(s.max_len)
    if 8 * t < 3 * cycle:
        return wave(s, 8 * t - cycle, 4 * cycle)
    if 8 * t < 5 * cycle:
        return float(s.min_len)
    return wave(s, 8 * t - 3 * cycle, 4 * cycle)


def _constant(step: int, s: LengthSchedule) -> float:
    return float(s.max_len)


COSINE = Shape(_cosine)
STAIR = Shape(_stair)
STAIR_COSINE = Shape(_stair_cosine)
CONSTANT = Shape(_constant, moves=False, even_cycle=False)
