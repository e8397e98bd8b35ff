"""Many histograms side by side: one column a step or several, darker where more responses are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

LEVELS = 6
"""Shades of a map."""


@dataclass(frozen=True)
class Heat:
    """A map over x and y.

    Attributes:
        edges: of the columns, one more than there are columns.
        width: of a row, which begin at y = 0; the last row takes all above.
        shares: of each column, the share of its responses in each row.
        css: colour class.
        unit: what y counts, in words.
    """

    edges: Sequence[float]
    width: float
    shares: Sequence[Sequence[float]]
    css: str
    unit: str = "tokens"

    @property
    def top(self) -> float:
        """The upper edge of the highest row that holds something."""
        used = [i for column in self.shares for i, share in enumerate(column) if share > 0]
        return (max(used, default=0) + 1) * self.width

    def cells(self) -> Iterator[tuple[int, list[tuple[float, float, float, float]]]]:
        """(level, [(x, x end, y, y end), ...]) of each shade, from 1 to `LEVELS`.

        Equal neighbours in a column are one rectangle. The shade follows the root of the share, so
        that a tail of the lengths is seen beside their peak.
        """
        most = max((share for column in self.shares for share in column), default=0.0) or 1.0
        found: dict[int, list[tuple[float, float, float, float]]] = {}
        for place, column in enumerate(self.shares):
            left, right = self.edges[place], self.edges[place + 1]
            levels = [math.ceil(LEVELS * math.sqrt(share / most) - 1e-9) for share in column]
            start = 0
            for row in range(1, len(levels) + 1):
                if row == len(levels) or levels[row] != levels[start]:
                    if levels[start] > 0:
                        box = (left, right, start * self.width, row * self.width)
                        found.setdefault(levels[start], []).append(box)
                    start = row
        yield from sorted(found.items())

    def to_json(self) -> dict[str, Any]:
        """For the script of the page: the shares in per mille."""
        return {
            "edges": list(self.edges),
            "width": self.width,
            "shares": [[round(1000 * share) for share in column] for column in self.shares],
            "unit": self.unit,
        }
