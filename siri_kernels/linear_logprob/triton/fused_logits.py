"""Operations of the fused kernels on a tile of products in registers (Gluon).

The formulas of options are those of :mod:`siri_kernels.linear_logprob.triton.kernel_math`.
A thread of a warpgroup holds two rows of a tile, and of each row a quarter: pairs of neighbours
8 columns apart.
"""

from __future__ import annotations

from triton import language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# What an exponent is at least, where -inf can occur: 0 times it is 0, and 2 to its power is 0.
LEAST = gl.constexpr(-1000.0)
LARGE = gl.constexpr(3.4028234663852886e38)  # largest finite


@gluon.constexpr_function
def threads(CLUSTER):
    """The layout of a tile of 64 rows a program and 256 ids as [row, quarter, place].

    Args:
        CLUSTER: programs that share the rows: 1 or 2.
    """
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 1], [8, 0, 0], [0, 0, 2], [0, 0, 4], [0, 0, 8], [0, 0, 16], [0, 0, 32]],
        lane_bases=[[0, 1, 0], [0, 2, 0], [1, 0, 0], [2, 0, 0], [4, 0, 0]],
        warp_bases=[[16, 0, 0], [32, 0, 0]],
        block_bases=[[64, 0, 0]][: CLUSTER - 1],
        shape=[64 * CLUSTER, 4, 64],
    )


@gluon.jit
def exp2(x):
    """``2 ** x``; results below the normal numbers are 0."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], gl.float32, True, 1)


@gluon.jit
def _tanh(x):
    size = gl.abs(x)
    square = x * x
    over = x * (945.0 + square * (105.0 + square))
    small = over / (945.0 + square * (420.0 + 15.0 * square))
    e = exp2(size * -2.8853900817779268)  # exp(-2 size)
    large = (1.0 - e) / (1.0 + e)
    return gl.where(size < 0.5, small, gl.where(x < 0, -large, large))


@gluon.jit
def capped(raw, softcap, inverse_softcap):
    """``softcap * tanh(raw / softcap)``; -inf, a masked id, stays -inf.

    Args:
        raw: logits.
        softcap: a number.
        inverse_softcap: 1 / softcap.
    """
    lowest = float("-inf")
    return gl.where(raw == lowest, lowest, softcap * _tanh(raw * inverse_softcap))


@gluon.jit
def at_least(x, low):
    """The larger of both, NaN if ``x`` is NaN."""
    return gl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)


@gluon.jit
def quarters(z, HALF: gl.constexpr, IDS: gl.constexpr, CLUSTER: gl.constexpr):
    """``z`` [HALF, IDS] as [HALF, 4, IDS / 4]: each thread's part of a row, in id order.

    Place ``2 * i + b`` of quarter ``q`` is column ``8 * i + 2 * q + b``. No value changes its
    thread.
    """
    gl.static_assert(HALF == 64 * CLUSTER and IDS == 256)
    z = z.reshape([HALF, IDS // 8, 4, 2]).permute((0, 2, 1, 3)).reshape([HALF, 4, IDS // 4])
    return gl.convert_layout(z, threads(CLUSTER), assert_trivial=True)


@gluon.jit
def store_quarters(base, z, mask, IDS: gl.constexpr, CLUSTER: gl.constexpr):
    """Stores the quarters of rows that ``mask`` [HALF, 4] names, each as consecutive places.

    Args:
        base: [HALF] where a row's tile begins.
        z: [HALF, 4, IDS / 4] from :func:`quarters`.
        mask: [HALF, 4].
        IDS: of a tile.
        CLUSTER: as :func:`threads` has it.
    """
    THREADS: gl.constexpr = threads(CLUSTER)
    QUARTERS: gl.constexpr = gl.SliceLayout(2, THREADS)
    quarter = gl.arange(0, 4, layout=gl.SliceLayout(0, QUARTERS)) * (IDS // 4)
    place = gl.arange(0, IDS // 4, layout=gl.SliceLayout(0, gl.SliceLayout(1, THREADS)))
    at = base[:, None] + quarter[None, :]
    gl.store(at[:, :, None] + place[None, None, :], z, mask=mask[:, :, None])
