"""Draws of questions, with replacement, for the bootstrap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_AT_ONCE = 1 << 22
"""Drawn questions in memory together; the draws do not depend on it."""


def draw_questions(questions: int, draws: int, seed: int) -> Iterator[Floats]:
    """How often each question is in each draw.

    Args:
        questions: how many there are; every draw takes as many, with replacement.
        draws: how many.
        seed: the same seed gives the same draws.

    Yields:
        Counts ``[some draws, questions]``; their rows sum to ``questions``.

    Raises:
        ValueError: no question, or no draw.
    """
    if questions < 1 or draws < 1:
        raise ValueError(f"got {questions} questions and {draws} draws; takes at least 1 of each")
    rng = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // questions)
    for first in range(0, draws, at_once):
        rows = min(at_once, draws - first)
        drawn = rng.integers(0, questions, size=(rows, questions))
        drawn += questions * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * questions)
        yield counts.reshape(rows, questions).astype(np.float64)


def drawn_means(values: ArrayLike, draws: int, seed: int) -> Floats:
    """The means of drawn questions.

    Args:
        values: ``[questions, figures]``; the figures of a question are drawn together.
        draws: how many.
        seed: of the draws.

    Returns:
        ``[draws, figures]``.

    Raises:
        ValueError: see :func:`finite` and :func:`draw_questions`.
    """
    array = finite(values, "values", 2)
    parts = [counts @ array for counts in draw_questions(len(array), draws, seed)]
    return np.concatenate(parts) / len(array)


def finite(values: ArrayLike, name: str, axes: int) -> Floats:
    """``values`` as an array of finite numbers.

    Args:
        values: numbers, nested ``axes`` deep.
        name: of the argument, for messages.
        axes: number of axes.

    Raises:
        ValueError: another number of axes, rows of different lengths, no value at all, or a value
            that is no finite number.
    """
    try:
        array: NDArray[Any] = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}; takes rows of numbers of one length") from error
    if array.ndim != axes or not array.size:
        raise ValueError(
            f"{name}: got the shape {list(array.shape)}; takes {axes} ax{'e' if axes > 1 else 'i'}s"
            ", none of them empty"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: got a value that is not finite; leave such questions out")
    return array
