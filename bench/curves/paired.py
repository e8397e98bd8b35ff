"""How far two series of the same steps are apart, with an interval by a bootstrap of blocks.

Neighbouring steps of a run are alike, so single steps drawn with replacement would give too narrow
an interval. Drawn are blocks of neighbouring steps, and both series at the same steps.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

Series = Sequence[float | None]


class Paired(NamedTuple):
    """The distance of two series, as :func:`paired` finds it.

    Args:
        difference: mean of other - first.
        low: lower end of its 95 % interval.
        high: upper end.
        distance: mean of abs(other - first).
        steps: at which both series have a value.
    """

    difference: float
    low: float
    high: float
    distance: float
    steps: int


def paired(first: Series, other: Series, *, block: int = 10, draws: int = 4000) -> Paired | None:
    """The mean difference of two series, its interval, and their mean distance.

    Steps at which one series has no value are left out. None where there are no others.

    Args:
        first: a value a step, or None.
        other: the same steps of the other run.
        block: steps of a block; a block that begins near the end goes on at the beginning.
        draws: of the bootstrap; its seed is fixed.

    Raises:
        ValueError: series of different lengths, or a block or draws below 1.
    """
    if block < 1 or draws < 1:
        raise ValueError(f"block ({block}) and draws ({draws}) are at least 1")
    gaps = [
        None if a is None or b is None else b - a for a, b in zip(first, other, strict=True)
    ]  # fmt: skip
    known = [gap for gap in gaps if gap is not None]
    if not known:
        return None
    block = min(block, len(gaps))
    around = [*gaps, *gaps[:block]]
    sums = list(accumulate((gap or 0.0 for gap in around), initial=0.0))
    counts = list(accumulate((gap is not None for gap in around), initial=0))
    blocks = [
        (sums[start + block] - sums[start], counts[start + block] - counts[start])
        for start in range(len(gaps))
    ]
    generator = random.Random(0)
    means: list[float] = []
    while len(means) < draws:
        drawn = generator.choices(blocks, k=-(-len(gaps) // block))
        if count := sum(n for _, n in drawn):
            means.append(sum(total for total, _ in drawn) / count)
    means.sort()
    return Paired(
        difference=sum(known) / len(known),
        low=means[int(0.025 * draws)],
        high=means[min(int(0.975 * draws), draws - 1)],
        distance=sum(map(abs, known)) / len(known),
        steps=len(known),
    )
