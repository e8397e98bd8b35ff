"""The accuracy-length plane: every evaluation a point, the path they take over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .scale import rounded, show, text_width, ticks
from .svg import FONT, coordinate, escape, tag

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Spot:
    """One evaluation on the plane.

    Attributes:
        tokens, accuracy: its place.
        bounds: interval of the accuracy.
        css: colour class.
        tip: what it is, in words, for tooltips and screen readers.
        label: written beside it; empty for the points along the way.
    """

    tokens: float
    accuracy: float
    bounds: tuple[float, float] | None
    css: str
    tip: str
    label: str = ""


def plane(
    paths: Sequence[tuple[str, Sequence[Spot]]],
    named: Sequence[Spot],
    width: int,
    height: int,
    ident: str,
) -> str:
    """Accuracy against mean response tokens as one ``<svg>``.

    Args:
        paths: a run's colour class and its evaluations in order of step, joined by arrows.
        named: the spots to label (start, constant-cap, siri-low, siri-high), drawn on top.
        width, height: of the view box.
        ident: unique in the page.
    """
    spots = [spot for _, path in paths for spot in path] + list(named)
    if not spots:
        raise ValueError("named: got no spots; takes at least one, here or in paths")
    ys = [spot.accuracy for spot in spots]
    ys += [bound for spot in spots if spot.bounds for bound in spot.bounds]
    xs = [spot.tokens for spot in spots]
    reach = max(xs) - min(xs)
    x_low, x_high = rounded(max(min(xs) - 0.06 * reach, 0.0), max(xs) + 0.06 * reach, 7)
    y_low, y_high = rounded(max(min(ys), 0.0), min(max(ys), 1.0), 6)
    x_low, y_low, y_high = max(x_low, 0.0), max(y_low, 0.0), min(y_high, 1.0)
    y_ticks, x_ticks = ticks(y_low, y_high, 7), ticks(x_low, x_high, 8 if width > 500 else 5)
    y_step = y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else None
    x_step = x_ticks[1] - x_ticks[0] if len(x_ticks) > 1 else None
    y_texts = [show(value, "percent", y_step) for value in y_ticks]
    left = max(text_width(text, FONT) for text in y_texts) + 12
    right, top, bottom = width - 18.0, 34.0, height - 46.0

    def px(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (right - left)

    def py(y: float) -> float:
        return bottom - (min(max(y, y_low), y_high) - y_low) / (y_high - y_low) * (bottom - top)

    title = "Accuracy against mean response tokens"
    said = "; ".join(spot.tip for spot in named) or f"{len(spots)} evaluations"
    parts = [tag("title", title, id=f"{ident}-t"), tag("desc", escape(said), id=f"{ident}-d")]
    for value, text in zip(y_ticks, y_texts, strict=True):
        y = py(value)
        parts.append(tag("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
        parts.append(tag("text", escape(text), x=left - 8, y=y + 4, text_anchor="end"))
    for value in x_ticks:
        x = px(value)
        parts.append(tag("line", class_="grid", x1=x, x2=x, y1=top, y2=bottom))
        text = show(value, "tokens", x_step)
        parts.append(tag("text", text, x=x, y=bottom + 18, text_anchor="middle"))
    parts.append(tag("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom))
    parts.append(
        tag("text", "mean response tokens (at the largest budget)", class_="name",
            x=(left + right) / 2, y=height - 8, text_anchor="middle")
    )  # fmt: skip
    parts.append(tag("text", "accuracy", class_="name", x=4, y=14))
    better = "↖ better: right more often, with fewer tokens"
    parts.append(tag("text", better, class_="note", x=right, y=14, text_anchor="end"))

    taken: list[Box] = []
    for css, path in reversed(paths):
        places = [(px(spot.tokens), py(spot.accuracy)) for spot in path]
        if len(places) > 1:
            corners = " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in places)
            parts.append(tag("polyline", class_=f"curve path {css}", points=corners))
        for one, two in zip(places, places[1:], strict=False):
            parts += _arrow(one, two, css)
            pieces = max(1, round(math.dist(one, two) / 8))
            for k in range(1, pieces):
                x, y = (a + (b - a) * k / pieces for a, b in zip(one, two, strict=True))
                taken.append((x - 1.5, y - 1.5, x + 1.5, y + 1.5))
        for spot, (x, y) in zip(path, places, strict=True):
            taken.append((x - 4, y - 4, x + 4, y + 4))
            parts.append(_spot(spot, x, y, 3.4, "dot small"))
    for spot in named:
        x, y = px(spot.tokens), py(spot.accuracy)
        taken.append((x - 8, y - 8, x + 8, y + 8))
        if spot.bounds:
            a, b = py(spot.bounds[0]), py(spot.bounds[1])
            stem = f"M{coordinate(x)} {coordinate(a)}V{coordinate(b)}"
            caps = "".join(f"M{coordinate(x - 5)} {coordinate(v)}h10" for v in (a, b))
            parts.append(tag("path", class_=f"bar {spot.css}", d=stem + caps))
            taken.append((x - 5, b, x + 5, a))
    for spot in named:
        x, y = px(spot.tokens), py(spot.accuracy)
        parts.append(_spot(spot, x, y, 7.0, "dot big"))
        parts += _label(spot, x, y, taken, (left, top - 16, right + 14, bottom))
    return tag(
        "svg", *parts, class_="plot", viewBox=f"0 0 {width} {height}", role="img",
        aria_labelledby=f"{ident}-t {ident}-d",
    )  # fmt: skip


def _spot(spot: Spot, x: float, y: float, radius: float, look: str) -> str:
    tip = tag("title", escape(spot.tip))
    return tag("circle", tip, class_=f"{look} {spot.css}", cx=x, cy=y, r=radius)


def _arrow(one: tuple[float, float], two: tuple[float, float], css: str) -> list[str]:
    """A small head halfway along a segment that is long enough to show its direction."""
    dx, dy = two[0] - one[0], two[1] - one[1]
    length = math.hypot(dx, dy)
    if length < 26:
        return []
    ux, uy = dx / length, dy / length
    tip = (one[0] + dx * 0.5 + ux * 4, one[1] + dy * 0.5 + uy * 4)
    back = (tip[0] - ux * 8, tip[1] - uy * 8)
    corners = [
        tip,
        (back[0] - uy * 3.6, back[1] + ux * 3.6),
        (back[0] + uy * 3.6, back[1] - ux * 3.6),
    ]
    points = " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in corners)
    return [tag("polygon", class_=f"head {css}", points=points)]


def _label(spot: Spot, x: float, y: float, taken: list[Box], frame: Box) -> list[str]:
    """The spot's name where it covers least of what is there already."""
    size = 14.0
    wide = text_width(spot.label, size, bold=True)
    best: tuple[float, float, float, Box] | None = None
    for rank, (dx, dy) in enumerate(
        [(12, 5), (-12 - wide, 5), (10, -10), (10, 20), (-10 - wide, -10), (-10 - wide, 20),
         (-wide / 2, -16), (-wide / 2, 28), (16, -26), (16, 36),
         (-16 - wide, -26), (-16 - wide, 36)]
    ):  # fmt: skip
        box = (x + dx - 2, y + dy - size + 1, x + dx + wide + 2, y + dy + 4)
        cost = 5 * rank + 2 * sum(_shared(box, other) for other in taken)
        outside = box[0] < frame[0] or box[1] < frame[1] or box[2] > frame[2] or box[3] > frame[3]
        cost += 10_000 if outside else 0
        if best is None or cost < best[0]:
            best = (cost, x + dx, y + dy, box)
    assert best is not None
    taken.append(best[3])
    return [
        tag("text", escape(spot.label), class_=f"label big {spot.css}", x=best[1], y=best[2])
    ]  # fmt: skip


def _shared(one: Box, two: Box) -> float:
    wide = min(one[2], two[2]) - max(one[0], two[0])
    high = min(one[3], two[3]) - max(one[1], two[1])
    return wide * high if wide > 0 and high > 0 else 0.0
