"""The 8-bit product of all tokens and ids with the softmax in its epilogue, and the exact one.

One program multiplies a block of rows, which are tokens, with the tiles of a split of the
vocabulary. It updates each row's online softmax by a tile and writes down the row's candidates,
ids ascending: entries that may have probability ``least`` or more, and of the smaller ones a random
sample (:mod:`siri_kernels.linear_logprob.screen.running`). How many rows there are is read on the
device: nothing waits for the host, and a launch without rows costs nothing.

Logits are raw ones, before the temperature
(:mod:`siri_kernels.linear_logprob.triton.kernel_math`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from siri_kernels.linear_logprob.triton.kernel_math import (
    LARGE,
    LOWEST,
    at_least,
    capped,
    exp2,
    operand,
)

NONE = tl.constexpr(2**31 - 1)  # greater than any id
MOST_SPLITS = tl.constexpr(256)  # a power of two


@triton.jit
def mixed(x):
    """A hash of 32 bits, as int32 or uint32."""
    x = x.to(tl.uint32, bitcast=True)
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def seed_of(scale, shared, target):
    """A hash of a row's own numbers: its sample is the same in any batch.

    Args:
        scale: of the row's 8-bit numbers.
        shared: the row's logit that all ids share.
        target: its target.
    """
    x = mixed(scale.to(tl.int32, bitcast=True)) ^ shared.to(tl.uint32, bitcast=True)
    return mixed(mixed(x) ^ target.to(tl.uint32, bitcast=True))


@triton.jit
def weight_of(seed, id, sparseness):
    """What makes an entry a candidate: probability ``weight * least``; uniform up to 1.

    Args:
        seed: of the row, from :func:`seed_of`.
        id: the id, hashed with :func:`mixed`.
        sparseness: one of probability p is drawn with the chance ``p / (sparseness * least)``.
    """
    x = (seed ^ id) * 0x9E3779B1
    one_to_two = ((x >> 9) | 0x3F800000).to(tl.float32, bitcast=True)
    return tl.minimum((2.0 - one_to_two) * sparseness, 1.0)


@triton.jit
def splits_of(rows, vocabulary, programs, ROWS: tl.constexpr, IDS: tl.constexpr):
    """Splits of the vocabulary that give every program work.

    Args:
        rows: number of them.
        vocabulary: V.
        programs: that run at a time.
        ROWS: rows of a block.
        IDS: ids of a tile.
    """
    blocks = tl.maximum(tl.cdiv(rows, ROWS), 1)
    most = tl.minimum(tl.cdiv(vocabulary, IDS), MOST_SPLITS)
    return tl.maximum(tl.minimum(programs // blocks, most), 1)


@triton.jit
def _halves(z, ROWS: tl.constexpr, IDS: tl.constexpr):
    """The left and the right half of the columns."""
    return tl.split(tl.permute(tl.reshape(z, (ROWS, 2, IDS // 2)), (0, 2, 1)))


@triton.jit
def _update(
    z, first, state, target, floor, by, seed, slot, bias, id_scale, cand_id, cand_z, places,
    vocabulary, least, sparseness, softcap, inverse_softcap, IDS: tl.constexpr,
    BIAS: tl.constexpr, SOFTCAP: tl.constexpr, CANDIDATES: tl.constexpr, DRAWN: tl.constexpr,
):  # fmt: skip
    """Updates the rows' online softmax by ``IDS`` logits; the new state.

    Args:
        z: [ROWS, IDS] products, without the bias.
        first: the first id.
        state: [ROWS] each: maximum, sum, sum for the entropy, number of candidates.
        target: [ROWS].
        floor: [ROWS] target logits.
        by: [ROWS], log2(e) / temperature.
        seed: [ROWS], if DRAWN.
        slot: [ROWS] int64, where a row's candidates begin.
        bias: as the kernel has it.
        id_scale: [IDS] of the ids, negative for ids that are exact for all rows; if DRAWN.
        cand_id: as the kernel has it.
        cand_z: the same.
        places: the same.
        vocabulary: the same.
        least: the same.
        sparseness: the same.
        softcap: the same.
        inverse_softcap: the same.
        IDS: of ``z``.
        BIAS: as the kernel has it.
        SOFTCAP: the same.
        CANDIDATES: the same.
        DRAWN: whether the logits are screened ones.
    """
    top_so_far, total, dev, count = state
    column = first + tl.arange(0, IDS)
    there = column < vocabulary
    if BIAS:
        z += tl.load(bias + column, mask=there, other=0.0)[None, :]
    z = capped(z, softcap, inverse_softcap, SOFTCAP)
    if first + IDS > vocabulary:
        z = tl.where(there[None, :], z, float("-inf"))
    at_target = target - first
    # Few tiles hold a row's target, so the others must not pay for it.
    if tl.max(((at_target >= 0) & (at_target < IDS)).to(tl.int32), 0) > 0:
        z = tl.where(column[None, :] == target[:, None], float("-inf"), z)
    some_odd = False
    odd = there
    if DRAWN:
        odd = there & (id_scale < 0)
        some_odd = tl.max(odd.to(tl.int32), 0) > 0
        if some_odd:
            z = tl.where(odd[None, :], float("-inf"), z)
    top = tl.max(z, 1)
    new_top = tl.maximum(top_so_far, top)
    shift = tl.maximum(new_top, -LARGE)
    y = at_least((z - shift[:, None]) * by[:, None], LOWEST)
    e = exp2(y)
    step = tl.maximum((top_so_far - shift) * by, LOWEST)
    fade = tl.exp2(step)
    dev = (dev + step * total) * fade + tl.sum(y * e, 1)
    total = total * fade + tl.sum(e, 1)
    if CANDIDATES:
        rest = tl.exp2(tl.minimum((floor - shift) * by, 126.0))
        # Where all was -inf, the target too, everything would reach a bound of 0.
        bound = tl.where(new_top > float("-inf"), least * (total + rest), float("inf"))
        if DRAWN:
            weight = weight_of(seed[:, None], mixed(column)[None, :], sparseness)
            keep = e >= bound[:, None] * weight
            if some_odd:
                keep = keep | (odd[None, :] & (column[None, :] != target[:, None]))
        else:
            keep = e >= bound[:, None]
        keep = keep & (count <= places)[:, None]  # such a row is computed exactly, or once more
        # Most rows have none, some one: each round takes the first of each row, so that ids ascend.
        left = tl.where(keep, column[None, :], NONE)
        least_id = tl.min(left, 1)
        while tl.min(least_id, 0) < NONE:
            hit = left == least_id[:, None]
            logit = tl.sum(tl.where(hit, z, 0.0), 1)
            fits = (least_id < NONE) & (count < places)
            tl.store(cand_id + slot + count, least_id, mask=fits)
            tl.store(cand_z + slot + count, logit, mask=fits)
            count += (least_id < NONE).to(tl.int32)
            left = tl.where(hit, NONE, left)
            least_id = tl.min(left, 1)
    return new_top, total, dev, count


@triton.jit
def _update_pieces(
    z, first, state, target, floor, by, seed, slot, bias, scales, cand_id, cand_z, places,
    vocabulary, least, sparseness, softcap, inverse_softcap, row_scale, shared,
    ROWS: tl.constexpr, IDS: tl.constexpr, PIECES: tl.constexpr, BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr, CANDIDATES: tl.constexpr, DRAWN: tl.constexpr,
):  # fmt: skip
    """:func:`_update` by a tile, a piece of its ids at a time.

    Args:
        z: [ROWS, IDS] products as they are.
        first: as there, and so on.
        state: the same.
        target: the same.
        floor: the same.
        by: the same.
        seed: the same.
        slot: the same.
        bias: the same.
        scales: [V] of the ids, if DRAWN.
        cand_id: as there, and so on.
        cand_z: the same.
        places: the same.
        vocabulary: the same.
        least: the same.
        sparseness: the same.
        softcap: the same.
        inverse_softcap: the same.
        row_scale: [ROWS] of the rows' 8-bit numbers, if DRAWN.
        shared: [ROWS], the logit that all ids share, if DRAWN.
        ROWS: rows of the tile.
        IDS: its ids.
        PIECES: 1 or a power of two.
        BIAS: as there, and so on.
        SOFTCAP: the same.
        CANDIDATES: the same.
        DRAWN: the same.
    """
    if PIECES == 1:
        id_scale = 0.0
        z = z.to(tl.float32)
        if DRAWN:
            column = first + tl.arange(0, IDS)
            id_scale = tl.load(scales + column, mask=column < vocabulary, other=0.0)
            z = z * id_scale[None, :] * row_scale[:, None] + shared[:, None]
        return _update(
            z, first, state, target, floor, by, seed, slot, bias, id_scale, cand_id, cand_z,
            places, vocabulary, least, sparseness, softcap, inverse_softcap, IDS, BIAS, SOFTCAP,
            CANDIDATES, DRAWN,
        )  # fmt: skip
    else:
        left, right = _halves(z, ROWS, IDS)
        state = _update_pieces(
            left, first, state, target, floor, by, seed, slot, bias, scales, cand_id, cand_z,
            places, vocabulary, least, sparseness, softcap, inverse_softcap, row_scale, shared,
            ROWS, IDS // 2, PIECES // 2, BIAS, SOFTCAP, CANDIDATES, DRAWN,
        )  # fmt: skip
        return _update_pieces(
            right, first + IDS // 2, state, target, floor, by, seed, slot, bias, scales, cand_id,
            cand_z, places, vocabulary, least, sparseness, softcap, inverse_softcap, row_scale,
            shared, ROWS, IDS // 2, PIECES // 2, BIAS, SOFTCAP, CANDIDATES, DRAWN,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "vocabulary", "programs", "places", "least", "sparseness", "softcap", "inverse_softcap",
    ]
)  # fmt: skip
def screen_kernel(
    live, codes, weight_codes, row_scale, id_scale, shared, bias, targets, floors, bys, part_max,
    part_sum, part_dev, part_count, cand_id, cand_z, vocabulary, width, programs, places, least,
    sparseness, softcap, inverse_softcap, ROWS: tl.constexpr, IDS: tl.constexpr,
    STEP: tl.constexpr, PIECES: tl.constexpr, BIAS: tl.constexpr, SOFTCAP: tl.constexpr,
    INTEGERS: tl.constexpr,
):  # fmt: skip
    """Online softmax and candidates of rows by their 8-bit product.

    Arrays over blocks and splits have one row of ROWS for each split of each block, block after
    block; with :func:`splits_of` splits.

    Args:
        live: [1] int32, how many of the rows are computed: the first.
        codes: [R, W] 8-bit numbers of the hidden states.
        weight_codes: [V, W] of the weight.
        row_scale: [R] of ``codes``.
        id_scale: [V] of ``weight_codes``; negative: every row takes the id as a candidate.
        shared: [R] logit that all ids share.
        bias: [V] float32, if BIAS.
        targets: [R] int32; -1: none.
        floors: [R] target logits.
        bys: [R], log2(e) / temperature.
        part_max: [blocks, splits, ROWS], written: maximum of a split.
        part_sum: the same, written: sum of ``2 ** y``, with ``y`` the exponents.
        part_dev: the same, written: sum of ``y * 2 ** y``.
        part_count: the same, int32, written: number of candidates.
        cand_id: [blocks, splits, ROWS, places] int32, written: ids of candidates.
        cand_z: the same, float32, written: their logits; -inf where exact for all rows.
        vocabulary: V.
        width: W, a multiple of 16.
        programs: that are launched.
        places: of a row's candidates in a split.
        least: the probability from which on an entry is a candidate for certain.
        sparseness: as :func:`weight_of` has it.
        softcap: a number, if SOFTCAP.
        inverse_softcap: 1 / softcap.
        ROWS: rows of a block.
        IDS: ids of a tile.
        STEP: columns of a step.
        PIECES: of a tile's epilogue.
        BIAS: whether there is a bias.
        SOFTCAP: whether there is a softcap.
        INTEGERS: whether ``codes`` are int8, else an 8-bit float.
    """
    rows = tl.load(live)
    blocks = tl.cdiv(rows, ROWS)
    splits = splits_of(rows, vocabulary, programs, ROWS, IDS)
    tiles = tl.cdiv(vocabulary, IDS)
    steps = tl.cdiv(width, STEP)
    step = tl.arange(0, STEP)
    for item in range(tl.program_id(0), blocks * splits, programs):
        # Programs that run together share tiles of the weight.
        block, split = item % blocks, item // blocks
        local = tl.arange(0, ROWS)
        row = block * ROWS + local
        there = row < rows
        target = tl.load(targets + row, mask=there, other=-1)
        floor = tl.load(floors + row, mask=there, other=0.0)
        by = tl.load(bys + row, mask=there, other=1.0)
        times = tl.load(row_scale + row, mask=there, other=0.0)
        common = tl.load(shared + row, mask=there, other=0.0)
        seed = seed_of(times, common, target)
        base = (block * splits + split) * ROWS + local
        slot = base.to(tl.int64) * places
        x_at = codes + row.to(tl.int64)[:, None] * width + step[None, :]
        state = (
            tl.full([ROWS], float("-inf"), tl.float32),
            tl.zeros([ROWS], tl.float32),
            tl.zeros([ROWS], tl.float32),
            tl.where(there, 0, places + 1),  # of a row that is none no candidates are sought
        )
        for tile in range(split * tiles // splits, (split + 1) * tiles // splits):
            first = tile * IDS
            column = first + tl.arange(0, IDS)
            w_at = weight_codes + column.to(tl.int64)[:, None] * width + step[None, :]
            if INTEGERS:
                z = tl.zeros([ROWS, IDS], tl.int32)
            else:
                z = tl.zeros([ROWS, IDS], tl.float32)
            for k in range(steps):
                inside = (step < width - k * STEP)[None, :]
                x = tl.load(x_at + k * STEP, mask=there[:, None] & inside, other=0.0)
                w_there = (column < vocabulary)[:, None] & inside
                w = tl.load(w_at + k * STEP, mask=w_there, other=0.0)
                z = tl.dot(x, tl.trans(w), z, out_dtype=z.dtype)
            state = _update_pieces(
                z, first, state, target, floor, by, seed, slot, bias, id_scale, cand_id, cand_z,
                places, vocabulary, least, sparseness, softcap, inverse_softcap, times, common,
                ROWS, IDS, PIECES, BIAS, SOFTCAP, True, True,
            )  # fmt: skip
        top, total, dev, count = state
        tl.store(part_max + base, top)
        tl.store(part_sum + base, total)
        tl.store(part_dev + base, dev)
        tl.store(part_count + base, count)


@triton.jit(
    do_not_specialize=[
        "vocabulary", "programs", "places", "least", "softcap", "inverse_softcap",
    ]
)  # fmt: skip
def exact_kernel(
    live, index, hidden, weight, bias, targets, floors, bys, part_max, part_sum, part_dev,
    part_count, cand_id, cand_z, hidden_row, hidden_column, weight_row, weight_column, vocabulary,
    width, programs, places, least, softcap, inverse_softcap, ROWS: tl.constexpr,
    IDS: tl.constexpr, STEP: tl.constexpr, PIECES: tl.constexpr, BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr, GEMM: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """As :func:`screen_kernel`, by the product in the inputs' own precision.

    Args:
        live: [1] int32, how many of the rows are computed: the first.
        index: [R] int64, the token of each row.
        hidden: [T, D].
        weight: [V, D].
        bias: [V] float32, if BIAS.
        targets: [T] int32; -1: none.
        floors: [T] target logits.
        bys: [T], log2(e) / temperature.
        part_max: as there, and so on.
        part_sum: the same.
        part_dev: the same.
        part_count: the same.
        cand_id: the same.
        cand_z: the same, of exact logits.
        hidden_row: stride of ``hidden`` in elements.
        hidden_column: the same.
        weight_row: stride of ``weight`` in elements.
        weight_column: the same.
        vocabulary: V.
        width: D.
        programs: that are launched.
        places: as there, and so on.
        least: the same.
        softcap: the same.
        inverse_softcap: the same.
        ROWS: the same.
        IDS: the same.
        STEP: the same.
        PIECES: the same.
        BIAS: the same.
        SOFTCAP: the same.
        GEMM: dtype that the product takes.
        CANDIDATES: whether candidates are written.
    """
    rows = tl.load(live)
    blocks = tl.cdiv(rows, ROWS)
    splits = splits_of(rows, vocabulary, programs, ROWS, IDS)
    tiles = tl.cdiv(vocabulary, IDS)
    steps = tl.cdiv(width, STEP)
    step = tl.arange(0, STEP)
    for item in range(tl.program_id(0), blocks * splits, programs):
        block, split = item % blocks, item // blocks
        local = tl.arange(0, ROWS)
        there = block * ROWS + local < rows
        token = tl.load(index + block * ROWS + local, mask=there, other=0)
        target = tl.load(targets + token, mask=there, other=-1)
        floor = tl.load(floors + token, mask=there, other=0.0)
        by = tl.load(bys + token, mask=there, other=1.0)
        base = (block * splits + split) * ROWS + local
        slot = base.to(tl.int64) * places
        x_row = hidden + token[:, None] * hidden_row
        state = (
            tl.full([ROWS], float("-inf"), tl.float32),
            tl.zeros([ROWS], tl.float32),
            tl.zeros([ROWS], tl.float32),
            tl.where(there, 0, places + 1),  # of a row that is none no candidates are sought
        )
        for tile in range(split * tiles // splits, (split + 1) * tiles // splits):
            first = tile * IDS
            column = first + tl.arange(0, IDS)
            w_row = weight + column.to(tl.int64)[:, None] * weight_row
            z = tl.zeros([ROWS, IDS], tl.float32)
            for k in range(steps):
                inner = k * STEP + step
                inside = (inner < width)[None, :]
                inner = inner.to(tl.int64)[None, :]
                x = tl.load(x_row + inner * hidden_column, mask=there[:, None] & inside, other=0.0)
                w_there = (column < vocabulary)[:, None] & inside
                w = tl.load(w_row + inner * weight_column, mask=w_there, other=0.0)
                x, w = operand(x, GEMM), operand(w, GEMM)
                z = tl.dot(x, tl.trans(w), z, input_precision="ieee")
            state = _update_pieces(
                z, first, state, target, floor, by, target, slot, bias, bias, cand_id, cand_z,
                places, vocabulary, least, 1.0, softcap, inverse_softcap, by, by, ROWS, IDS,
                PIECES, BIAS, SOFTCAP, CANDIDATES, False,
            )  # fmt: skip
        top, total, dev, count = state
        tl.store(part_max + base, top)
        tl.store(part_sum + base, total)
        tl.store(part_dev + base, dev)
        tl.store(part_count + base, count)
