"""Arithmetic that the Triton kernels of the head share.

Logits stay in the unit of the product (after bias and softcap, before the temperature). A kernel
turns the difference of two of them into an exponent of two: ``(z - shift) * scale`` with ``scale =
log2(e) / temperature``. The difference comes first, so that what large logits have in common is
taken off before anything is rounded.

Nothing here divides on a GPU where the result has to be exact: Triton's division may be 2 units in
the last place off.
"""

from __future__ import annotations

import math
import os

import triton
import triton.language as tl

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)

# 2 ** LOWEST is 0 in fp32; finite, so that 0 * LOWEST is 0 and not NaN.
LOWEST = tl.constexpr(-200.0)
# Largest finite fp32.
LARGE = tl.constexpr(3.4028234663852886e38)
# The interpreter knows no inline assembly. (Triton reads this variable when it is imported, too.)
_COMPILED = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1")


@triton.jit
def exp2(x):
    """``2 ** x``; results below the normal numbers are 0.

    That saves three of four instructions on an NVIDIA GPU.
    """
    if _COMPILED and tl.target_info.is_cuda():
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp2(x)


@triton.jit
def at_least(x, low):
    """The larger of both, NaN if ``x`` is NaN: other maxima in Triton drop it."""
    return tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _add_pairs(a, b, c, d):
    return a + c, b + d


@triton.jit
def two_sums(a, b):
    """The sums of two vectors, with the barriers of one reduction."""
    if _COMPILED:
        return tl.reduce((a, b), 0, _add_pairs)
    else:
        # The interpreter calls a combining function for each element: minutes.
        return tl.sum(a), tl.sum(b)


@triton.jit
def tanh(x):
    """The hyperbolic tangent, to fp32's rounding."""
    size = tl.abs(x)
    square = x * x
    # Padé's, right to 1e-10 below 0.5, where the exponentials would cancel.
    over = x * (945.0 + square * (105.0 + square))
    small = over / (945.0 + square * (420.0 + 15.0 * square))
    e = exp2(size * -2.8853900817779268)  # exp(-2 size)
    large = (1.0 - e) / (1.0 + e)
    return tl.where(size < 0.5, small, tl.where(x < 0, -large, large))


@triton.jit
def capped(raw, softcap, inverse_softcap, SOFTCAP: tl.constexpr):
    """``softcap * tanh(raw / softcap)`` where there is a softcap; -inf, a masked id, stays -inf.

    Args:
        raw: logits.
        softcap: a number, if SOFTCAP.
        inverse_softcap: 1 / softcap.
        SOFTCAP: whether there is a softcap.
    """
    if SOFTCAP:
        lowest = float("-inf")
        return tl.where(raw == lowest, lowest, softcap * tanh(raw * inverse_softcap))
    else:
        return raw


@triton.jit
def scale_of(scale, row, PER_ROW: tl.constexpr):
    """``log2(e) / temperature`` of a row: one number for all, or one per row.

    Args:
        scale: log2(e) / temperature: a number or [T].
        row: the token.
        PER_ROW: whether ``scale`` is [T].
    """
    if PER_ROW:
        return tl.load(scale + row)
    else:
        return scale


@triton.jit
def upcast(x, GEMM: tl.constexpr):
    """``x`` as the GEMM takes it, in fp32."""
    return x.to(GEMM).to(tl.float32)


@triton.jit
def operand(x, GEMM: tl.constexpr):
    """``x`` as ``tl.dot`` takes it; the interpreter would multiply the bits of bfloat16."""
    if _COMPILED:
        return x.to(GEMM)
    else:
        return x.to(GEMM).to(tl.float32)


@triton.jit
def halves(z, ROWS: tl.constexpr, IDS: tl.constexpr):
    """The left and the right half of the columns."""
    return tl.split(tl.permute(tl.reshape(z, (ROWS, 2, IDS // 2)), (0, 2, 1)))
