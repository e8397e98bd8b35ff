"""Functions that the screen's kernels share: draws of a sample, and splits of the vocabulary."""

from __future__ import annotations

import triton
import triton.language as tl

MOST_SPLITS = tl.constexpr(256)  # a power of two


@triton.jit
def mixed(x):
    """A hash of 32 bits, as int32 or uint32."""
    x = x.to(tl.uint32, bitcast=True)
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def seed_of(scale, shared, target):
    """A hash of a row's own numbers: its sample is the same in any batch.

    Args:
        scale: of the row's 8-bit numbers.
        shared: the row's logit that all ids share.
        target: its target.
    """
    x = mixed(scale.to(tl.int32, bitcast=True)) ^ shared.to(tl.uint32, bitcast=True)
    return mixed(mixed(x) ^ target.to(tl.uint32, bitcast=True))


@triton.jit
def one_to_two(seed, id):
    """A number from 1 to 2, but never 2, for a row and an id; uniform.

    Args:
        seed: of the row, from :func:`seed_of`.
        id: the id, hashed with :func:`mixed`.
    """
    x = (seed ^ id) * 0x9E3779B1
    return ((x >> 9) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def weight_of(seed, id, sparseness):
    """The weight of an entry, uniform up to 1: ``weight * least`` makes it a candidate.

    Args:
        seed: of the row, from :func:`seed_of`.
        id: the id, hashed with :func:`mixed`.
        sparseness: one of probability p is drawn with the chance ``p / (sparseness * least)``.
    """
    return tl.minimum((2.0 - one_to_two(seed, id)) * sparseness, 1.0)


@triton.jit
def splits_of(rows, vocabulary, programs, ROWS: tl.constexpr, IDS: tl.constexpr):
    """Splits of the vocabulary that give every program work.

    Args:
        rows: number of them.
        vocabulary: V.
        programs: that run at a time.
        ROWS: rows of a block.
        IDS: ids of a tile.
    """
    blocks = tl.maximum(tl.cdiv(rows, ROWS), 1)
    most = tl.minimum(tl.cdiv(vocabulary, IDS), MOST_SPLITS)
    return tl.maximum(tl.minimum(programs // blocks, most), 1)
