"""The entropy's own band: where it lay in the first cycle."""

from __future__ import annotations

from .data import Row, number
from .scale import Point, running_mean

SETTLED = 0.25
"""The band begins behind this share of the first cycle: at the start entropy falls by learning."""
_WIDER, _AT_LEAST = 0.5, 0.15
"""The band reaches the first share of its height beyond what was seen, on either side; at least the
second share of its mean, as few steps show little of what noise does."""
_LOWEST = 1 / 3
"""The band ends at this share of the least that was seen, where its reach is further down: an
entropy that collapses must be able to leave it."""
WINDOW = 5
"""Steps of the running mean that is looked at."""
_LEAST = 3


def entropy_band(rows: list[Row]) -> tuple[float, float] | None:
    """The range of a run's entropies in its first cycle, without the start, and some room.

    Args:
        rows: of ``metrics.jsonl``, by step.

    Returns:
        (low, high) in nats; None under a constant cap, with too few values, or while the first
        cycle lasts: there is nothing to compare it with.
    """
    first = _first_cycle(rows)
    if first is None:
        return None
    means = _means(rows)
    seen = [y for x, y in means if SETTLED * first <= x < first and y is not None]
    behind = sum(x >= first for x, _ in means)
    if len(seen) < _LEAST or behind < WINDOW:
        return None
    return band_around(min(seen), max(seen), sum(seen) / len(seen))


def band_around(least: float, most: float, mean: float) -> tuple[float, float]:
    """The band of the entropies seen in a first cycle.

    Args:
        least: the smallest of them, in nats.
        most: the largest.
        mean: their mean.

    Returns:
        (low, high) in nats.
    """
    room = max(_WIDER * (most - least), _AT_LEAST * mean)
    return max(least - room, _LOWEST * least), most + room


def outside(rows: list[Row], band: tuple[float, float]) -> tuple[int, int, int]:
    """How many steps behind the first cycle lie (below, above) its band, and how many there are.

    Args:
        rows: as `entropy_band` takes them.
        band: its result.
    """
    first = _first_cycle(rows) or 0
    later = [y for x, y in _means(rows) if x >= first and y is not None]
    return sum(y < band[0] for y in later), sum(y > band[1] for y in later), len(later)


def _first_cycle(rows: list[Row]) -> int | None:
    """The steps of the first cycle, where another one follows."""
    if not any(row.get("phase") in ("compression", "expansion") for row in rows):
        return None
    starts: dict[float, int] = {}
    for row in rows:
        cycle = number(row.get("cycle"))
        if cycle is not None:
            starts.setdefault(cycle, row["step"])
    ordered = [starts[cycle] for cycle in sorted(starts)]
    return ordered[1] - ordered[0] if len(ordered) > 1 and ordered[1] > ordered[0] else None


def _means(rows: list[Row]) -> list[Point]:
    points = [(float(row["step"]), number(row.get("entropy"))) for row in rows]
    return running_mean([point for point in points if point[1] is not None], WINDOW)
