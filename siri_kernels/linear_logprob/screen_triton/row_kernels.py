"""The kernel that rounds rows to 8 bits: of hidden states, and of a head's weight.

A row is rotated as :mod:`siri_kernels.linear_logprob.screen.rotation` does it: by the product, in
Kronecker's way, of cosines and Hadamard's matrix. The latter is such a product itself, so that a
row can be seen as a matrix [A, B] of nearly as many rows as columns, which one matrix multiplies
from the left and one from the right. For a block of rows that is one ``tl.dot`` each:
[A * ROWS, B] times [B, B], then, without moving a number, [A, A] times [A, ROWS * B].

On NVIDIA's GPUs the products take tf32 operands, rounded to nearest here: the hardware would cut
their digits off, and every row would be shorter. What that changes, 2e-4 of a row's norm in random
directions, is not part of ``error``; rounding to 8 bits changes forty times as much.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The largest numbers of int8, e4m3fn and e4m3fnuz.
LARGEST = (127.0, 448.0, 240.0)

_HALF_EVEN = tl.constexpr(12582912.0)  # 1.5 * 2 ** 23: adding it rounds to an integer
# Above it a GPU's division by such a number gives 0, or the row's norm has no fp32.
_MOST = tl.constexpr(1e36)
_LEAST = tl.constexpr(1e-30)  # the largest number of a row that is not rounded to zeros


@triton.jit
def to_tf32(x):
    """Numbers of fp32 with 10 digits after the point, rounded to nearest; the others as they are.

    Args:
        x: fp32.
    """
    bits = x.to(tl.int32, bitcast=True)
    nearest = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(x) < float("inf"), nearest, x)  # a NaN's digits may all be set


@triton.jit
def _operand(x, TF32: tl.constexpr):
    """``x`` as products take it."""
    return to_tf32(x) if TF32 else x


@triton.jit
def _times(a, b, TF32: tl.constexpr):
    """The matrix product of two blocks as :func:`_operand` gives them."""
    if TF32:
        return tl.dot(a, b, input_precision="tf32")
    else:
        return tl.dot(a, b, input_precision="ieee")


@triton.jit
def nearest_code(x, FORM: tl.constexpr):
    """Numbers within a format's range: their codes as int32, and the numbers that these stand for.

    Half a step is rounded to the even code, by arithmetic that is the same on every device.

    Args:
        x: fp32, finite.
        FORM: 0 for int8, 1 for e4m3fn, 2 for e4m3fnuz.
    """
    if FORM == 0:
        steps = (x + _HALF_EVEN) - _HALF_EVEN
        return steps.to(tl.int32), steps
    else:
        BIAS: tl.constexpr = 6 + FORM
        bits = x.to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        nearest = (size + 0x7FFFF + ((size >> 20) & 1)) & 0x7FF00000
        # Below the normal numbers steps are equal; eight of them are the first normal number.
        small = tl.abs(x) < 2.0 ** (1 - BIAS)
        steps = (tl.abs(x) * 2.0 ** (BIAS + 2) + _HALF_EVEN) - _HALF_EVEN
        code = tl.where(small, steps.to(tl.int32), (nearest >> 20) - ((127 - BIAS) << 3))
        size_again = nearest.to(tl.float32, bitcast=True)
        size_again = tl.where(small, steps * 2.0 ** (-BIAS - 2), size_again)
        below = (x < 0) & (code > 0)  # FNUZ takes a negative zero for NaN
        return tl.where(below, code | 0x80, code), tl.where(x < 0, -size_again, size_again)


@triton.jit
def _rows(
    x, index, mean, signs, left, right, codes, scale, error, norm, product, rows, width,
    row_stride, column_stride, padded, root, GEMM: tl.constexpr, INDEXED: tl.constexpr,
    CENTRED: tl.constexpr, SHARED: tl.constexpr, FORM: tl.constexpr, LARGEST: tl.constexpr,
    TF32: tl.constexpr, HELD: tl.constexpr, A: tl.constexpr, B: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Does what :func:`rows_kernel` says, with its arguments."""
    inner = tl.arange(0, B)
    group = tl.arange(0, A)
    local = tl.arange(0, A * ROWS) % ROWS
    column = (tl.arange(0, A * ROWS) // ROWS)[:, None] * B + inner[None, :]
    inside = column < width
    square = inner[:, None] * B + inner[None, :]
    beside = group[:, None] * A + group[None, :]
    if HELD:
        columns = tl.load(right + square)  # 1 and -1: exact in tf32
        across = columns
        if A > 1:
            across = _operand(tl.load(left + beside), TF32)
    out_row = tl.arange(0, ROWS)
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        number = block * ROWS + local
        there = number < rows
        if INDEXED:
            row = tl.load(index + number, mask=there, other=0)
        else:
            row = number.to(tl.int64)
        place = row[:, None] * row_stride + column.to(tl.int64) * column_stride
        value = tl.load(x + place, mask=there[:, None] & inside, other=0.0)
        value = value.to(GEMM).to(tl.float32)
        out = block * ROWS + out_row
        kept = out < rows
        if CENTRED or SHARED:
            middle = tl.load(mean + column, mask=inside, other=0.0)
            if SHARED:
                part = tl.reshape(tl.sum(value * middle, 1), (A, ROWS))
                tl.store(product + out, tl.sum(part, 0), mask=kept)
            else:
                value -= middle
        value *= tl.load(signs + column, mask=column < padded, other=0.0)
        if HELD:
            value = _times(_operand(value, TF32), columns, TF32)
        else:
            value = _times(_operand(value, TF32), tl.load(right + square), TF32)
        value = tl.reshape(value, (A, ROWS * B))
        if A > 1:
            if HELD:
                value = _times(across, _operand(value, TF32), TF32)
            else:
                matrix = _operand(tl.load(left + beside), TF32)
                value = _times(matrix, _operand(value, TF32), TF32)
        value = tl.reshape(value, (A, ROWS, B))
        size = tl.abs(value)
        finite = size < _MOST
        usual = tl.min(tl.min(finite.to(tl.int32), 2), 0) > 0
        usual_3 = usual[None, :, None]
        largest = tl.max(tl.max(tl.where(finite, size, 0.0), 2), 0)
        tiny = largest < _LEAST
        step = tl.where(tiny, 0.0, largest * (1.0 / LARGEST))
        inverse = tl.where(tiny, 0.0, LARGEST / tl.where(tiny, 1.0, largest))
        # In steps: squares of a row's own numbers would leave fp32's range before these do.
        scaled = tl.where(usual_3, value, 0.0) * inverse[None, :, None]
        code, again = nearest_code(scaled, FORM)
        off = scaled - again
        changed = tl.sqrt(tl.sum(tl.sum(off * off, 2), 0)) * step
        length = tl.sqrt(tl.sum(tl.sum(again * again, 2), 0)) * step
        changed = tl.where(tiny, largest * root, changed)  # of zeros: no less than it is
        unknown = float("nan")
        tl.store(scale + out, tl.where(usual, step, unknown), mask=kept)
        tl.store(error + out, tl.where(usual, changed, unknown), mask=kept)
        tl.store(norm + out, tl.where(usual, length, unknown), mask=kept)
        place = group[:, None, None] * B + inner[None, None, :]
        mask = (place < padded) & kept[None, :, None]
        target = out.to(tl.int64)[None, :, None] * padded + place
        tl.store(codes + target, code.to(codes.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "root"])
def rows_kernel(
    x, index, mean, signs, left, right, changed, codes, scale, error, norm, product, rows, width,
    row_stride, column_stride, padded, root, GEMM: tl.constexpr, INDEXED: tl.constexpr,
    CENTRED: tl.constexpr, SHARED: tl.constexpr, GUARDED: tl.constexpr, FORM: tl.constexpr,
    LARGEST: tl.constexpr, TF32: tl.constexpr, HELD: tl.constexpr, A: tl.constexpr,
    B: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows rotated and rounded to 8 bits, ROWS at a time.

    Args:
        x: [*, D] floating point.
        index: [N] int64, rows of ``x``, if INDEXED.
        mean: [D] float32, if CENTRED or SHARED.
        signs: [W] float32, over the root of the power of two in W.
        left: [A, A] float32, one output a row, zeros beyond W / B.
        right: [B, B] float32, 1 and -1, symmetric.
        changed: [1] int32, if GUARDED: nothing is done where it is 0.
        codes: [N, W] int8 or bytes, written.
        scale: [N] float32, written: NaN where a row is not finite, or beyond 1e36.
        error: [N] float32, written, the same.
        norm: [N] float32, written, the same.
        product: [N] float32, written, if SHARED: product with ``mean``.
        rows: N.
        width: D.
        row_stride: of ``x``.
        column_stride: of ``x``.
        padded: W.
        root: its square root.
        GEMM: dtype to which numbers are rounded first.
        INDEXED: whether rows are those of ``index``, not the first N.
        CENTRED: whether ``mean`` is taken away.
        SHARED: whether the product with ``mean`` is asked for.
        GUARDED: whether ``changed`` is looked at.
        FORM: the format of 8 bits, as :func:`nearest_code` has it.
        LARGEST: its largest number.
        TF32: whether products take tf32 operands, as NVIDIA's GPUs do.
        HELD: whether both matrices stay in the multiprocessor; else they are read for each block.
        A: 1 if W is B, else a power of two, at least W / B and 16.
        B: a power of two that divides W, 16 to 128.
        ROWS: of a block; A * ROWS is 16 or more.
    """
    if GUARDED:
        if tl.load(changed) != 0:
            _rows(
                x, index, mean, signs, left, right, codes, scale, error, norm, product, rows,
                width, row_stride, column_stride, padded, root, GEMM, INDEXED, CENTRED, SHARED,
                FORM, LARGEST, TF32, HELD, A, B, ROWS,
            )  # fmt: skip
    else:
        _rows(
            x, index, mean, signs, left, right, codes, scale, error, norm, product, rows, width,
            row_stride, column_stride, padded, root, GEMM, INDEXED, CENTRED, SHARED, FORM, LARGEST,
            TF32, HELD, A, B, ROWS,
        )  # fmt: skip
