"""The 8-bit copies of weights that are kept on a GPU, and made again when these have changed.

As in :mod:`siri_kernels.linear_logprob.screen.kept` every call takes a fingerprint of all numbers.
The GPU compares it with the last one, and the kernels that make the copy again leave at once where
nothing has changed: the host never waits to know.
"""

from __future__ import annotations

import os
import threading
from typing import Any, NamedTuple

import torch
import triton
from torch.multiprocessing.reductions import StorageWeakRef

from siri_kernels._device import device_of
from siri_kernels._launch import launch
from siri_kernels.linear_logprob.screen.quantise import OUTLIER
from siri_kernels.linear_logprob.screen_triton import rows, weight_kernels
from siri_kernels.linear_logprob.triton.arguments import GEMM

MOST_KEPT = 2  # a policy and its reference
MOST_OUTLIERS = 64  # rows that are computed exactly for every token
HASHED = (32, 128)  # rows and columns of the fingerprint's blocks
ADDED = (64, 64)  # of those of column sums
_BLOCK = 4096
_BITS = {2: torch.int16, 4: torch.int32}
_keys: dict[tuple[int, torch.device], torch.Tensor] = {}


class DeviceCopy(NamedTuple):
    """A head's weight in 8 bits, on the GPU: less its mean row, rotated.

    Attributes:
        codes: [V, W] int8 or float8.
        scale: [V] float32; -1 for outlier rows, whose codes are 0.
        mean: [D] float32, the mean row, not rotated.
        numbers: [4] float32: root mean square norm of what rounding changed, over the usual rows;
            the same of the rows themselves; the largest norm of an outlier row, or else the norm
            before; 1 if most rows are alike enough for one measure of their errors, else 0.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    mean: torch.Tensor
    numbers: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(x.nbytes for x in self)


class _Kept(NamedTuple):
    place: tuple[Any, ...]
    memory: StorageWeakRef
    hashes: torch.Tensor  # of blocks of rows, int64
    changed: torch.Tensor  # [1] int32
    copy: DeviceCopy

    @property
    def nbytes(self) -> int:
        return self.copy.nbytes + self.hashes.nbytes + self.changed.nbytes


_lock = threading.Lock()
_kept: list[_Kept] = []  # the last used is the last


def _forget_in_a_child() -> None:
    """A forked process has no thread that would leave the lock; its copies are its parent's."""
    global _lock
    _lock = threading.Lock()
    _kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_a_child)


def kept_copy(weight: torch.Tensor, gemm: torch.dtype, kind: str) -> DeviceCopy:
    """The 8-bit copy of a weight as it is now, or rather when the GPU comes to it.

    Its tensors are written again by a later call with the same weight, on the same stream.

    Args:
        weight: [V, D] bfloat16, float16 or float32, any strides.
        gemm: the dtype in which it is multiplied.
        kind: "int8" or "fp8".
    """
    weight = weight.detach()
    storage = weight.untyped_storage()
    place = (
        *(storage._cdata, weight.storage_offset(), tuple(weight.shape), weight.stride()),
        *(weight.dtype, weight.is_neg(), gemm, kind, weight.device, _stream(weight)),
    )
    # Launches of two threads must not mix: what one finds changed the other would take for done.
    with _lock:
        _kept[:] = [kept for kept in _kept if not kept.memory.expired()]
        kept = next((kept for kept in _kept if kept.place == place), None)
        new = kept is None
        if kept is None:
            del _kept[: max(0, len(_kept) - MOST_KEPT + 1)]  # before there is another
            kept = _empty(weight, place, kind)
        else:
            _kept.remove(kept)  # a launch that fails leaves no copy that is half made
        _refresh(weight.resolve_neg(), gemm, kept, new)
        _kept.append(kept)
    return kept.copy


def release_copies() -> int:
    """Frees all copies that are kept.

    Returns:
        How many bytes are freed.
    """
    with _lock:
        freed = sum(kept.nbytes for kept in _kept)
        _kept.clear()
    return freed


def _stream(weight: torch.Tensor) -> int:
    """The stream on which kernels are launched, which orders a copy's refreshes."""
    if not weight.is_cuda or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.current_stream(weight.device).cuda_stream)


def _empty(weight: torch.Tensor, place: tuple[Any, ...], kind: str) -> _Kept:
    """A copy that was not made yet."""
    (count, width), device = weight.shape, weight.device

    def numbers(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    copy = DeviceCopy(
        rows.empty_codes(count, width, kind, device), numbers(count), numbers(width), numbers(4)
    )
    hashes = torch.zeros(triton.cdiv(count, HASHED[0]), dtype=torch.int64, device=device)
    changed = torch.zeros(1, dtype=torch.int32, device=device)
    return _Kept(place, StorageWeakRef(weight.untyped_storage()), hashes, changed, copy)


def _refresh(weight: torch.Tensor, gemm: torch.dtype, kept: _Kept, new: bool) -> None:
    """Launches what makes the copy again if the weight has changed, or if it is new."""
    count, width = weight.shape
    device, copy, changed = weight.device, kept.copy, kept.changed
    blocks = triton.cdiv(count, ADDED[0])
    error, norm = (torch.empty(count, dtype=torch.float32, device=device) for _ in range(2))
    sums = torch.empty(blocks, width, dtype=torch.float32, device=device)
    counts = torch.empty(blocks, dtype=torch.int32, device=device)
    changed.fill_(new)
    codes = copy.codes.view(torch.int8)
    bits = _BITS[weight.element_size()]
    with device_of(weight):
        launch(
            weight_kernels.fingerprint_kernel,
            (len(kept.hashes),),
            weight.view(bits),
            _keys_of(width, device),
            kept.hashes,
            changed,
            count,
            width,
            *weight.stride(),
            BITS=8 * weight.element_size(),
            ROWS=HASHED[0],
            COLUMNS=HASHED[1],
            num_warps=8,
        )
        launch(
            weight_kernels.sums_kernel,
            (blocks,),
            weight,
            changed,
            sums,
            counts,
            count,
            width,
            *weight.stride(),
            GEMM=GEMM[gemm],
            ROWS=ADDED[0],
            COLUMNS=ADDED[1],
            num_warps=8,
        )
        launch(
            weight_kernels.mean_kernel,
            (triton.cdiv(width, 64),),
            *(changed, sums, counts, copy.mean, blocks, width),
            BLOCKS=32,
            COLUMNS=64,
            num_warps=4,
        )
        unread = error
        made = rows.DeviceRows(copy.codes, copy.scale, error, norm, unread)
        rows.launch_rows(weight, None, gemm, copy.mean, changed, made)
        launch(
            weight_kernels.numbers_kernel,
            (1,),
            *(changed, copy.scale, error, norm, copy.numbers, count, OUTLIER, MOST_OUTLIERS),
            SAMPLE=weight_kernels.SAMPLE,
            BLOCK=_BLOCK,
            num_warps=16,
        )
        launch(
            weight_kernels.outliers_kernel,
            (triton.cdiv(count, 256),),
            *(changed, copy.scale, codes, count, codes.shape[1]),
            ROWS=256,
            COLUMNS=64,
            num_warps=4,
        )


def _keys_of(width: int, device: torch.device) -> torch.Tensor:
    """Keys [D] of the fingerprint; made once for each device."""
    keys = _keys.get((width, device))
    if keys is None:
        generator = torch.Generator().manual_seed(0xF1)
        span = (-(2**63), 2**63 - 1)
        drawn = torch.randint(*span, (width,), generator=generator, dtype=torch.int64, device="cpu")
        keys = drawn.to(device=device)
        if type(keys) is torch.Tensor:  # not one that has no numbers
            _keys[width, device] = keys
    return keys
