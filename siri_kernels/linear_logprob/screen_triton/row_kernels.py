"""The kernel that rounds rows to 8 bits: of hidden states, and of a head's weight.

A row is rotated as :mod:`siri_kernels.linear_logprob.screen.rotation` does it. Its D numbers are
``REST`` groups of P, both sides of a matrix. Hadamard's matrix multiplies the groups, the cosines
multiply across them, each in one ``tl.dot`` for a block of rows: first [R * ROWS, P] times [P, P],
then, without moving a number, [R, R] times [R, ROWS * P]. R is ``REST`` or more, for ``tl.dot``.

On NVIDIA's GPUs the products take tf32 operands, rounded to nearest here: the hardware would cut
their digits off, and every row would be shorter. What that changes, 2e-4 of a row's norm in random
directions, is not part of ``error``; rounding to 8 bits changes forty times as much.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

# The formats of 8 bits.
INT8, E4M3FN, E4M3FNUZ = range(3)
LARGEST = (127.0, 448.0, 240.0)  # of each

# The interpreter knows no targets.
_COMPILED = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1")
_HALF_EVEN = tl.constexpr(12582912.0)  # 1.5 * 2 ** 23: adding it rounds to an integer
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
def _times(a, b):
    """The matrix product of two blocks, fp32."""
    if _COMPILED and tl.target_info.is_cuda():
        return tl.dot(to_tf32(a), to_tf32(b), input_precision="tf32")
    else:
        return tl.dot(a, b, input_precision="ieee")


@triton.jit
def nearest_code(x, FORM: tl.constexpr):
    """Numbers within a format's range: their codes as int32, and the numbers that these stand for.

    Half a step is rounded to the even code, by arithmetic that is the same on every device.

    Args:
        x: fp32, finite.
        FORM: INT8, E4M3FN or E4M3FNUZ.
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
    x, index, mean, signs, hadamard, cosines, codes, scale, error, norm, shared, rows, width,
    row_stride, column_stride, rest, root, GEMM: tl.constexpr, INDEXED: tl.constexpr,
    CENTRED: tl.constexpr, SHARED: tl.constexpr, FORM: tl.constexpr, LARGEST: tl.constexpr,
    P: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """What :func:`rows_kernel` does, with its arguments."""
    inner = tl.arange(0, P)
    local = tl.arange(0, R * ROWS) % ROWS
    column = (tl.arange(0, R * ROWS) // ROWS)[:, None] * P + inner[None, :]
    inside = column < width
    matrix = tl.load(hadamard + inner[:, None] * P + inner[None, :])
    if R > 1:
        side = tl.arange(0, R)
        across = tl.load(cosines + side[:, None] * R + side[None, :])
    out_row = tl.arange(0, ROWS)
    group = tl.arange(0, R)
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
                part = tl.reshape(tl.sum(value * middle, 1), (R, ROWS))
                tl.store(shared + out, tl.sum(part, 0), mask=kept)
            else:
                value -= middle
        value *= tl.load(signs + column, mask=column < rest * P, other=0.0)
        value = _times(value, matrix)
        value = tl.reshape(value, (R, ROWS * P))
        if R > 1:
            value = _times(across, value)
        value = tl.reshape(value, (R, ROWS, P))
        size = tl.abs(value)
        finite = size < float("inf")
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
        target = group[:, None, None] * P + inner[None, None, :]
        target = out.to(tl.int64)[None, :, None] * (rest * P) + target
        mask = (group < rest)[:, None, None] & kept[None, :, None]
        tl.store(codes + target, code.to(codes.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "root"])
def rows_kernel(
    x, index, mean, signs, hadamard, cosines, changed, codes, scale, error, norm, shared, rows,
    width, row_stride, column_stride, rest, root, GEMM: tl.constexpr, INDEXED: tl.constexpr,
    CENTRED: tl.constexpr, SHARED: tl.constexpr, GUARDED: tl.constexpr, FORM: tl.constexpr,
    LARGEST: tl.constexpr, P: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows rotated and rounded to 8 bits, ROWS at a time.

    Args:
        x: [*, D] floating point.
        index: [N] int64, rows of ``x``, if INDEXED.
        mean: [D] float32, if CENTRED or SHARED.
        signs: [rest * P] float32, over the root of P.
        hadamard: [P, P] float32, 1 and -1, symmetric.
        cosines: [R, R] float32, one output a row, zeros beyond ``rest``.
        changed: [1] int32, if GUARDED: nothing is done where it is 0.
        codes: [N, rest * P] int8 or bytes, written.
        scale: [N] float32, written: NaN where a row is not finite.
        error: [N] float32, written, the same.
        norm: [N] float32, written, the same.
        shared: [N] float32, written, if SHARED: product with ``mean``.
        rows: N.
        width: D.
        row_stride: of ``x``.
        column_stride: of ``x``.
        rest: groups of P numbers in a row.
        root: square root of ``rest * P``.
        GEMM: dtype to which numbers are rounded first.
        INDEXED: whether rows are those of ``index``, not the first N.
        CENTRED: whether ``mean`` is taken away.
        SHARED: whether the product with ``mean`` is asked for.
        GUARDED: whether ``changed`` is looked at.
        FORM: the format of 8 bits.
        LARGEST: its largest number.
        P: a power of two, 16 to 128.
        R: 1 if ``rest`` is 1, else a power of two, at least ``rest`` and 16.
        ROWS: of a block; R * ROWS is 16 or more.
    """
    if GUARDED:
        if tl.load(changed) != 0:
            _rows(
                x, index, mean, signs, hadamard, cosines, codes, scale, error, norm, shared, rows,
                width, row_stride, column_stride, rest, root, GEMM, INDEXED, CENTRED, SHARED, FORM,
                LARGEST, P, R, ROWS,
            )  # fmt: skip
    else:
        _rows(
            x, index, mean, signs, hadamard, cosines, codes, scale, error, norm, shared, rows,
            width, row_stride, column_stride, rest, root, GEMM, INDEXED, CENTRED, SHARED, FORM,
            LARGEST, P, R, ROWS,
        )  # fmt: skip
