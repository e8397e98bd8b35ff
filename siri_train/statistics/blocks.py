"""Draws of steps that follow one another, for figures of a run over its steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def draw_blocks(steps: int, block: int, draws: int, seed: int) -> NDArray[np.float64]:
    """How often each step is in each draw of whole blocks (circular block bootstrap).

    Neighbouring steps are alike. Steps drawn one by one would give intervals that are too narrow.

    Args:
        steps: how many there are.
        block: steps that are drawn together; the last step is followed by the first.
        draws: how many.
        seed: the same seed gives the same draws.

    Returns:
        Counts ``[draws, steps]``; their rows sum to at least ``steps``, all to the same.

    Raises:
        ValueError: a number below 1, or a block of more than all steps.
    """
    if min(steps, block, draws) < 1 or block > steps:
        raise ValueError(
            f"got {steps} steps, blocks of {block} and {draws} draws; takes at least 1 of each, "
            "and blocks of at most all steps"
        )
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, steps, size=(draws, -(-steps // block)))
    drawn = (starts[:, :, None] + np.arange(block)) % steps
    drawn += steps * np.arange(draws)[:, None, None]
    counts = np.bincount(drawn.ravel(), minlength=draws * steps)
    return counts.reshape(draws, steps).astype(np.float64)
