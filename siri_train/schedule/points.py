"""The shape ``points``: any list of (step, cap), joined by lines or held until the next."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from siri_train.registry import one_of
from siri_train.schedule.checks import whole_option
from siri_train.schedule.length_schedule import LengthSchedule, Shape

_BETWEEN = ("linear", "hold")


class _Level(NamedTuple):
    """Consecutive points with one cap: the cap, and the step at which it stops being the cap."""

    cap: int
    end: int


def _cap(step: int, s: LengthSchedule) -> float:
    points = s.options["points"]
    t = step % s.cycle if s.options["repeat"] else step
    index = bisect_right(points, t, key=lambda point: point[0]) - 1
    start, cap = points[index]
    more = [*points[index + 1 : index + 2], *_closing(s)]
    if s.options["between"] == "hold" or not more:
        return float(cap)
    end, then = more[0]
    return cap + (then - cap) * (t - start) / (end - start)


def _closing(s: LengthSchedule) -> list[tuple[int, int]]:
    """The first point of the next cycle, to which the last line of a cycle leads."""
    return [(s.cycle, s.options["points"][0][1])] if s.options["repeat"] else []


def _levels(s: LengthSchedule) -> list[_Level]:
    """Caps in order, each with the end of its plateau; neighbours differ."""
    held, points = s.options["between"] == "hold", [*s.options["points"], *_closing(s)]
    found: list[_Level] = []
    for index, (step, cap) in enumerate(points):
        end = points[index + 1][0] if held and index + 1 < len(points) else step
        if found and found[-1].cap == cap:
            found[-1] = _Level(cap, end)
        else:
            found.append(_Level(cap, end))
    return found


def _extremes(s: LengthSchedule) -> tuple[list[tuple[int, str]], str]:
    """The ends (step, phase that ends there) of a cycle or of the run, and the phase behind them.

    An end is where a cap that is lower, or higher, than those before and after it stops: the end of
    its plateau. Steps are from 1, with ``repeat`` up to ``cycle``.
    """
    levels, repeat = _levels(s), s.options["repeat"]
    if repeat and len(levels) > 1:
        # the last level is the first of the next cycle, and ends where that does
        levels = [_Level(levels[0].cap, levels[0].end or s.cycle), *levels[1:-1]]
    if len(levels) == 1:
        return [], "constant"
    found = []
    for index, level in enumerate(levels):
        near = [levels[index - 1]] if index or repeat else []
        near += [levels[(index + 1) % len(levels)]] if index + 1 < len(levels) or repeat else []
        higher = {level.cap > other.cap for other in near}
        if len(higher) == 1:
            found.append((level.end, "expansion" if higher.pop() else "compression"))
    if repeat:
        found.sort()
        return found, found[0][1]
    return [end for end in found[:-1] if end[0]], found[-1][1]


def _ends(wanted: str, steps: int, s: LengthSchedule) -> list[int]:
    found, period = _extremes(s)[0], s.cycle
    if not s.options["repeat"]:
        return [end for end, phase in found if phase == wanted and end <= steps]
    return sorted(
        n for end, phase in found if phase == wanted for n in range(end, steps + 1, period)
    )


def _phase(step: int, s: LengthSchedule) -> str:
    """The phase that the next end ends: a fall is compression, and so is the bottom."""
    found, last = _extremes(s)
    t = step % s.cycle if s.options["repeat"] else step
    return next((phase for end, phase in found if t < end), last)


def _open_from(s: LengthSchedule) -> int:
    found, _ = _extremes(s)
    return found[-1][0] if found else 0


def _check(s: LengthSchedule) -> None:
    points, between = s.options["points"], s.options["between"]
    if between not in _BETWEEN:
        raise ValueError(f"options.between: got {between!r}; {one_of(_BETWEEN, between)}")
    if not points:
        raise ValueError(
            "options.points: missing; the schedule shape 'points' takes a list of [step, cap], as "
            f"[[0, {s.max_len}], [320, {s.min_len}]]"
        )
    before = -1
    for index, point in enumerate(points):
        name = f"points[{index}]"
        if not isinstance(point, (list, tuple)) or len(point) != 2:
            raise ValueError(f"options.{name}: got {point!r}; takes [step, cap]")
        step = whole_option(f"{name}: step", point[0], 0)
        if index == 0 and step:
            raise ValueError(f"options.{name}: step: got {step}; takes 0, where the run begins")
        if step <= before:
            raise ValueError(f"options.{name}: step: got {step}; takes more than {before}")
        if s.options["repeat"] and step >= s.cycle:
            raise ValueError(
                f"options.{name}: step: got {step}; takes less than cycle = {s.cycle}, where the "
                "points begin again (repeat)"
            )
        if type(point[1]) is not int or not s.min_len <= point[1] <= s.max_len:
            raise ValueError(
                f"options.{name}: cap: got {point[1]!r}; takes a whole number from min_len = "
                f"{s.min_len} to max_len = {s.max_len}"
            )
        before = step


POINTS = Shape(
    _cap,
    phase=_phase,
    compressed_ends=lambda steps, s: _ends("compression", steps, s),
    expanded_ends=lambda steps, s: _ends("expansion", steps, s),
    options={"points": [], "between": "linear", "repeat": False},
    check=_check,
    lowest=lambda s: min(cap for _, cap in s.options["points"]),
    even_cycle=False,
    periodic=lambda s: s.options["repeat"],
    open_from=_open_from,
)
