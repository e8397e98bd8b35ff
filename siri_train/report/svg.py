"""Line charts as inline SVG: the layout is here, the markup in templates/chart.svg.

The page draws its own charts and loads no charting library. Measured on 2026-11-27 with ten charts
over 1,920 steps of three runs, in Chromium under a policy without 'unsafe-eval' (this page with its
tables and samples: 1.8 MB for three runs, 0.7 MB for one, no package beyond jinja2):

- bokeh 3.9.2: 1.7 MB (1.3 MB of it the library), runs without eval, 11 packages with 70 MB beside
  numpy, 1.1 s to import. The best of them, and what we would take if the page needed its script.
- plotly 7.1.0: 6.0 MB (4.8 MB the library), 64 MB installed. Over the page's limit of 3 MB.
- altair 6.3.0 with vl-convert: 6.0 MB, 36 s to write, and it needs eval: the page stays empty.
- uPlot by uplot-python 1.1.1: 1.0 MB, runs without eval; the package brings IPython and 18 others.
  youplot carries it without dependencies, but is one release with a placeholder for its address.
- dygraphs 0.0.14 carries the library of 2014; pyecharts carries none and loads it at view time.

All of them draw in the browser alone. Where scripts do not run (previews of mail and of build
artifacts, an untrusted notebook) their pages show no chart, and there are no words for a screen
reader. Here the picture is in the page; the script adds values, zoom and smoothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .heat import Heat
from .many import MOST_FAINT, PICTURE_LINES
from .mark_names import anchors, extent_of, phase_names
from .markup import coordinate, fill
from .run_looks import marker
from .scale import Point, rounded, show, text_width, thin, ticks

FONT = 12.0
MOST_ENDS = 14
"""Curves whose labels stand at their ends; with more there is no room, and a legend names them."""
_NOISE = 1e-9
"""A chart with nothing larger shows zero: an axis of 6e-12 would draw rounding errors."""
_ZERO_AXIS = 1e-3
Scale = Callable[[float], float]
Parts = dict[str, Any]


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
            (the same, hollow), or ``lane`` (thick bars).
        raw: single steps drawn faintly behind ``points``, which are then their running mean.
        band: (x, low, high) shaded behind the curve.
        bars: (x, low, high) error bars.
        window: steps of the running mean that made ``points`` from ``raw``; 1: no mean yet, the
            reader of the page may choose one; 0: never smoothed.
        run: the run's place in the folder, by which the page switches its curves on and off.
        words: one a point, shown in place of its value; empty: values are shown.
        waiting: there, but not drawn until the reader of the page switches it on.
    """

    label: str
    points: Sequence[Point]
    css: str
    look: str = "line"
    raw: Sequence[Point] = ()
    band: Sequence[tuple[float, float | None, float | None]] = ()
    bars: Sequence[tuple[float, float, float]] = ()
    beside: str = "end"
    window: int = 0
    run: int = 0
    words: Sequence[str] = ()
    waiting: bool = False

    @property
    def values(self) -> Sequence[Point]:
        """The values of the single steps, as metrics.jsonl and eval.jsonl have them."""
        return self.raw or self.points


@dataclass(frozen=True)
class Chart:
    """A chart's content; `render` draws it at any size.

    Attributes:
        title: also the accessible name.
        lines: at least one of them with a point.
        unit: ``percent``, ``tokens`` or ``number``; how values are written.
        spans: (first x, last x, css class, label) shaded behind the curves.
        marks: (x, css class, label) thin vertical lines.
        heat: a map of histograms behind the curves.
        x_ticks, y_ticks: where the axes are labelled; round numbers if empty.
        y_names: text of each of ``y_ticks`` in place of its number: the chart has lanes.
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
    y_names: Sequence[str] = ()
    heat: Heat | None = None


def extent(chart: Chart) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """((x low, x high), (y low, y high)) of everything in the chart, or None if it is empty."""
    xs: list[float] = []
    ys: list[float] = []
    shown = [line for line in chart.lines if not line.waiting] or chart.lines
    xs += [x for line in chart.lines if line.waiting for x, y in line.values if y is not None]
    for line in shown:
        for x, y in (*line.points, *line.raw):
            if y is not None:
                xs.append(x)
                ys.append(y)
        for x, low, high in (*line.band, *line.bars):
            if low is not None and high is not None:
                xs.append(x)
                ys += (low, high)
    if chart.heat is not None:
        xs += [chart.heat.edges[0], chart.heat.edges[-1]]
        ys += [0.0, chart.heat.top]
    if not ys:
        return None
    xs += [mark[0] for mark in chart.marks]
    xs += [x for span in chart.spans for x in span[:2]]
    x_low, x_high = min(xs), max(xs)
    x_high = x_high if x_high > x_low else x_low + 1
    low, high = min(ys), max(ys)
    if 0 < max(abs(low), abs(high)) < _NOISE and not chart.y_ticks:
        return (x_low, x_high), (0.0 if low >= 0 else -_ZERO_AXIS, _ZERO_AXIS)
    if chart.y_ticks:  # the labels need not lie at the ends, so room is left for text there
        pad = 0.6 if chart.y_names else (high - low) * 0.16 or 1.0
        return (x_low, x_high), (low - pad, high + pad)
    if chart.floor is not None and chart.from_floor:
        low = min(low, chart.floor)
    low, high = rounded(low, high, 5)
    if chart.floor is not None and min(ys) >= chart.floor:
        low = max(low, chart.floor)
    if chart.ceiling is not None and max(ys) <= chart.ceiling:
        high = min(high, chart.ceiling)
    return (x_low, x_high), (low, high)


def render(chart: Chart, width: int, height: int, ident: str, end_labels: bool = True) -> Markup:
    """The chart as one ``<svg>`` element.

    Args:
        chart: with at least one finite value (see `extent`).
        width: of the view box; the element itself scales to its container.
        height: of the view box.
        ident: unique in the page; the title's and description's ids are made from it.
        end_labels: write each curve's label at its right end. Without, the caller has a legend.

    Raises:
        ValueError: if the chart has no finite value.
    """
    bounds = extent(chart)
    if bounds is None:
        raise ValueError("chart: got no finite value; takes at least one")
    (x_low, x_high), (y_low, y_high) = bounds
    y_ticks = list(chart.y_ticks) or ticks(y_low, y_high, 6 if height > 200 else 4)
    y_step = y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else None
    y_texts = [show(value, chart.unit, y_step) for value in y_ticks]
    if chart.y_names:
        most = int(0.42 * width / text_width("n", FONT))
        y_texts = [cut(name, most) for name in chart.y_names]
    shown = [line for line in chart.lines if not line.waiting]
    end_labels = end_labels and len(shown) <= MOST_ENDS
    labels = [line.label for line in shown if line.beside == "end"] if end_labels else []
    left = max(text_width(text, FONT) for text in y_texts) + 12
    margin = max([text_width(text, FONT, bold=True) for text in labels], default=2.0) + 14
    right, bottom = width - min(margin, width * 0.36), height - 38.0
    top = 22.0 if chart.spans or chart.marks else 10.0

    def px(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (right - left)

    def py(y: float) -> float:
        return bottom - (y - y_low) / (y_high - y_low) * (bottom - top)

    spans = [
        (css, px(max(start, x_low)), px(min(end, x_high)), label)
        for start, end, css, label in chart.spans
    ]
    x_ticks = chart.x_ticks or ticks(x_low, x_high, 7 if width > 400 else 5)
    sides = anchors([px(x) for x, _, _ in chart.marks], right)
    corners = (600 if width > 400 else 240) * PICTURE_LINES // max(len(shown), PICTURE_LINES)
    faint = len({line.run for line in chart.lines}) <= MOST_FAINT
    lines = [_drawn(line, px, py, corners, faint) for line in chart.lines]
    beside = list(_beside(chart, px, py, width)) if end_labels else []
    ends = list(_end_labels(chart, px, py, top, bottom, right, width)) if end_labels else []
    return fill(
        "chart.svg",
        chart=chart,
        ident=ident,
        words=describe(chart),
        width=width,
        height=height,
        box=(left, right, top, bottom),
        limits=" ".join(f"{value!r}" for value in (x_low, x_high, y_low, y_high)),
        y_ticks=[(py(y), text) for y, text in zip(y_ticks, y_texts, strict=True)],
        x_ticks=[(px(x), f"{x:,.0f}") for x in x_ticks if x == int(x)],
        spans=[span for span in spans if span[2] > span[1]],
        cells=_cells(chart.heat, px, py, y_high),
        names=phase_names(
            spans,
            [
                extent_of(px(x), anchor, label)
                for (x, _, label), anchor in zip(chart.marks, sides, strict=True)
            ],
        ),
        marks=[
            (px(x), css, label, anchor)
            for (x, css, label), anchor in zip(chart.marks, sides, strict=True)
        ],
        # the first line is the one to see, so it comes on top
        lines=list(reversed(list(enumerate(lines)))),
        beside=beside,
        ends=ends,
    )


def describe(chart: Chart) -> str:
    """The chart in words for screen readers: first, last, lowest and highest of each curve."""
    said = []
    for line in chart.lines:
        there = [y for _, y in line.points if y is not None]
        if line.waiting:
            continue
        if line.label and there and line.words:
            said.append(f"{line.label}: {', '.join(dict.fromkeys(filter(None, line.words)))}.")
        elif line.label and there:
            start, end, low, high = (
                show(value, chart.unit) for value in (there[0], there[-1], min(there), max(there))
            )
            said.append(f"{line.label}: from {start} to {end}, between {low} and {high}.")
    return " ".join(said)


def _cells(heat: Heat | None, px: Scale, py: Scale, most: float) -> list[tuple[int, str]]:
    """(level, outline of all its rectangles) of each shade."""
    if heat is None:
        return []
    return [
        (
            level,
            "".join(
                f"M{coordinate(px(a))} {coordinate(py(low))}H{coordinate(px(b))}"
                f"V{coordinate(py(min(high, most)))}H{coordinate(px(a))}Z"
                for a, b, low, high in boxes
            ),
        )
        for level, boxes in heat.cells()
    ]


def _drawn(line: Line, px: Scale, py: Scale, most: int, faint: bool) -> Parts:
    """A line for the template: corners of its curves as text, its spots as coordinates.

    A line that waits has only its points, unseen: the script draws its curve.
    """
    # a mean over many steps has no spikes to keep
    most = len(line.points) + 1 if line.look == "lane" else most  # its gaps are all wanted
    pieces = _pieces(line.points, px, py, most // 2 if line.window > 5 else most)
    spotted = line.look in ("dots", "rings")
    if line.waiting and not spotted:
        return {**dict.fromkeys(("curves", "spots", "faint", "bands", "bars"), ()),
                "css": line.css, "look": line.look, "spot": "dot", "marker": "",
                "waiting": True}  # fmt: skip
    behind = line.raw if faint else ()
    return {
        "css": line.css,
        "look": "thread" if spotted else line.look,
        "spot": "ring" if line.look == "rings" else "dot",
        "marker": marker(line.css),
        "waiting": line.waiting,
        "curves": [_corners(piece) for piece in pieces if len(piece) > 1],
        # a point without a neighbour would be no curve at all
        "spots": [place for piece in pieces if spotted or len(piece) == 1 for place in piece],
        "faint": [_corners(p) for p in _pieces(behind, px, py, most * 2 // 3) if len(p) > 1],
        "bands": list(_bands(line, px, py)),
        "bars": [(px(x), py(low), py(high)) for x, low, high in line.bars],
    }


def _pieces(
    points: Sequence[Point], px: Scale, py: Scale, most: int
) -> list[list[tuple[float, float]]]:
    """The stretches between gaps, in coordinates of the picture."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in thin(points, most):
        if y is None:
            pieces.append([])
        else:
            pieces[-1].append((px(x), py(y)))
    return pieces


def _corners(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in places)


def _bands(line: Line, px: Scale, py: Scale) -> Iterator[str]:
    piece: list[tuple[float, float, float]] = []
    for x, low, high in (*line.band, (0.0, None, None)):
        if low is not None and high is not None:
            piece.append((x, low, high))
            continue
        if len(piece) > 1:
            there = [(px(x), py(high)) for x, _, high in piece]
            yield _corners(there + [(px(x), py(low)) for x, low, _ in reversed(piece)])
        piece = []


def _beside(chart: Chart, px: Scale, py: Scale, width: int) -> Iterator[Parts]:
    """Labels above or below every point of a line."""
    for index, line in enumerate(chart.lines):
        for x, y in line.points:
            if line.beside in ("above", "below") and y is not None:
                up = -10 if line.beside == "above" else 19
                anchor = "middle" if px(x) < width - 40 else "end"
                yield {"line": index, "css": line.css, "text": line.label, "anchor": anchor,
                       "x": px(x), "y": py(y) + up}  # fmt: skip


def _end_labels(
    chart: Chart, px: Scale, py: Scale, top: float, bottom: float, edge: float, width: int
) -> Iterator[Parts]:
    """Labels beyond the plot's right edge, pushed apart where curves end together."""
    ends = []
    for index, line in enumerate(chart.lines):
        there = [(x, y) for x, y in line.points if y is not None]
        if line.beside == "end" and line.label and there and not line.waiting:
            ends.append((py(there[-1][1]), px(there[-1][0]), index, line))
    ends.sort(key=lambda end: end[0])
    gap = FONT + 2.5
    places = spread([end[0] for end in ends], gap, top + 4, bottom)
    room = max(int((width - edge - 10) / text_width("n", FONT, bold=True)), 8)
    for place, (y, x, index, line) in zip(places, ends, strict=True):
        text = cut(line.label, room)
        led = abs(place - y) > 5 or edge - x > 8
        yield {"line": index, "css": line.css, "text": text, "x": edge + 9, "y": place + 4,
               "leader": (x + 2, y, edge + 7, place) if led else None}  # fmt: skip


def cut(text: str, most: int) -> str:
    """``text`` with at most so many characters; "…" stands for what is left out."""
    return text if len(text) <= most else text[: max(most - 1, 0)] + "…"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones that keep their distance, in [low, high] if they fit.

    Args:
        wanted: ascending.
        gap: least distance of neighbours.
        low: smallest position.
        high: largest position.

    Returns:
        One position for each, ascending.
    """
    places: list[float] = []
    for want in wanted:
        places.append(max(want, low if not places else places[-1] + gap))
    limit = high
    for index in range(len(places) - 1, -1, -1):
        places[index] = min(places[index], limit)
        limit = places[index] - gap
    return places
