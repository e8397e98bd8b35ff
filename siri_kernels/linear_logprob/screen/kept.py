"""The 8-bit copies of weights that are kept, and when they are made again.

A copy is known by the memory of its weight and by a fingerprint of all its numbers, which every
call takes anew: a weight may change in ways that PyTorch does not count (``.data``, FSDP's gathered
parameters, another process), and one that FSDP gathers again is the same. Reading the weight once
costs 1 to 4 % of a call.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from siri_kernels.linear_logprob.screen import compiled
from siri_kernels.linear_logprob.screen.quantise import ScreenedWeight, screened_weight

# A policy and its reference; the third one that is used takes the place of the oldest.
MOST_KEPT = 2


class _Kept(NamedTuple):
    place: tuple[Any, ...]
    memory: StorageWeakRef
    fingerprint: tuple[int, ...]
    copy: ScreenedWeight


_lock = threading.Lock()
_kept: list[_Kept] = []  # the last used is the last


def kept_screen(weight: torch.Tensor, gemm: torch.dtype) -> ScreenedWeight:
    """The 8-bit copy of a weight as it is now.

    Args:
        weight: [V, D] floating point, any strides.
        gemm: the dtype in which it is multiplied.
    """
    weight = weight.detach()
    storage = weight.untyped_storage()
    place = (
        *(storage._cdata, weight.storage_offset(), tuple(weight.shape), weight.stride()),
        *(weight.dtype, gemm),
    )
    now = fingerprint(weight)
    with _lock:
        _kept[:] = [kept for kept in _kept if not kept.memory.expired()]
        old = next((kept for kept in _kept if kept.place == place), None)
        if old is not None:
            _kept.remove(old)
            if old.fingerprint == now:
                _kept.append(old)
                return old.copy
            old = None
        del _kept[: -(MOST_KEPT - 1)]  # before there is another
    # Not under the lock: other threads go on, and a process may be forked meanwhile.
    copy = screened_weight(weight, gemm)
    with _lock:
        _kept.append(_Kept(place, StorageWeakRef(storage), now, copy))
        del _kept[:-MOST_KEPT]
    return copy


def release_screens() -> int:
    """Frees the 8-bit copies of weights that screens have made. The next call makes its own again.

    A copy is also freed when its weight is, at the next call that screens.

    Returns:
        How many bytes are freed.
    """
    with _lock:
        freed = sum(kept.copy.nbytes for kept in _kept)
        _kept.clear()
    # Copies on GPUs are kept where Triton is; nobody has any who has not imported that.
    on_gpus = sys.modules.get("siri_kernels.linear_logprob.screen_triton.weight")
    release = getattr(on_gpus, "release_copies", None)
    return freed if release is None else freed + int(release())


def fingerprint(weight: torch.Tensor) -> tuple[int, ...]:
    """A hash of the numbers of a matrix, bit for bit.

    Args:
        weight: [V, D] floating point.
    """
    data = weight.resolve_neg().contiguous()
    found = compiled.fingerprint(data)
    if found is not None:
        return found
    # Each row's bytes times a few odd numbers, exact in int32, then each row times its own.
    rows = data.view(torch.int8)
    generator = torch.Generator().manual_seed(0xF1)
    shape, dtype = (rows.shape[1], 8), torch.int8
    drawn = torch.randint(-63, 63, shape, generator=generator, dtype=dtype, device="cpu")
    products = torch._int_mm(rows, drawn * 2 + 1).long()
    number = torch.arange(len(rows), dtype=torch.int64, device="cpu")[:, None]
    mixed = (products ^ (products << 21)) * (2 * number * 0x9E3779B97F4A7C1 + 1)
    return tuple((mixed ^ (mixed >> 29)).sum(0).tolist())
