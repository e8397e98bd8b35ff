"""pass@k without bias, from more samples than k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of k answers is right, without bias.

    1 - C(n-c, k) / C(n, k): the share of all choices of k of the n samples that hold a right one
    (Chen et al. 2021, arXiv 2107.03374).

    Args:
        n: samples of the question.
        c: how many of them are right.
        k: how many are chosen; at most n.

    Raises:
        ValueError: c or k outside of their bounds.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"got n={n}, c={c}, k={k}; takes c from 0 to n and k from 1 to n")
    return float(_curve(n, c)[k - 1])


def mean_pass_at(n: int, right: Sequence[int], ks: Sequence[int]) -> list[float]:
    """The mean of :func:`pass_at_k` over questions, for several k.

    Args:
        n: samples of each question.
        right: for each question how many of them are right, 0 to n; at least one question.
        ks: from 1 to n.
    """
    counts = np.bincount(np.asarray(right), minlength=n + 1)
    places = np.asarray(ks) - 1
    total = sum(int(counts[c]) * _curve(n, int(c))[places] for c in np.flatnonzero(counts))
    return [float(value) for value in total / len(right)]


def doubled(n: int) -> Iterator[int]:
    """1, 2, 4, ... below n, and n: the k that an evaluation of n samples reports."""
    k = 1
    while k < n:
        yield k
        k *= 2
    yield n


def _curve(n: int, c: int) -> np.ndarray:
    """pass@k for k = 1 to n; after k wrong answers the next is wrong with (n-c-k) / (n-k)."""
    taken = np.arange(n, dtype=np.float64)
    wrong = np.clip(n - c - taken, 0, None) / (n - taken)
    return 1 - np.cumprod(wrong)
