"""The shapes of the product kernels' tiles on each generation of GPUs.

They are the largest whose programs keep within the registers, but for 88 bytes a thread on Hopper,
and within the shared memory (``python -m siri_kernels.aot --check``). None was timed yet.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """The shape of a product kernel's tiles, and the compiler's options.

    Attributes:
        rows: tokens.
        ids: of the vocabulary.
        step: columns at a time.
        pieces: in which the epilogue takes the ids.
        warps: of a program.
        stages: of the pipeline of loads.
        boxes: whether the GPU copies whole boxes of 8-bit operands (TMA).
    """

    rows: int
    ids: int
    step: int
    pieces: int
    warps: int
    stages: int
    boxes: bool = False


ROWS = 128  # of the largest tile
_LARGE = {1: Tile(ROWS, 256, 128, 4, 8, 3, boxes=True), 2: Tile(ROWS, 256, 64, 4, 8, 3)}
# Where the results of a product lie such that splitting a tile costs registers.
_SMALL = {1: Tile(ROWS, 64, 128, 1, 8, 4), 2: Tile(ROWS, 64, 64, 1, 8, 4)}
_AMD = {1: Tile(ROWS, 128, 128, 1, 8, 2), 2: Tile(ROWS, 128, 64, 1, 8, 2)}
_UNALIGNED = Tile(ROWS, 64, 32, 1, 8, 2)  # every number has an address in a register
_FLOAT32 = Tile(64, 64, 32, 1, 8, 3)
_INTERPRETED = Tile(128, 1024, 64, 1, 4, 1)  # few operations, large ones


@functools.cache
def tile_of(device: torch.device, dtype: torch.dtype, aligned: bool = True) -> Tile:
    """The tile of a product on a device.

    Args:
        device: where it is computed.
        dtype: of its operands: int8 or an 8-bit float of the screen, or of the exact product.
        aligned: whether all rows of its operands begin at multiples of 16 bytes.
    """
    if device.type != "cuda":
        return _INTERPRETED
    if dtype.itemsize == 4:
        return _FLOAT32
    if not aligned:
        return _UNALIGNED
    if torch.version.hip is not None:
        return _AMD[dtype.itemsize]
    generation = torch.cuda.get_device_capability(device)[0]
    # Tensor memory takes no integers.
    large = generation == 9 or (generation == 10 and dtype != torch.int8)
    return (_LARGE if large else _SMALL)[dtype.itemsize]


class JoinTile(NamedTuple):
    """Numbers of what the join takes at a time.

    Attributes:
        chunk: candidates.
        many: candidates of an exact product.
        step: columns of one.
    """

    chunk: int
    many: int
    step: int


def join_tile_of(device: torch.device) -> JoinTile:
    """The join's on a device."""
    return JoinTile(256, 16, 256) if device.type == "cuda" else JoinTile(1024, 512, 1024)
