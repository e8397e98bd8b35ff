"""The accuracy-length plane: each evaluation is a point, each run a path over training."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from siri_train.statistics.pareto import front

from .markup import coordinate, fill
from .run_looks import marker
from .scale import rounded, show, text_width, ticks
from .svg import FONT

Box = tuple[float, float, float, float]

_BELOW = 0.1
"""How far below the named checkpoints a point of the front may lie and still be in the picture."""
BETTER = "↖ better: right more often, with fewer tokens"
"""Written above the picture."""
_COVERED = 0.04
"""Share of a name that another name may cover: their boxes are higher than most letters."""


@dataclass(frozen=True)
class Spot:
    """One evaluation on the plane.

    Attributes:
        tokens, accuracy: its place.
        bounds: interval of the accuracy.
        css: colour class.
        tip: what it is, in words, for tooltips and screen readers.
        label: written beside it; empty for the points along the way.
        run: place of its run on the page, with which it is switched off; None if not known.
    """

    tokens: float
    accuracy: float
    bounds: tuple[float, float] | None
    css: str
    tip: str
    label: str = ""
    run: int | None = None


def plane(
    paths: Sequence[tuple[str, Sequence[Spot]]],
    named: Sequence[Spot],
    width: int,
    height: int,
    ident: str,
    *,
    runs: Sequence[int] | None = None,
    hidden: Collection[int] = (),
) -> Markup:
    """Accuracy against mean response tokens as one ``<svg>``.

    Args:
        paths: a run's colour class and its evaluations in order of step, joined by arrows.
        named: the spots to label (start, constant-cap, siri-low, siri-high), drawn on top.
            What another spot dominates is grey; the others are joined by the front's steps.
        width: of the view box.
        height: of the view box.
        ident: unique in the page.
        runs: the place on the page of each path's run; None: they are all there, in order.
        hidden: places of runs that are there unseen, until they are switched on.

    Raises:
        ValueError: if there is no spot at all.
    """
    every = [spot for _, path in paths for spot in path] + list(named)
    if not every:
        raise ValueError("named: got no spots; takes at least one, here or in paths")
    best = {
        (every[k].tokens, every[k].accuracy)
        for k in front([(spot.tokens, spot.accuracy) for spot in every])
    }
    spots = close_up(named) or every
    if spots is not every:
        lowest = min(spot.accuracy for spot in spots) - _BELOW
        far = {(spot.tokens, spot.accuracy) for spot in named if spot not in spots}
        spots = spots + [
            spot for _, path in paths for spot in path
            if (spot.tokens, spot.accuracy) in best - far and spot.accuracy >= lowest
        ]  # fmt: skip
    ys = [spot.accuracy for spot in spots]
    ys += [bound for spot in spots if spot.bounds for bound in spot.bounds]
    xs = [spot.tokens for spot in spots]
    reach = max(xs) - min(xs)
    # the axes end where shares and tokens do, unless an odd value lies beyond
    floor = 0.0 if min(xs) >= 0 else -math.inf
    bottom_y, top_y = 0.0 if min(ys) >= 0 else -math.inf, 1.0 if max(ys) <= 1 else math.inf
    margin = 0.06 if spots is every else 0.15
    x_low, x_high = rounded(min(xs) - margin * reach, max(xs) + margin * reach, 7)
    y_low, y_high = rounded(min(ys), max(ys), 6)
    x_low, y_low, y_high = max(x_low, floor), max(y_low, bottom_y), min(y_high, top_y)
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

    def inside(spot: Spot) -> bool:
        return x_low <= spot.tokens <= x_high and y_low <= spot.accuracy <= y_high

    if spots is not every:
        named = close_up(named)
        paths = [(css, [*filter(inside, path)]) for css, path in paths]

    def beaten(spot: Spot) -> bool:
        return (spot.tokens, spot.accuracy) not in best

    def told(spot: Spot) -> str:
        return spot.tip + (" – dominated" if beaten(spot) else " – on the front")

    taken: list[Box] = []
    drawn = []
    for run, (css, path) in reversed(list(enumerate(paths))):
        places = [(px(spot.tokens), py(spot.accuracy)) for spot in path]
        for one, two in zip(places, places[1:], strict=False):
            pieces = max(1, round(math.dist(one, two) / 8))
            for k in range(1, pieces):
                x, y = (a + (b - a) * k / pieces for a, b in zip(one, two, strict=True))
                taken.append((x - 1.5, y - 1.5, x + 1.5, y + 1.5))
        taken += [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
        corners = " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in places)
        arrows = [_arrow(one, two) for one, two in zip(places, places[1:], strict=False)]
        drawn.append(
            {
                "run": run if runs is None else runs[run],
                "waiting": (run if runs is None else runs[run]) in hidden,
                "css": css,
                "marker": marker(css),
                "corners": corners if len(places) > 1 else "",
                "arrows": [arrow for arrow in arrows if arrow],
                "spots": [
                    (
                        x,
                        y,
                        told(spot),
                        beaten(spot),
                        spot.bounds and (py(spot.bounds[0]), py(spot.bounds[1])),
                    )
                    for spot, (x, y) in zip(path, places, strict=True)
                ],
            }
        )
    bars = []
    for spot in named:
        x, y = px(spot.tokens), py(spot.accuracy)
        taken.append((x - 8, y - 8, x + 8, y + 8))
        if spot.bounds:
            low, high = py(spot.bounds[0]), py(spot.bounds[1])
            bars.append((spot, x, low, high))
            taken.append((x - 5, high, x + 5, low))
    labelled = []
    notes = (0.0, 0.0, 4 + text_width("accuracy", FONT), 18.0)
    names = [notes, (right - text_width(BETTER, FONT), 0.0, right, 18.0)]
    for spot in named:
        x, y = px(spot.tokens), py(spot.accuracy)
        at = _label_place(spot, x, y, taken, names, (left, top - 16, right + 14, bottom))
        dx, dy = (None, None) if at is None else (at[0] - x, at[1] - y)
        labelled.append((spot, x, y, dx, dy, beaten(spot), told(spot)))
    return fill(
        "plane.svg",
        ident=ident,
        better=BETTER,
        words="; ".join(spot.tip for spot in named) or f"{len(every)} evaluations",
        width=width,
        height=height,
        box=(left, right, top, bottom),
        limits=" ".join(f"{value!r}" for value in (x_low, x_high, y_low, y_high)),
        y_ticks=[(py(y), text) for y, text in zip(y_ticks, y_texts, strict=True)],
        x_ticks=[(px(x), show(x, "tokens", x_step)) for x in x_ticks],
        paths=drawn,
        bars=bars,
        named=labelled,
        front=[
            " ".join(f"{coordinate(px(x))},{coordinate(py(y))}" for x, y in piece)
            for piece in steps(sorted(best), (x_low, x_high, y_low, y_high))
        ],
    )


def steps(points: Sequence[tuple[float, float]], box: Box) -> list[list[tuple[float, float]]]:
    """The lower right edge of a front: accuracy holds to the right until the next point's.

    Args:
        points: (tokens, accuracy) of the front, ascending.
        box: (tokens low, high, accuracy low, high) that is drawn.

    Returns:
        The straight pieces inside the box, each with two ends.
    """
    x_low, x_high, y_low, y_high = box
    corners: list[tuple[float, float]] = []
    for x, y in points:
        if corners:
            corners.append((x, corners[-1][1]))
        corners.append((x, y))
    corners += [(max(x_high, x), y) for x, y in corners[-1:]]
    pieces = []
    for one, two in zip(corners, corners[1:], strict=False):
        x1, x2 = max(one[0], x_low), min(two[0], x_high)
        y1, y2 = max(one[1], y_low), min(two[1], y_high)
        if x1 <= x2 and y1 <= y2 and (x1, y1) != (x2, y2):
            pieces.append([(x1, y1), (x2, y2)])
    return pieces


def close_up(named: Sequence[Spot]) -> list[Spot]:
    """The named spots without the start, which lies far from the others and would squash them.

    Args:
        named: all of them.

    Returns:
        Empty where fewer than two others are left: then the picture shows everything.
    """
    others = [spot for spot in named if spot.label != "start"]
    return others if 1 < len(others) < len(named) else []


def _arrow(one: tuple[float, float], two: tuple[float, float]) -> tuple[float, float, str] | None:
    """A small head halfway along a segment that is long enough to show its direction.

    Returns:
        Where its middle is and its corners as seen from there.
    """
    dx, dy = two[0] - one[0], two[1] - one[1]
    length = math.hypot(dx, dy)
    if length < 26:
        return None
    ux, uy = 4 * dx / length, 4 * dy / length
    corners = [(ux, uy), (-ux - 0.9 * uy, -uy + 0.9 * ux), (-ux + 0.9 * uy, -uy - 0.9 * ux)]
    points = " ".join(f"{coordinate(x)},{coordinate(y)}" for x, y in corners)
    return one[0] + dx / 2, one[1] + dy / 2, points


def _label_place(
    spot: Spot, x: float, y: float, taken: list[Box], names: list[Box], frame: Box
) -> tuple[float, float] | None:
    """The place for a spot's name that covers least of what is drawn already.

    None where every place lies on another name, or leaves the picture: it could not be read.
    """
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
        if box[0] < 0 or box[2] > frame[2] + 4:  # of the picture
            continue
        if any(_shared(box, other) > _COVERED * (box[3] - box[1]) * wide for other in names):
            continue
        if best is None or cost < best[0]:
            best = (cost, x + dx, y + dy, box)
    if best is None:
        return None
    taken.append(best[3])
    names.append(best[3])
    return best[1], best[2]


def _shared(one: Box, two: Box) -> float:
    wide = min(one[2], two[2]) - max(one[0], two[0])
    high = min(one[3], two[3]) - max(one[1], two[1])
    return wide * high if wide > 0 and high > 0 else 0.0
