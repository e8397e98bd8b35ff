"""float32 products on a CPU, by the library that is fast on this processor.

PyTorch's own products of float32 matrices are MKL's. On an AMD processor MKL does not use AVX-512;
oneDNN, which PyTorch holds too, does, and takes less than half of MKL's time (Zen 5, one thread
and two, 16 to 512 tokens; ``docs/log/kernels.md``). On an Intel processor MKL uses AVX-512 itself.

oneDNN adds up each number of a product in one long chain, whose rounding errors grow with its
length: over 576 numbers it is 1.6 times as far from float64 as MKL, over 1536 2.1 times. Here no
chain is longer than MKL's own, ``_CHAIN``, and the chains' results are added: as far as MKL.

The choice depends on the processor alone, so that a run that is continued gives the same bits.
``SIRI_KERNELS_ONEDNN=0/1`` in the environment forces it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Callable

import torch

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_CHAIN = 192  # numbers
FORCED = {"1": True, "0": False}.get(os.environ.get("SIRI_KERNELS_ONEDNN", ""))


def onednn_pays() -> bool:
    """Whether this processor's products of float32 matrices are faster in oneDNN than in MKL."""
    if FORCED is not None:
        return FORCED
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wide and "AuthenticAMD" in _vendor()


def _vendor() -> str:
    """The processor's maker, as it calls itself; "" where it cannot be read."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file.read(1 << 14).splitlines():
            if line.startswith("vendor_id"):
                return line.partition(":")[2].strip()
    return platform.processor()  # Windows names it there


@functools.cache
def _onednn() -> Product | None:
    """The product ``a @ b.T`` of oneDNN, in new memory; None where it is not used."""
    if not (torch.backends.mkldnn.is_available() and onednn_pays()):
        return None
    try:
        # What Inductor's code calls. PyTorch has no public function for it.
        linear = torch.ops.mkldnn._linear_pointwise.default
    except AttributeError:
        return None

    def chain(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = linear(_rows(a), _whole(b), None, "none", [], "")
        return result

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        length = a.shape[1]
        if not length:
            return a.new_zeros(len(a), len(b))
        chains = -(-length // _CHAIN)
        step = -(-length // (16 * chains)) * 16 if chains > 1 else length
        result = chain(a[:, :step], b[:, :step])
        for start in range(step, length, step):
            result.add_(chain(a[:, start : start + step], b[:, start : start + step]))
        return result

    # Once, that an operator with this name takes these arguments and means this.
    numbers = torch.arange(12, dtype=torch.float32, device="cpu")
    a, b = numbers[:6].view(2, 3), numbers.view(3, 4).t()
    with contextlib.suppress(Exception):
        if torch.equal(product(a, b), a.mm(b.t())):
            return product
    return None


def _rows(x: torch.Tensor) -> torch.Tensor:
    """``x`` with rows or columns that oneDNN takes fast: each in one piece, none over another."""
    (rows, columns), (down, right) = x.shape, x.stride()
    fast = (right == 1 and down >= columns) or (down == 1 and right >= rows)
    return x if fast else x.contiguous()


def _whole(x: torch.Tensor) -> torch.Tensor:
    """``x`` or its transpose in one piece: with gaps oneDNN takes a thousand times as long."""
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


def _library(dtype: torch.dtype, device: torch.device) -> Product | None:
    """The product of oneDNN, if it is used for such matrices."""
    if dtype is not torch.float32 or device.type != "cpu" or not torch.backends.mkldnn.enabled:
        return None
    return _onednn()


def product_memory(most: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
    """Memory for the results of :func:`product`; None where they lie in new memory.

    Args:
        most: numbers of a result.
        dtype: of the matrices.
        device: of the matrices.
    """
    if _library(dtype, device) is not None:
        return None
    return torch.empty(most, dtype=dtype, device=device)


def product(a: torch.Tensor, b: torch.Tensor, memory: torch.Tensor | None) -> torch.Tensor:
    """``a @ b`` [M, N].

    Args:
        a: [M, K].
        b: [K, N].
        memory: of :func:`product_memory`; the result lies there.
    """
    if memory is not None:
        return torch.mm(a, b, out=memory[: len(a) * b.shape[1]].view(len(a), b.shape[1]))
    library = _library(a.dtype, a.device)
    return a.mm(b) if library is None else library(a, b.t())


def set_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """``out = a @ b``.

    Args:
        out: [M, N].
        a: [M, K].
        b: [K, N].
    """
    library = _library(a.dtype, a.device)
    if library is None:
        torch.mm(a, b, out=out)
    else:
        out.copy_(library(a, b.t()))


def add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """``out += a @ b``.

    Args:
        out: [M, N].
        a: [M, K].
        b: [K, N].
    """
    library = _library(a.dtype, a.device)
    if library is None:
        out.addmm_(a, b)
    else:
        out.add_(library(a, b.t()))
