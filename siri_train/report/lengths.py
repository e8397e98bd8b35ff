"""The lengths of a run's responses as a map over its steps: a histogram a column."""

from __future__ import annotations

import math

from .data import Run, number, series
from .heat import Heat
from .readers import Row
from .svg import Chart, Line

COLUMNS = 150
"""Columns of a map at most: about what a wide picture can show."""
MOST_BINS = 512
_Bins = tuple[float, list[float]]


def length_map(run: Run, place: int, title: str, css: str) -> Chart | None:
    """The map of one run, with its cap and its mean response as lines over it.

    Args:
        run: whose rows hold ``response_len_hist``.
        place: the run's place on the page.
        title: of the chart.
        css: its colour class.

    Returns:
        None where no row has a histogram, as of runs before there were any.
    """
    found = [(int(row["step"]), bins) for row in run.metrics if (bins := _bins(row)) is not None]
    if not found:
        return None
    width = max(bins[0] for _, bins in found)
    first, last = found[0][0], found[-1][0] + 1
    count = max(1, min(COLUMNS, last - first))
    columns = [[0.0] * _rows(found, width) for _ in range(count)]
    for step, (own, counts) in found:
        column = columns[(step - first) * count // (last - first)]
        for i, number_of in enumerate(counts):
            row = min(int((i + 0.5) * own / width), len(column) - 1)
            column[row] += number_of
    shares = [[n / sum(column) if sum(column) else 0.0 for n in column] for column in columns]
    edges = [round(first + i * (last - first) / count, 3) for i in range(count + 1)]
    lines = [
        Line("mean", series(run.metrics, "response_len_mean"), "other", window=1, run=place),
        Line("cap", series(run.metrics, "cap"), "cap", "dashed", run=place),
    ]
    return Chart(title, lines, "tokens", heat=Heat(edges, width, shares, css))


def _rows(found: list[tuple[int, _Bins]], width: float) -> int:
    return max(math.ceil(own * len(counts) / width - 1e-9) for _, (own, counts) in found)


def _bins(row: Row) -> _Bins | None:
    """(width, counts) of a row; None where it holds nothing that can be drawn."""
    given = row.get("response_len_hist")
    if not isinstance(given, dict):
        return None
    width, counts = number(given.get("width")), given.get("counts")
    if width is None or not 0 < width < 1e9 or not isinstance(counts, list):
        return None
    if not 0 < len(counts) <= MOST_BINS:
        return None
    amounts = [number(one) for one in counts]
    if any(one is None or one < 0 for one in amounts):
        return None
    there = [one for one in amounts if one is not None]
    return (width, there) if sum(there) > 0 else None
