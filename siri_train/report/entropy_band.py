"""The entropy's own band: where it lay in the first cycle.

One definition, for the page's chart and for the verdict: `seen`.
"""

from __future__ import annotations

from typing import NamedTuple

from .data import Row, number
from .scale import running_mean

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


class Seen(NamedTuple):
    """A run's entropies in running means over `WINDOW` steps, and the band of its first part.

    Args:
        part: "cycle", or of a cap that never moves "third".
        first: steps of that part; the later steps are compared with it.
        steps: of the means.
        means: in nats, one a step that has an entropy.
        band: (low, high) in nats; None while there is nothing to compare it with.
    """

    part: str
    first: int
    steps: tuple[int, ...]
    means: tuple[float, ...]
    band: tuple[float, float] | None

    @property
    def later(self) -> list[tuple[int, float]]:
        """(step, mean) behind the first part."""
        pairs = zip(self.steps, self.means, strict=True)
        return [(step, mean) for step, mean in pairs if step >= self.first]

    @property
    def of_cycle(self) -> tuple[float, float] | None:
        """The band where the cap moves; None under a constant cap."""
        return self.band if self.part == "cycle" else None

    def outside(self) -> tuple[int, int, int]:
        """How many later steps lie (below, above) the band, and how many there are."""
        values = [mean for _, mean in self.later]
        low, high = self.band or (-float("inf"), float("inf"))
        return sum(one < low for one in values), sum(one > high for one in values), len(values)


def seen(rows: list[Row]) -> Seen:
    """The entropies of a run, and their band: the range in its first cycle, with some room.

    The start of that cycle is left out. If the cap never moves, the first third of the steps stands
    for the cycle.

    Args:
        rows: of ``metrics.jsonl``, by step.
    """
    points = [(float(row["step"]), number(row.get("entropy"))) for row in rows]
    means = running_mean([point for point in points if point[1] is not None], WINDOW)
    pairs = [(int(x), y) for x, y in means if y is not None]
    steps, values = tuple(step for step, _ in pairs), tuple(value for _, value in pairs)
    moves = any(row.get("phase") in ("compression", "expansion") for row in rows)
    part = "cycle" if moves else "third"
    first = _first_cycle(rows) if moves else max((rows[-1]["step"] + 1) // 3, 1) if rows else 1
    if first is None:  # the first cycle lasts
        return Seen(part, rows[-1]["step"] + 1, steps, values, None)
    settled = [value for step, value in pairs if SETTLED * first <= step < first]
    behind = sum(step >= first for step in steps)
    if len(settled) < _LEAST or behind < WINDOW:
        return Seen(part, first, steps, values, None)
    band = _band_around(min(settled), max(settled), sum(settled) / len(settled))
    return Seen(part, first, steps, values, band)


def _band_around(least: float, most: float, mean: float) -> tuple[float, float]:
    """(low, high) in nats around the least, the most and the mean of a first cycle."""
    room = max(_WIDER * (most - least), _AT_LEAST * mean)
    return max(least - room, _LOWEST * least), most + room


def _first_cycle(rows: list[Row]) -> int | None:
    """The steps of the first cycle, where another one follows."""
    starts: dict[float, int] = {}
    for row in rows:
        cycle = number(row.get("cycle"))
        if cycle is not None:
            starts.setdefault(cycle, row["step"])
    ordered = [starts[cycle] for cycle in sorted(starts)]
    return ordered[1] - ordered[0] if len(ordered) > 1 and ordered[1] > ordered[0] else None
