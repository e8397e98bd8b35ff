"""Hopper: the head's product and the gradient of its logits in one persistent kernel (Gluon).

The ring, its producer and the two warpgroups are those of
:mod:`siri_kernels.linear_logprob.triton.fused_kernels`. What differs is the end of a tile: a
warpgroup turns its 64 x 256 raw logits into their gradients in registers, rounds them to 16 bits
and lays them into shared memory of its own, from where the hardware copies them out while the next
tile is multiplied. Logits never leave the chip. The arithmetic is that of ``gradient_kernel`` in
:mod:`siri_kernels.linear_logprob.triton.kernels`.

A work item is 128 rows times one tile of ids. A row is a token's. The output has whole tiles and
whole blocks of rows, so nothing is cut off at its edges: what lies beyond the last token and the
last id is never read.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from siri_kernels.linear_logprob.triton.fused_kernels import _item, _produce
from siri_kernels.linear_logprob.triton.kernel_math import LOWEST, at_least, capped, exp2

copy_out = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global  # renamed in 3.9

# Three slots of the ring and a tile of 16 bits for each warpgroup: 208 of 227 KiB.
STAGES = 3

SIZES = ["rows", "vocabulary", "width", "row_blocks", "first_tile", "tiles", "rule_stride"]
NUMBERS = ["softcap", "inverse_softcap"]


# One element after the other: in steps over all 128 of a thread, registers do not suffice.
@gluon.jit
def _gradient_of_logprob(z, top, scale, offset):
    return exp2((z - top) * scale) * offset


@gluon.jit
def _gradient(z, top, scale, offset, slope):
    y = at_least((z - top) * scale, LOWEST)
    return exp2(y) * (offset + y * slope)


@gluon.jit
def _capped_gradient(raw, top, scale, offset, slope, head, from_target, softcap, inverse_softcap):
    z = capped(raw, softcap, inverse_softcap, True)
    grad = _gradient(z, top, scale, offset, slope)
    if from_target == 0:
        grad = head
    part = gl.maximum(z * inverse_softcap, -1.0)  # a masked id's is -inf, and 0 * inf NaN
    return grad * (1.0 - part * part)


@gluon.jit
def _consume(
    dz_desc, x, w, full, empty, out, targets, rule, bias, rows, vocabulary, width, row_blocks,
    first_tile, tiles, rule_stride, softcap, inverse_softcap, WHICH: gl.constexpr,
    HALF: gl.constexpr, IDS: gl.constexpr, STEP: gl.constexpr, GROUP: gl.constexpr,
    BIAS: gl.constexpr, SOFTCAP: gl.constexpr, SLOPE: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    LOGITS: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, IDS, 16]
    )
    ROWS: gl.constexpr = gl.SliceLayout(1, LOGITS)
    COLUMNS: gl.constexpr = gl.SliceLayout(0, LOGITS)
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    steps = gl.cdiv(width, STEP)
    lane = gl.arange(0, HALF, layout=ROWS)
    column = gl.arange(0, IDS, layout=COLUMNS)
    turn = 0
    for pair in range(gl.cdiv(row_blocks * tiles - program, programs)):
        block, tile = _item(program + pair * programs, row_blocks, tiles, GROUP)
        first = (first_tile + tile) * IDS
        begin = block * 2 * HALF + WHICH * HALF
        row = begin + lane
        there = row < rows
        target = gl.load(targets + row, mask=there, other=-1)
        scale = gl.load(rule + row, mask=there, other=0.0)
        top = gl.load(rule + rule_stride + row, mask=there, other=0.0)
        head = gl.load(rule + 2 * rule_stride + row, mask=there, other=0.0)
        offset = gl.load(rule + 3 * rule_stride + row, mask=there, other=0.0)
        slope = gl.zeros([HALF], gl.float32, layout=ROWS)
        if SLOPE:
            slope = gl.load(rule + 4 * rule_stride + row, mask=there, other=0.0)
        z = gl.zeros([HALF, IDS], gl.float32, layout=LOGITS)
        for k in range(steps):
            slot = turn % STAGES
            mbarrier.wait(full.index(slot), (turn // STAGES) & 1)
            z = warpgroup_mma(x.index(slot), w.index(slot).permute((1, 0)), z, is_async=True)
            z = warpgroup_mma_wait(1, deps=(z,))
            # The products of the step before are done (an arrive waits for all four warps).
            mbarrier.arrive(empty.index((turn + STAGES - 1) % STAGES), count=1, pred=k > 0)
            turn += 1
        z = warpgroup_mma_wait(0, deps=(z,))
        mbarrier.arrive(empty.index((turn + STAGES - 1) % STAGES), count=1)
        at_target = target - first  # inside never of a row that is not there
        if BIAS:
            z = z + gl.load(bias + first + column)[None, :]
        if SOFTCAP:
            grad = gl.map_elementwise(
                _capped_gradient, z, top[:, None], scale[:, None], offset[:, None],
                slope[:, None], head[:, None], column[None, :] - at_target[:, None], softcap,
                inverse_softcap,
            )  # fmt: skip
        else:
            if SLOPE:
                grad = gl.map_elementwise(
                    _gradient, z, top[:, None], scale[:, None], offset[:, None], slope[:, None]
                )
            else:
                grad = gl.map_elementwise(
                    _gradient_of_logprob, z, top[:, None], scale[:, None], offset[:, None]
                )
            inside = (at_target >= 0) & (at_target < IDS)
            if gl.max(inside.to(gl.int32), 0) > 0:
                grad = gl.where(column[None, :] == at_target[:, None], head[:, None], grad)
        # The copy of the tile before has read ``out`` long ago.
        tma.store_wait(0)
        out.store(grad.to(out.dtype))
        fence_async_shared()
        copy_out(dz_desc, [begin, tile * IDS], out)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=SIZES + NUMBERS)
def fused_gradient_kernel(
    x_desc, w_desc, dz_desc, targets, rule, bias, rows, vocabulary, width, row_blocks, first_tile,
    tiles, rule_stride, softcap, inverse_softcap, HALF: gl.constexpr, IDS: gl.constexpr,
    STEP: gl.constexpr, GROUP: gl.constexpr, BIAS: gl.constexpr, SOFTCAP: gl.constexpr,
    SLOPE: gl.constexpr, STAGES: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Gradient of the raw logits of all rows and ``tiles`` tiles from ``first_tile`` on.

    Args:
        x_desc: descriptor of ``hidden`` [T, D].
        w_desc: descriptor of ``weight`` [V, D].
        dz_desc: descriptor of the gradient, written: whole blocks of rows, whole tiles of ids.
        targets: [T] int32 ids, or -1 for none.
        rule: [5, rule_stride]: log2(e) / temperature, then largest logit, gradient at the target,
            offset and slope by exponents of GradientRule, the last three with the factor in them.
        bias: [V] float32 and up to whole tiles, if BIAS.
        rows: T.
        vocabulary: V.
        width: D.
        row_blocks: blocks of 2 * HALF tokens.
        first_tile: first tile of the launch.
        tiles: of the launch.
        rule_stride: of ``rule``.
        softcap: a number, if SOFTCAP.
        inverse_softcap: 1 / softcap.
        HALF: tokens of a warpgroup.
        IDS: ids of a tile.
        STEP: columns of a step.
        GROUP: blocks of tokens that share tiles of ``weight`` in the L2.
        BIAS: whether there is a bias.
        SOFTCAP: whether there is a softcap.
        SLOPE: whether the entropy has a gradient.
        STAGES: slots of the ring.
        CONSUMER_REGISTERS: registers a thread of a warpgroup.
        PRODUCER_REGISTERS: the same of the producer.
    """
    gl.static_assert(STAGES >= 2)  # a slot is released in the step after
    dtype: gl.constexpr = x_desc.dtype
    upper = gl.allocate_shared_memory(dtype, [STAGES, HALF, STEP], x_desc.layout)
    lower = gl.allocate_shared_memory(dtype, [STAGES, HALF, STEP], x_desc.layout)
    ids = gl.allocate_shared_memory(dtype, [STAGES, IDS, STEP], w_desc.layout)
    upper_out = gl.allocate_shared_memory(dtype, [HALF, IDS], dz_desc.layout)
    lower_out = gl.allocate_shared_memory(dtype, [HALF, IDS], dz_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()  # the barriers, to the copies; all warps meet before they part
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    dz_desc, upper, ids, full, empty, upper_out, targets, rule, bias, rows,
                    vocabulary, width, row_blocks, first_tile, tiles, rule_stride, softcap,
                    inverse_softcap, 0, HALF, IDS, STEP, GROUP, BIAS, SOFTCAP, SLOPE, STAGES,
                ),
            ),
            (
                _consume,
                (
                    dz_desc, lower, ids, full, empty, lower_out, targets, rule, bias, rows,
                    vocabulary, width, row_blocks, first_tile, tiles, rule_stride, softcap,
                    inverse_softcap, 1, HALF, IDS, STEP, GROUP, BIAS, SOFTCAP, SLOPE, STAGES,
                ),
            ),
            (
                _produce,
                (
                    x_desc, w_desc, upper, lower, ids, full, empty, empty, rows, vocabulary, width,
                    row_blocks, first_tile, tiles, 1, HALF, IDS, STEP, GROUP, STAGES, 1,
                ),
            ),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
