"""Numbers on charts: round ticks, readable labels, fewer points, running means."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, "float | None"]

_LEAST_SPAN = 1e-100  # of an axis; below it powers of ten run out


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values within [low, high], 1, 2 or 5 times a power of ten apart.

    Args:
        low: start of the axis.
        high: end of the axis.
        most: values at most.
    """
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    while span / step > most - 1:
        # 1 -> 2 -> 5 -> 10
        step *= 2.5 if str(f"{step:e}")[0] == "2" else 2
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def rounded(low: float, high: float, most: int) -> tuple[float, float]:
    """[low, high] extended to whole tick steps; never empty.

    Args:
        low: smallest value.
        high: largest value.
        most: ticks at most, see :func:`ticks`.
    """
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, _LEAST_SPAN):  # flat, except for rounding errors
        pad = size * 0.1 if size > _LEAST_SPAN else 1.0
        low, high = low - pad, high + pad
    marks = ticks(low, high, most)
    step = marks[1] - marks[0] if len(marks) > 1 else (high - low) / 2
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def show(value: float, unit: str, step: float | None = None) -> str:
    """A number as text: "64.1 %", "12,288", "0.0031", "2.4 B" (billions).

    Args:
        value: what to write.
        unit: ``percent`` for a share; every other unit is written as a number.
        step: distance of the axis' ticks, which decides the decimals; None: not on an axis.
    """
    if unit == "percent":
        digits = 1 if step is None else min(max(0, -math.floor(math.log10(step * 100) + 1e-9)), 4)
        return f"{100 * value:.{digits}f} %"
    if step is not None and (1e-6 <= step < 1e6):
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        return f"{value:,.{digits}f}"
    size = abs(value)
    if size >= 999.5e9:  # three digits of billions have no other form than 1e+03
        return f"{value / 1e9:,.0f} B" if size < 1e15 else f"{value:.3g}"
    for letter, whole in (("B", 1e9), ("M", 1e6)):
        if size >= 0.9995 * whole and size >= 1e6:
            return f"{value / whole:.3g} {letter}"
    if size >= 1000:
        return f"{value:,.0f}"
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}" if size < 100 else f"{value:.1f}"


def running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Centred mean over ``window`` points; gaps are left out of it and stay gaps.

    It does not look over a gap at half a step, see `siri_train.report.data.series`.
    """
    walls = [place for place, (x, y) in enumerate(points) if y is None and x % 1 == 0.5]
    if walls:
        parts, start = [], 0
        for wall in (*walls, len(points)):
            parts += running_mean(points[start:wall], window) + list(points[wall : wall + 1])
            start = wall + 1
        return parts
    half = window // 2
    result: list[Point] = []
    values = [y for _, y in points if y is not None]
    if len(values) == len(points):  # the usual case, many times faster
        for index, (x, _) in enumerate(points):
            beside = values[max(0, index - half) : index + half + 1]
            result.append((x, sum(beside) / len(beside)))
        return result
    for index, (x, y) in enumerate(points):
        near = [v for _, v in points[max(0, index - half) : index + half + 1] if v is not None]
        result.append((x, None if y is None else sum(near) / len(near)))
    return result


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most about ``most`` points that draw the same curve: each bucket's lowest and highest.

    Means would hide the spikes that a reader looks for.
    """
    if len(points) <= most:
        return list(points)
    most = max(most, 2)
    size = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        there = [(y, i) for i, (_, y) in enumerate(bucket) if y is not None]
        chosen = {min(there)[1], max(there)[1]} if there else {0}
        # a gap at the bucket's end must stay one, or the line would jump it
        chosen |= {i for i in (0, len(bucket) - 1) if bucket[i][1] is None}
        kept += [bucket[i] for i in sorted(chosen)]
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def text_width(text: str, size: float, bold: bool = False) -> float:
    """An upper estimate of a text's width in a system font, in pixels.

    Args:
        text: what is written.
        size: of the font, in pixels.
        bold: bold letters are wider.
    """
    usual = 0.64 if bold else 0.57
    return sum(1.0 if ord(char) > 0x2E80 else usual for char in text) * size
