"""The entropy's own band: where it lay in the first cycle."""

from __future__ import annotations

from .data import Row, number

LEAST = 8
"""Steps of a first cycle that make a band."""
_OUT = 5
"""Per cent of the steps that may lie beyond each bound."""


def entropy_band(rows: list[Row]) -> tuple[float, float] | None:
    """The range of the middle 90 % of a run's entropies in its first cycle.

    One step in 20 may lie below it and one in 20 above, so that a single odd step sets no bound.

    Args:
        rows: of ``metrics.jsonl``, by step.

    Returns:
        (low, high) in nats; None without a second cycle, which alone can be compared with the
        first, and where the first has fewer than `LEAST` values.
    """
    cycles = [number(row.get("cycle")) for row in rows]
    if not any(cycle is not None and cycle > 1 for cycle in cycles):
        return None
    moving = any(row.get("phase") in ("compression", "expansion") for row in rows)
    first = [
        value
        for cycle, row in zip(cycles, rows, strict=True)
        if cycle == 1 and (value := number(row.get("entropy"))) is not None
    ]
    if not moving or len(first) < LEAST:
        return None
    first.sort()
    cut = len(first) * _OUT // 100
    return first[cut], first[len(first) - 1 - cut]


def outside(rows: list[Row], band: tuple[float, float]) -> tuple[int, int, int]:
    """How many steps behind the first cycle lie (below, above) its band, and how many there are.

    Args:
        rows: as `entropy_band` takes them.
        band: what it gave.
    """
    later = [
        value
        for row in rows
        if (number(row.get("cycle")) or 0) > 1 and (value := number(row.get("entropy"))) is not None
    ]
    below, above = (sum(v < band[0] for v in later), sum(v > band[1] for v in later))
    return below, above, len(later)
