"""A figure's history as one line of text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.-=+*%#"
_MOST = 512


class History:
    """All values of a figure in little memory: when there are many, neighbours are averaged.

    Attributes:
        means: at most 512 numbers, each the mean of equally many values; the last one of fewer.
        low: the lowest value, infinity before the first.
        high: the highest value, minus infinity before the first.
    """

    def __init__(self) -> None:
        self.means: list[float] = []
        self.low, self.high = float("inf"), -float("inf")
        self._each = 1
        self._last = 0

    def add(self, value: float) -> None:
        """Append a finite number."""
        self.low, self.high = min(self.low, value), max(self.high, value)
        if self.means and self._last < self._each:
            self._last += 1
            self.means[-1] += (value - self.means[-1]) / self._last
            return
        if len(self.means) == _MOST:
            self.means = [
                (a + b) / 2 for a, b in zip(self.means[::2], self.means[1::2], strict=True)
            ]
            self._each *= 2
        self.means.append(value)
        self._last = 1


def sparkline(
    values: Sequence[float],
    width: int,
    blocks: str = BLOCKS,
    bounds: tuple[float, float] | None = None,
) -> str:
    """The values as text at most ``width`` long.

    More values than that are averaged in equal parts, so that the whole history shows.

    Args:
        values: in order.
        width: characters.
        blocks: from the lowest to the highest.
        bounds: the values of the lowest and the highest block; None: those of what is drawn.

    Raises:
        ValueError: a width below 1, or less than two blocks.
    """
    if width < 1 or len(blocks) < 2:
        raise ValueError(f"sparkline: width {width} and {len(blocks)} blocks; takes 1 and 2")
    count = min(width, len(values))
    if not count:
        return ""
    parts = [len(values) * i // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(parts)]
    low, high = bounds or (min(means), max(means))
    span, top = high - low, len(blocks) - 1
    return "".join(
        blocks[min(max(round((v - low) / span * top), 0), top) if span > 0 else top // 2]
        for v in means
    )
