"""Line charts as inline SVG: no library, colours by CSS class so that dark mode costs nothing."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .scale import Point, rounded, show, text_width, thin, ticks

FONT = 12.0
Scale = Callable[[float], float]
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


@dataclass(frozen=True)
class Line:
    """One curve, or one set of points, of a chart.

    Attributes:
        label: written at the curve's end, in its colour; empty for an unlabelled helper curve.
        beside: where the label goes: at the ``end``, ``above`` or ``below`` every point, or
            ``nowhere`` (it still names the curve in tooltips and for screen readers).
        points: (x, y) in order of x; y is None where the curve has a gap.
        css: colour class: ``siri``, ``control``, ``cap``, ``low``, ``high``, ``alt1`` ...
        look: ``line``, ``dashed``, ``dots`` (filled points joined by a thin line) or ``rings``
            (the same, hollow).
        raw: single steps drawn faintly behind ``points``, which are then their running mean.
        band: (x, low, high) shaded behind the curve.
        bars: (x, low, high) error bars.
    """

    label: str
    points: Sequence[Point]
    css: str
    look: str = "line"
    raw: Sequence[Point] = ()
    band: Sequence[tuple[float, float | None, float | None]] = ()
    bars: Sequence[tuple[float, float, float]] = ()
    beside: str = "end"


@dataclass(frozen=True)
class Chart:
    """What a chart shows; `render` draws it at any size.

    Attributes:
        title: also the accessible name.
        lines: at least one of them with a point.
        unit: ``percent``, ``tokens`` or ``number``; how values are written.
        spans: (first x, last x, css class, label) shaded behind the curves.
        marks: (x, css class, label) thin vertical lines.
        x_ticks, y_ticks: where the axes are labelled; round numbers if empty.
        floor, ceiling: the axis never goes beyond these; the floor is always shown when
            ``from_floor`` is set.
    """

    title: str
    lines: Sequence[Line]
    unit: str = "number"
    x_label: str = "step"
    spans: Sequence[tuple[float, float, str, str]] = ()
    marks: Sequence[tuple[float, str, str]] = ()
    floor: float | None = 0.0
    ceiling: float | None = None
    from_floor: bool = True
    x_ticks: Sequence[float] = ()
    y_ticks: Sequence[float] = ()


def escape(text: object) -> str:
    """``text`` fit for HTML: escaped, and without characters that are invalid or reorder others."""
    return html.escape(_UNPRINTABLE.sub("\ufffd", str(text)), quote=True)


def tag(name: str, *children: str, **attributes: object) -> str:
    """One SVG or HTML element; children are markup already, attribute values are escaped here.

    ``class_`` gives ``class``, ``stroke_width`` gives ``stroke-width``; None leaves one out.
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{pairs}>{''.join(children)}</{name}>"


def coordinate(value: float) -> str:
    """A coordinate with one decimal; anything that is not finite is a bug, not a picture."""
    if not math.isfinite(value):
        raise AssertionError(f"coordinate {value}")
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _plain(value: object) -> object:
    return coordinate(value) if isinstance(value, float) else value


def extent(chart: Chart) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """((x low, x high), (y low, y high)) of everything in the chart, or None if it is empty."""
    xs: list[float] = []
    ys: list[float] = []
    for line in chart.lines:
        for x, y in (*line.points, *line.raw):
            if y is not None:
                xs.append(x)
                ys.append(y)
        for x, low, high in (*line.band, *line.bars):
            if low is not None and high is not None:
                xs.append(x)
                ys += (low, high)
    if not xs:
        return None
    xs += [mark[0] for mark in chart.marks]
    xs += [x for span in chart.spans for x in span[:2]]
    x_low, x_high = min(xs), max(xs)
    x_high = x_high if x_high > x_low else x_low + 1
    low, high = min(ys), max(ys)
    if chart.y_ticks:  # the labels need not lie at the ends, so room is left for text there
        pad = (high - low) * 0.16 or 1.0
        return (x_low, x_high), (low - pad, high + pad)
    if chart.floor is not None and chart.from_floor:
        low = min(low, chart.floor)
    low, high = rounded(low, high, 5)
    if chart.floor is not None and min(ys) >= chart.floor:
        low = max(low, chart.floor)
    if chart.ceiling is not None and max(ys) <= chart.ceiling:
        high = min(high, chart.ceiling)
    return (x_low, x_high), (low, high)


def render(chart: Chart, width: int, height: int, ident: str, end_labels: bool = True) -> str:
    """The chart as one ``<svg>`` element.

    Args:
        chart: with at least one finite value (see `extent`).
        width, height: of the view box; the element itself scales to its container.
        ident: unique in the page; the title's and description's ids are made from it.
        end_labels: write each curve's label at its right end. Without, the caller has a legend.
    """
    bounds = extent(chart)
    if bounds is None:
        raise ValueError("chart: got no finite value; takes at least one")
    (x_low, x_high), (y_low, y_high) = bounds
    y_ticks = list(chart.y_ticks) or ticks(y_low, y_high, 6 if height > 200 else 4)
    y_step = y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else None
    y_texts = [show(value, chart.unit, y_step) for value in y_ticks]
    labels = [line.label for line in chart.lines if line.beside == "end"] if end_labels else []
    left = max(text_width(text, FONT) for text in y_texts) + 12
    right = max([text_width(text, FONT, bold=True) for text in labels], default=2.0) + 14
    right = min(right, width * 0.36)
    top, bottom = (22.0 if chart.spans or chart.marks else 10.0), 38.0
    plot_right, plot_bottom = width - right, height - bottom

    def px(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (plot_right - left)

    def py(y: float) -> float:
        return plot_bottom - (y - y_low) / (y_high - y_low) * (plot_bottom - top)

    parts = [tag("title", escape(chart.title), id=f"{ident}-t")]
    parts.append(tag("desc", escape(describe(chart)), id=f"{ident}-d"))
    # a name on some phases and not on others would look like a difference between them
    named = all(
        px(min(end, x_high)) - px(max(start, x_low)) > text_width(label, 11) + 8
        for start, end, _, label in chart.spans[:-1] or chart.spans
    )
    busy = [px(x) for x, _, _ in chart.marks]
    for start, end, css, label in chart.spans:
        a, b = px(max(start, x_low)), px(min(end, x_high))
        if b > a:
            parts.append(
                tag("rect", class_=f"span {css}", x=a, y=top, width=b - a, height=plot_bottom - top)
            )
            wide = text_width(label, 11) / 2
            clear = all(abs(x - (a + b) / 2) > wide + 16 for x in busy)
            if label and named and clear and b - a > 2 * wide:
                parts.append(
                    tag("text", escape(label), class_="note", x=(a + b) / 2, y=top - 7,
                        text_anchor="middle")
                )  # fmt: skip
    for value, text in zip(y_ticks, y_texts, strict=True):
        y = py(value)
        parts.append(tag("line", class_="grid", x1=left, x2=plot_right, y1=y, y2=y))
        parts.append(tag("text", escape(text), x=left - 8, y=y + 4, text_anchor="end"))
    parts.append(tag("line", class_="axis", x1=left, x2=plot_right, y1=plot_bottom, y2=plot_bottom))
    x_ticks = chart.x_ticks or ticks(x_low, x_high, 7 if width > 400 else 5)
    for x in [value for value in x_ticks if value == int(value)]:
        parts.append(
            tag("line", class_="axis", x1=px(x), x2=px(x), y1=plot_bottom, y2=plot_bottom + 4)
        )
        parts.append(
            tag("text", f"{x:,.0f}", x=px(x), y=plot_bottom + 17, text_anchor="middle")
        )  # fmt: skip
    parts.append(
        tag("text", escape(chart.x_label), class_="name", x=(left + plot_right) / 2,
            y=plot_bottom + 33, text_anchor="middle")
    )  # fmt: skip
    for x, css, label in chart.marks:
        parts.append(tag("line", class_=f"mark {css}", x1=px(x), x2=px(x), y1=top, y2=plot_bottom))
        parts.append(
            tag("text", escape(label), class_=f"note {css}", x=px(x), y=top - 7,
                text_anchor="middle" if px(x) < plot_right - 14 else "end")
        )  # fmt: skip
    dots = 600 if width > 400 else 240
    upward = list(reversed(chart.lines))  # the first line is the one to see, so it comes on top
    for line in upward:
        parts += _band(line, px, py)
    for line in upward:
        parts += _curve(line.raw, "faint", line.css, px, py, dots)
    for line in upward:
        parts += _bars(line, px, py)
        parts += _curve(line.points, line.look, line.css, px, py, dots)
    if end_labels:
        parts += _end_labels(chart, px, py, top, plot_bottom, plot_right, width)
    parts.append(tag("line", class_="guide", x1=0, x2=0, y1=top, y2=plot_bottom))
    plot = " ".join(coordinate(v) for v in (left, plot_right, x_low, x_high))
    return tag(
        "svg", *parts, class_="plot", viewBox=f"0 0 {width} {height}", role="img",
        aria_labelledby=f"{ident}-t {ident}-d", data_plot=plot,
    )  # fmt: skip


def describe(chart: Chart) -> str:
    """The chart in words, for those who do not see it: where each curve starts, ends and ranges."""
    said = []
    for line in chart.lines:
        there = [y for _, y in line.points if y is not None]
        if line.label and there:
            start, end, low, high = (
                show(value, chart.unit) for value in (there[0], there[-1], min(there), max(there))
            )
            said.append(f"{line.label}: from {start} to {end}, between {low} and {high}.")
    return " ".join(said)


def _curve(
    points: Sequence[Point], look: str, css: str, px: Scale, py: Scale, most: int
) -> Iterable[str]:
    """Polylines between the gaps, and a spot for every point that has no neighbour."""
    pieces: list[list[tuple[str, str]]] = [[]]
    for x, y in thin(points, most):
        if y is None:
            pieces.append([])
        else:
            pieces[-1].append((coordinate(px(x)), coordinate(py(y))))
    spotted = look in ("dots", "rings")
    for piece in pieces:
        if len(piece) > 1:
            kind = "thread" if spotted else look
            corners = " ".join(map(",".join, piece))
            yield tag("polyline", class_=f"curve {kind} {css}", points=corners)
        if spotted or len(piece) == 1:
            kind = "ring" if look == "rings" else "dot"
            for cx, cy in piece:
                yield tag("circle", class_=f"{kind} {css}", cx=cx, cy=cy, r="3.6")


def _bars(line: Line, px: Scale, py: Scale) -> Iterable[str]:
    for x, low, high in line.bars:
        path = f"M{coordinate(px(x))} {coordinate(py(low))}V{coordinate(py(high))}"
        yield tag("path", class_=f"bar {line.css}", d=path)


def _band(line: Line, px: Scale, py: Scale) -> Iterable[str]:
    piece: list[tuple[float, float, float]] = []
    for x, low, high in (*line.band, (0.0, None, None)):
        if low is not None and high is not None:
            piece.append((x, low, high))
            continue
        if len(piece) > 1:
            there = [f"{coordinate(px(x))},{coordinate(py(high))}" for x, _, high in piece]
            back = [f"{coordinate(px(x))},{coordinate(py(low))}" for x, low, _ in reversed(piece)]
            yield tag("polygon", class_=f"band {line.css}", points=" ".join(there + back))
        piece = []


def _end_labels(
    chart: Chart, px: Scale, py: Scale, top: float, bottom: float, edge: float, width: int
) -> Iterable[str]:
    """Labels beyond the plot's right edge, pushed apart where curves end together."""
    ends = []
    for line in chart.lines:
        there = [(x, y) for x, y in line.points if y is not None]
        if line.beside in ("above", "below"):
            for x, y in there:
                up = -10 if line.beside == "above" else 19
                yield tag(
                    "text",
                    escape(line.label),
                    class_=f"label {line.css}",
                    x=px(x),
                    y=py(y) + up,
                    text_anchor="middle" if px(x) < width - 40 else "end",
                )
        elif line.beside == "end" and line.label and there:
            ends.append((py(there[-1][1]), px(there[-1][0]), line))
    ends.sort(key=lambda end: end[0])
    gap = FONT + 2.5
    places = spread([end[0] for end in ends], gap, top + 4, bottom)
    room = max(int((width - edge - 10) / text_width("n", FONT, bold=True)), 8)
    for place, (y, x, line) in zip(places, ends, strict=True):
        text = line.label if len(line.label) <= room else line.label[: room - 1] + "…"
        if abs(place - y) > 5 or edge - x > 8:
            yield tag("line", class_="leader", x1=x + 2, y1=y, x2=edge + 7, y2=place)
        yield tag("text", escape(text), class_=f"label {line.css}", x=edge + 9, y=place + 4)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near ``wanted`` (both ascending), ``gap`` apart, in [low, high] if they fit."""
    places: list[float] = []
    for want in wanted:
        places.append(max(want, low if not places else places[-1] + gap))
    limit = high
    for index in range(len(places) - 1, -1, -1):
        places[index] = min(places[index], limit)
        limit = places[index] - gap
    return places
