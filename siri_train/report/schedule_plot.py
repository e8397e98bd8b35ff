"""Plots of a schedule: braille dots for the terminal, and a self-contained SVG.

plotext draws such curves too and was left out after a trial. Its interface changed completely from
5.3 to 6.1 (``plotext.plot`` is gone), and 6.1 takes 0.57 s to import. 5.3 writes colour codes even
in its colourless theme and drops tick labels that do not fit. The labels of the steps and the line
that names the marks would have stayed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..schedule import LengthSchedule
from ..terminal.lines import broken
from .markup import fill
from .scale import ticks
from .svg import Chart, Line, render

_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def plot_text(schedule: LengthSchedule, steps: int, width: int = 76, height: int = 14) -> str:
    """The cap over ``steps`` steps as a plot of braille characters.

    Args:
        schedule: what to plot.
        steps: the curve runs from step 0 to ``steps``.
        width: characters of a line, at least 24.
        height: lines of the plot, at least 5. Below it the marks are named, on one line where it
            is long enough.

    Returns:
        Lines without colour codes: caps at the left, steps below, ``▼`` where siri-low is taken and
        ``▲`` where siri-high is.

    Raises:
        ValueError: if ``steps`` is below 1 or the plot is too small to read.
    """
    _check(steps)
    if width < 24 or height < 5:
        raise ValueError(f"width, height: got {width} x {height}; takes at least 24 x 5")
    top, bottom = schedule.max_len, schedule.lowest
    if top == bottom:
        top, bottom = top + 1, top - 1  # a flat line in the middle
    middle = (top + bottom) / 2
    rows = height - 2
    names = {0: f"{top:,}", rows - 1: f"{bottom:,}"}
    if schedule.lowest == schedule.max_len:
        names = {rows // 2: f"{schedule.max_len:,}"}
    elif rows >= 5 and rows % 2:
        names[rows // 2] = f"{middle:,.0f}" if middle == int(middle) else f"{middle:,.1f}"
    margin = max(map(len, names.values())) + 2
    columns = width - margin
    cells = [[0] * columns for _ in range(rows)]
    dots = 4 * rows - 1

    def level(step: int) -> int:
        return round((top - schedule.exact(step)) / (top - bottom) * dots)

    before = level(0)
    for x in range(2 * columns):
        y = level(round(x * steps / (2 * columns - 1)))
        # a jump (the stair) is drawn as the line it is
        for dot in range(min(y, before), max(y, before) + 1):
            cells[dot // 4][x // 2] |= _BITS[dot % 4][x % 2]
        before = y
    grid = [[chr(0x2800 + cell) if cell else " " for cell in row] for row in cells]
    low, high = schedule.compressed_ends(steps, steps), schedule.expanded_ends(steps, steps)
    for taken, sign in ((low, "▼"), (high, "▲")):
        for step in taken:
            grid[level(_shown_at(schedule, step)) // 4][round(step / steps * (columns - 1))] = sign
    lines = []
    for index, row in enumerate(grid):
        name = names.get(index, "")
        lines.append(f"{name:>{margin - 2}} {'┤' if name else '│'}{''.join(row)}".rstrip())
    axis, under = ["─"] * columns, [" "] * (columns + margin)
    free = 0
    for value in _step_ticks(schedule, steps, max(2, columns // 9)):
        column = round(value / steps * (columns - 1))
        axis[column] = "┬"
        text = f"{value:,.0f}"
        start = min(max(margin + column - len(text) // 2, free), len(under) - len(text))
        if start >= free:
            under[start : start + len(text)] = text
            free = start + len(text) + 1
    lines.append(" " * (margin - 1) + "└" + "".join(axis))
    lines.append("".join(under).rstrip())
    lines.append(broken(" " * margin + _marks_text(low, high), width))
    return "\n".join(lines).rstrip()


def caps_text(schedule: LengthSchedule, steps: int, width: int) -> str:
    """The cap at nine steps at most, from the first to the end of a cycle, as rows under a title.

    Args:
        schedule: what to show.
        steps: of the run.
        width: columns; where they are too few, further rows stand below.
    """
    span = min(steps, schedule.cycle) if schedule.periodic else steps
    eighths = range(0, span + 1, math.ceil(span / 8))
    cells = [(f"{step:,}", f"{schedule(step):,}") for step in eighths]
    each = max(max(map(len, pair)) for pair in cells) + 2
    count = max((width - len("step")) // each, 1)
    rows = ["cap (tokens) by step"]
    for first in range(0, len(cells), count):
        for name, place in (("step", 0), ("cap", 1)):
            part = cells[first : first + count]
            rows.append(f"{name:<4}" + "".join(f"{pair[place]:>{each}}" for pair in part))
    return "\n".join(rows)


def plot_svg(schedule: LengthSchedule, steps: int) -> str:
    """The cap over ``steps`` steps as a self-contained SVG document.

    Args:
        schedule: what to plot.
        steps: the curve runs from step 0 to ``steps``.

    Returns:
        An SVG with a title and description for screen readers, axes, shaded compression phases and
        the siri-low and siri-high points, in colours that follow the reader's light or dark mode.

    Raises:
        ValueError: if ``steps`` is below 1.
    """
    _check(steps)
    low, high = schedule.compressed_ends(steps, steps), schedule.expanded_ends(steps, steps)
    # a paper-long run has more steps than the picture has pixels; ends and jumps are kept
    corners = {*low, *high, *_jumps(schedule, steps)}
    stride = max(1, steps // 1200)
    shown = sorted({*range(0, steps, stride), 0, *corners, steps} | {t - 1 for t in corners if t})
    lines = []
    for name, css, beside, taken in (
        ("siri-low", "low", "below", low),
        ("siri-high", "high", "above", high),
    ):
        if taken:
            ends = [(float(step), float(schedule(_shown_at(schedule, step)))) for step in taken]
            lines.append(Line(name, ends, css, "dots", beside=beside if len(taken) < 8 else "end"))
    lines.append(Line("cap", [(float(t), float(schedule(t))) for t in shown], "siri"))
    spans = [
        (float(start), float(end), phase, phase)
        for start, end, phase in schedule.phases(steps)
        if phase != "constant"
    ]
    lengths = f"{schedule.max_len:,} to {schedule.lowest:,} tokens"
    if schedule.lowest == schedule.max_len:
        lengths = f"{schedule.max_len:,} tokens"
    cycle = f", {schedule.cycle:,}-step cycle" if schedule.periodic else ""
    title = f"Response-length cap: {schedule.shape}, {lengths}{cycle}"
    if schedule.constant:
        title = f"Response-length cap: constant {schedule.max_len:,} tokens"
    top = float(schedule.max_len)
    bottom = float(schedule.lowest)
    chart = Chart(
        title, lines, "tokens", spans=spans,
        x_ticks=_step_ticks(schedule, steps, 10),
        y_ticks=[y for y in sorted({top, (top + bottom) / 2, bottom}) if y == int(y)],
    )  # fmt: skip
    width, height, head = 820, 340, 34
    inner = render(chart, width, height, "schedule")
    return fill("schedule.svg", title=title, inner=inner, width=width, height=height, head=head)


def _shown_at(schedule: LengthSchedule, end: int) -> int:
    """The step whose cap marks a checkpoint.

    It is the extreme itself, or the step before it where the cap has jumped by then.
    """
    before, at = schedule.exact(end - 1), schedule.exact(end)
    lower = schedule.phase(end - 1) == "compression"
    return end - 1 if (before < at if lower else before > at) else end


def _jumps(schedule: LengthSchedule, steps: int) -> Iterator[int]:
    """Steps whose cap is far from that of the step before."""
    if steps > 50_000:  # they lie closer together than pixels
        return
    far, before = (schedule.max_len - schedule.lowest) / 25, schedule.exact(0)
    for step in range(1, steps + 1):
        cap = schedule.exact(step)
        if abs(cap - before) > far:
            yield step
        before = cap


def _step_ticks(schedule: LengthSchedule, steps: int, most: int) -> list[float]:
    """Steps to label: half cycles, else whole cycles, else round numbers; not over ``most``."""
    strides = (max(1, schedule.cycle // 2), schedule.cycle) if schedule.periodic else ()
    for stride in strides:
        if 1 <= steps // stride < most:
            return [float(step) for step in range(0, steps + 1, stride)]
    return [tick for tick in ticks(0, steps, most) if tick == int(tick)]


def _marks_text(low: list[int], high: list[int]) -> str:
    """The line that names the marks and the steps after which each checkpoint is taken."""
    said = []
    for sign, name, taken in (("▼", "siri-low", low), ("▲", "siri-high", high)):
        if taken:
            shown = [f"{step:,}" for step in taken]
            if len(shown) > 4:
                shown = [*shown[:3], "…", shown[-1]]
            said.append(f"{sign} {name} after {' '.join(shown)}")
    return "   ".join(said)


def _check(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps: got {steps}; takes a whole number of at least 1")
