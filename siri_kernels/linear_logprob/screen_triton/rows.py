"""Rows rounded to 8 bits on a GPU: the launch.

The map is that of :mod:`siri_kernels.linear_logprob.screen.rotation`, but that rows are padded to a
multiple of 16 before, as the GPU's products of 8-bit numbers want them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton

from siri_kernels._device import device_of
from siri_kernels._launch import launch
from siri_kernels.linear_logprob.screen import rotation
from siri_kernels.linear_logprob.screen_triton import row_kernels
from siri_kernels.linear_logprob.triton.arguments import GEMM

MOST_WIDTH = 16384  # of a row: 128 groups of 128
_LEAST = 16  # of each side of a product of blocks
_NUMBERS = 4096  # of a block of rows, at most
# The fewest registers, without a stack, that were found ahead of time.
WARPS = 8 if torch.version.hip is None else 4
_HELD = 8192  # numbers of a row whose matrices stay in shared memory
_PROGRAMS = 1024  # each loads Hadamard's matrix once, 64 KiB
_tables: dict[tuple[int, torch.device], Tables] = {}


class DeviceRows(NamedTuple):
    """N rows of 8-bit numbers.

    Attributes:
        codes: [N, W] int8 or float8.
        scale: [N] float32; row ``i`` is about ``scale[i] * codes[i]``.
        error: [N] float32, norm of what rounding changed; NaN where the row is not finite, or
            beyond 1e36, as are ``scale`` and ``norm``. Its codes are 0.
        norm: [N] float32, norm of the rounded row.
        shared: [N] float32, product of the row and the weight's mean row; 0 without one.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    error: torch.Tensor
    norm: torch.Tensor
    shared: torch.Tensor


class Tables(NamedTuple):
    """The matrices that rotate rows of one width, on one device; see the kernel.

    Attributes:
        signs: [W] float32.
        left: [A, A] float32.
        right: [B, B] float32.
    """

    signs: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor


def screened_width(width: int) -> int:
    """The width of rows in 8 bits: that of rotated rows, a multiple of 16.

    Args:
        width: of the rows themselves.

    Raises:
        ValueError: it is above MOST_WIDTH.
    """
    if width > MOST_WIDTH:
        raise ValueError(f"a screen takes rows of up to {MOST_WIDTH} numbers; got {width}")
    steps = (-(-width // step) * step for step in (_LEAST, 64, 128))
    return next(padded for padded in steps if padded // min(padded & -padded, 128) <= 128)


def code_dtype(kind: str, device: torch.device) -> torch.dtype:
    """The dtype of codes.

    Args:
        kind: "int8" or "fp8".
        device: where they are.
    """
    if kind == "int8":
        return torch.int8
    if torch.version.hip is not None and device.type == "cuda":
        architecture = torch.cuda.get_device_properties(device).gcnArchName
        if architecture.startswith("gfx94"):
            return torch.float8_e4m3fnuz
    return torch.float8_e4m3fn


def hidden_rows(
    hidden: torch.Tensor,
    index: torch.Tensor,
    gemm: torch.dtype,
    kind: str,
    mean: torch.Tensor | None,
) -> DeviceRows:
    """Hidden states rounded to 8 bits.

    Args:
        hidden: [T, D] floating point, any strides.
        index: [N] int64, the rows asked for.
        gemm: the dtype in which they are multiplied, to which they are rounded first.
        kind: "int8" or "fp8".
        mean: [D] float32, the weight's mean row, or None.
    """
    count, device = len(index), hidden.device
    codes = empty_codes(count, hidden.shape[1], kind, device)
    scale, error, norm = (torch.empty(count, dtype=torch.float32, device=device) for _ in range(3))
    made = torch.zeros if mean is None else torch.empty
    shared = made(count, dtype=torch.float32, device=device)
    found = DeviceRows(codes, scale, error, norm, shared)
    if count:
        launch_rows(hidden.detach(), index.contiguous(), gemm, mean, None, found)
    return found


def empty_codes(count: int, width: int, kind: str, device: torch.device) -> torch.Tensor:
    """Codes [N, W], not written yet.

    Args:
        count: N.
        width: of the rows that they are for.
        kind: "int8" or "fp8".
        device: where.
    """
    shape = (count, screened_width(width))
    return torch.empty(shape, dtype=torch.int8, device=device).view(code_dtype(kind, device))


def launch_rows(
    x: torch.Tensor,
    index: torch.Tensor | None,
    gemm: torch.dtype,
    mean: torch.Tensor | None,
    changed: torch.Tensor | None,
    out: DeviceRows,
) -> None:
    """Rounds rows to 8 bits.

    Args:
        x: [*, D] floating point, any strides.
        index: [N] int64, rows of ``x`` whose product with ``mean`` is asked for; None: the first N,
            less ``mean``.
        gemm: the dtype to which numbers are rounded first.
        mean: [D] float32, or None.
        changed: [1] int32: nothing is done where it is 0; or None.
        out: written.
    """
    width, count = x.shape[1], len(out.scale)
    padded = out.codes.shape[1]
    tables = tables_of(padded, x.device)
    a, b = len(tables.left), len(tables.right)
    rows = block_rows(a, b)
    form = (torch.int8, torch.float8_e4m3fn, torch.float8_e4m3fnuz).index(out.codes.dtype)
    arguments: list[Any] = [
        x,
        index if index is not None else x,
        mean if mean is not None else x,
        *tables,
        changed if changed is not None else x,
        out.codes.view(torch.int8),
        *out[1:],
    ]
    with device_of(x):
        launch(
            row_kernels.rows_kernel,
            (min(_PROGRAMS, triton.cdiv(count, rows)),),
            *arguments,
            count,
            width,
            *x.stride(),
            padded,
            math.sqrt(padded),
            GEMM=GEMM[gemm],
            INDEXED=index is not None,
            CENTRED=index is None and mean is not None,
            SHARED=index is not None and mean is not None,
            GUARDED=changed is not None,
            FORM=form,
            LARGEST=row_kernels.LARGEST[form],
            TF32=takes_tf32(x.device),
            HELD=a * b <= _HELD,
            A=a,
            B=b,
            ROWS=rows,
            num_warps=WARPS,
            num_stages=1,
        )


def takes_tf32(device: torch.device) -> bool:
    """Whether products take tf32 operands there.

    Args:
        device: of the rows.
    """
    return device.type == "cuda" and torch.version.hip is None


def block_rows(a: int, b: int) -> int:
    """Rows of a block.

    Args:
        a: A of the kernel.
        b: its B.
    """
    return max(1, _LEAST // a, _NUMBERS // (a * b))


def sides(padded: int) -> tuple[int, int]:
    """A and B of the kernel, with the fewest multiplications.

    Args:
        padded: W.
    """
    found = []
    b = _LEAST
    while b <= 128 and padded % b == 0:
        a = padded // b
        if a > 1:
            a = max(_LEAST, triton.next_power_of_2(a))
        found.append((a * b * (b + (a if a > 1 else 0)), a, b))
        b *= 2
    return min(found)[1:]


def tables_of(padded: int, device: torch.device) -> Tables:
    """Gives what rotates rows of a width; made once for each device.

    Args:
        padded: W.
        device: where they are.
    """
    known = _tables.get((padded, device))
    if known is not None:
        return known
    signs, hadamard, cosines = rotation.drawn_parts(padded)
    root = math.sqrt(len(hadamard))
    hadamard = (hadamard * root).round()
    a, b = sides(padded)
    left = torch.kron(cosines.t().contiguous(), hadamard[::b, ::b].contiguous())
    more = a - len(left)
    left, right = F.pad(left, (0, more, 0, more)), hadamard[:b, :b].contiguous()
    tables = Tables(*(x.to(device=device) for x in (signs / root, left, right)))
    if type(tables.signs) is torch.Tensor:  # not one of those that have no numbers
        _tables[padded, device] = tables
    return tables
