"""The fused kernel in plain Triton, for GPUs whose products accumulate in tensor memory (sm_100).

One program a multiprocessor multiplies a tile of 128 rows and 256 ids, and updates the online
softmax of each row by a quarter of the tile at a time, so that a quarter's logits are in registers
together. Arguments and results are those of
:mod:`siri_kernels.linear_logprob.triton.fused_kernels`, but that a quarter is 64 ids in a row: the
join has a constant for it. Tests run it in Triton's interpreter, too. Nothing was measured yet, so
calls take it only where ``SIRI_KERNELS_FUSED=1`` says so.
"""

from __future__ import annotations

import triton
import triton.language as tl

from siri_kernels.linear_logprob.triton.kernel_math import (
    LARGE,
    at_least,
    capped,
    exp2,
    halves,
    scale_of,
)

GROUP = 16  # row blocks that go through the vocabulary together
STAGES, WARPS = 3, 8  # on four warps 320 bytes of stack a thread, on eight 64


@triton.jit
def _item(item, row_blocks, splits, GROUP: tl.constexpr):
    """Row block and split of a work item."""
    per_group = GROUP * splits
    group = item // per_group
    first = group * GROUP
    height = tl.minimum(row_blocks - first, GROUP)
    within = item % per_group
    return first + within % height, within // height


@triton.jit
def _update(
    z, first, state, bits, row, there, target, floor, by, scratch, bias, target_logit, vocabulary,
    within, masked, log2_eps, softcap, inverse_softcap, IDS: tl.constexpr,
    TOP_ENTRIES: tl.constexpr, BIAS: tl.constexpr, SOFTCAP: tl.constexpr, PER_ROW: tl.constexpr,
):  # fmt: skip
    """Updates the rows' online softmax by ``IDS`` products; the new state and bits.

    Args:
        z: [ROWS, IDS] products.
        first: the first id.
        state: [ROWS] each: maximum, sum, sum for the entropy.
        bits: [ROWS] int32.
        row: [ROWS].
        there: [ROWS], which rows there are.
        target: [ROWS].
        floor: [ROWS].
        by: [ROWS], log2(e) / temperature.
        scratch: [ROWS] pointers, where the logits go if they matter.
        bias: as the kernel has it.
        target_logit: the same.
        vocabulary: the same.
        within: number of the tile.
        masked: as the kernel has it.
        log2_eps: the same.
        softcap: the same.
        inverse_softcap: the same.
        IDS: of ``z``.
        TOP_ENTRIES: as the kernel has it.
        BIAS: the same.
        SOFTCAP: the same.
        PER_ROW: the same.
    """
    RAW: tl.constexpr = BIAS or PER_ROW
    top_so_far, total, dev = state
    column = tl.arange(0, IDS)
    if BIAS:
        last = (vocabulary - 1) // IDS * IDS  # of a tile beyond the vocabulary any is masked
        z += tl.load(bias + tl.minimum(first, last) + column)[None, :]
    z = capped(z, softcap, inverse_softcap, SOFTCAP)
    at_target = target - first
    inside = (at_target >= 0) & (at_target < IDS)
    if tl.max(inside.to(tl.int32), 0) > 0:
        mine = column[None, :] == at_target[:, None]
        tl.store(target_logit + row, tl.sum(tl.where(mine, z, 0.0), 1), mask=inside)
        z = tl.where(mine, masked, z)
    if first + IDS > vocabulary:
        z = tl.where((first + column < vocabulary)[None, :], z, masked)
    top = tl.max(z, 1)
    if RAW:
        shift = tl.maximum(top_so_far, top)
        step = tl.maximum((top_so_far - shift) * by, -1000.0)
        level = shift * by
        centred = at_least((z - shift[:, None]) * by[:, None], -1000.0)
    else:
        shift = tl.maximum(top_so_far, top * by)
        step = tl.maximum(top_so_far - shift, -1000.0)
        level = shift
        centred = z * by[:, None] - shift[:, None]
    e = exp2(centred)
    fade = tl.exp2(step)
    dev = (dev + step * total) * fade + tl.sum(centred * e, 1)
    total = total * fade + tl.sum(e, 1)
    if TOP_ENTRIES:
        bound = tl.maximum(floor, level + tl.log2(total)) + log2_eps
        matters = there & (top * by >= tl.maximum(bound, -LARGE))
        tl.store(scratch[:, None] + column[None, :], z, mask=matters[:, None])
        bits = bits | tl.where(matters, 1 << within, 0)
    return (shift, total, dev), bits


@triton.jit(
    do_not_specialize=[
        "rows", "vocabulary", "width", "row_blocks", "first_tile", "splits", "tiles_each", "stride",
        "scale", "masked", "log2_eps", "softcap", "inverse_softcap",
    ]
)  # fmt: skip
def fused_plain_kernel(
    x_desc, w_desc, targets, floors, part_max, part_sum, part_dev, part_bits, target_logit, scratch,
    bias, rows, vocabulary, width, row_blocks, first_tile, splits, tiles_each, stride, scale,
    masked, log2_eps, softcap, inverse_softcap, ROWS: tl.constexpr, IDS: tl.constexpr,
    STEP: tl.constexpr, GROUP: tl.constexpr, TOP_ENTRIES: tl.constexpr, BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr, PER_ROW: tl.constexpr,
):  # fmt: skip
    """Online softmax of all rows over ``splits`` splits from ``first_tile`` on.

    Args:
        x_desc: descriptor of ``hidden`` [T, D].
        w_desc: descriptor of ``weight`` [V, D].
        targets: [T] int32 ids, or -1 for none.
        floors: [T] running log-sum-exp with the target's logit, in exponents of two.
        part_max: [splits, T], written: maximum of a split; with BIAS or PER_ROW a raw logit.
        part_sum: [splits, T], written: its sum.
        part_dev: [splits, T], written: its sum for the entropy.
        part_bits: [splits, T, 4] int32, written: bit i for a quarter of tile i of the split that is
            in ``scratch``.
        target_logit: [T], written where the target is seen.
        scratch: [T, stride, IDS] tiles of raw logits, of which quarters that matter are written.
        bias: [tiles * IDS] float32, if BIAS.
        rows: T.
        vocabulary: V.
        width: D.
        row_blocks: blocks of ROWS tokens.
        first_tile: first tile of the part.
        splits: of the part.
        tiles_each: tiles of a split.
        stride: of ``scratch``, in tiles.
        scale: log2(e) / temperature: a number or [T].
        masked: raw logit of a masked product.
        log2_eps: log2 of the least probability that is saved.
        softcap: a number, if SOFTCAP.
        inverse_softcap: 1 / softcap.
        ROWS: tokens of a block.
        IDS: ids of a tile.
        STEP: columns of a step.
        GROUP: blocks of tokens that share tiles of ``weight`` in the L2.
        TOP_ENTRIES: whether top entries are saved.
        BIAS: whether there is a bias.
        SOFTCAP: whether there is a softcap.
        PER_ROW: whether ``scale`` is [T].
    """
    START: tl.constexpr = -LARGE if BIAS or PER_ROW else -1.0e30
    QUARTER: tl.constexpr = IDS // 4
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    steps = tl.cdiv(width, STEP)
    for item in range(program, row_blocks * splits, programs):
        block, split = _item(item, row_blocks, splits, GROUP)
        row = block * ROWS + tl.arange(0, ROWS)
        there = row < rows
        target = tl.load(targets + row, mask=there, other=-1)
        floor = tl.load(floors + row, mask=there, other=1.0e30)
        by = tl.zeros([ROWS], tl.float32) + scale_of(scale, tl.minimum(row, rows - 1), PER_ROW)
        state = (
            tl.full([ROWS], START, tl.float32),
            tl.zeros([ROWS], tl.float32),
            tl.zeros([ROWS], tl.float32),
        )
        bits_0 = tl.zeros([ROWS], tl.int32)
        bits_1, bits_2, bits_3 = bits_0, bits_0, bits_0
        for within in range(tiles_each):
            local = (split * tiles_each + within) * IDS
            first = first_tile * IDS + local
            # No box lies wholly outside: what it brings instead are ids that are masked.
            an_id = tl.minimum(first, vocabulary - 1)
            z = tl.zeros([ROWS, IDS], tl.float32)
            for k in range(steps):
                x = x_desc.load([block * ROWS, k * STEP])
                w = w_desc.load([an_id, k * STEP])
                z = tl.dot(x, w.T, z)
            left, right = halves(z, ROWS, IDS)
            z_0, z_1 = halves(left, ROWS, IDS // 2)
            z_2, z_3 = halves(right, ROWS, IDS // 2)
            place = scratch + row.to(tl.int64) * (stride * IDS) + local
            state, bits_0 = _update(
                z_0, first, state, bits_0, row, there, target, floor, by, place, bias,
                target_logit, vocabulary, within, masked, log2_eps, softcap, inverse_softcap,
                QUARTER, TOP_ENTRIES, BIAS, SOFTCAP, PER_ROW,
            )  # fmt: skip
            state, bits_1 = _update(
                z_1, first + QUARTER, state, bits_1, row, there, target, floor, by,
                place + QUARTER, bias, target_logit, vocabulary, within, masked, log2_eps, softcap,
                inverse_softcap, QUARTER, TOP_ENTRIES, BIAS, SOFTCAP, PER_ROW,
            )  # fmt: skip
            state, bits_2 = _update(
                z_2, first + 2 * QUARTER, state, bits_2, row, there, target, floor, by,
                place + 2 * QUARTER, bias, target_logit, vocabulary, within, masked, log2_eps,
                softcap, inverse_softcap, QUARTER, TOP_ENTRIES, BIAS, SOFTCAP, PER_ROW,
            )  # fmt: skip
            state, bits_3 = _update(
                z_3, first + 3 * QUARTER, state, bits_3, row, there, target, floor, by,
                place + 3 * QUARTER, bias, target_logit, vocabulary, within, masked, log2_eps,
                softcap, inverse_softcap, QUARTER, TOP_ENTRIES, BIAS, SOFTCAP, PER_ROW,
            )  # fmt: skip
        top, total, dev = state
        base = split.to(tl.int64) * rows + row
        tl.store(part_max + base, top, mask=there)
        tl.store(part_sum + base, total, mask=there)
        tl.store(part_dev + base, dev, mask=there)
        if TOP_ENTRIES:
            tl.store(part_bits + base * 4, bits_0, mask=there)
            tl.store(part_bits + base * 4 + 1, bits_1, mask=there)
            tl.store(part_bits + base * 4 + 2, bits_2, mask=there)
            tl.store(part_bits + base * 4 + 3, bits_3, mask=there)
