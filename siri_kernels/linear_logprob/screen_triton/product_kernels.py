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

from siri_kernels.linear_logprob.screen_triton.draws import seed_of, splits_of
from siri_kernels.linear_logprob.screen_triton.epilogue import update
from siri_kernels.linear_logprob.triton.kernel_math import operand


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
    INTEGERS: tl.constexpr, BOXES: tl.constexpr,
):  # fmt: skip
    """Online softmax and candidates of rows by their 8-bit product.

    Arrays over blocks and splits have one row of ROWS for each split of each block, block after
    block; with :func:`siri_kernels.linear_logprob.screen_triton.draws.splits_of` splits.

    Args:
        live: [1] int32, how many of the rows are computed: the first.
        codes: [R, W] 8-bit numbers of the hidden states; their descriptor, if BOXES.
        weight_codes: [V, W] of the weight, the same.
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
        sparseness: as :func:`siri_kernels.linear_logprob.screen_triton.draws.weight_of` has it.
        softcap: a number, if SOFTCAP.
        inverse_softcap: 1 / softcap.
        ROWS: rows of a block.
        IDS: ids of a tile.
        STEP: columns of a step.
        PIECES: of a tile's epilogue.
        BIAS: whether there is a bias.
        SOFTCAP: whether there is a softcap.
        INTEGERS: whether ``codes`` are int8, else an 8-bit float.
        BOXES: whether the GPU copies whole boxes (TMA).
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
        if not BOXES:
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
            if not BOXES:
                w_at = weight_codes + column.to(tl.int64)[:, None] * width + step[None, :]
            if INTEGERS:
                z = tl.zeros([ROWS, IDS], tl.int32)
            else:
                z = tl.zeros([ROWS, IDS], tl.float32)
            for k in range(steps):
                if BOXES:
                    x = codes.load([block * ROWS, k * STEP])
                    w = weight_codes.load([first, k * STEP])
                else:
                    inside = (step < width - k * STEP)[None, :]
                    x = tl.load(x_at + k * STEP, mask=there[:, None] & inside, other=0.0)
                    w_there = (column < vocabulary)[:, None] & inside
                    w = tl.load(w_at + k * STEP, mask=w_there, other=0.0)
                z = tl.dot(x, tl.trans(w), z, out_dtype=z.dtype)
            state = update(
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
            state = update(
                z, first, state, target, floor, by, target, slot, bias, bias, cand_id, cand_z,
                places, vocabulary, least, 1.0, softcap, inverse_softcap, by, by, ROWS, IDS,
                PIECES, BIAS, SOFTCAP, CANDIDATES, False,
            )  # fmt: skip
        top, total, dev, count = state
        tl.store(part_max + base, top)
        tl.store(part_sum + base, total)
        tl.store(part_dev + base, dev)
        tl.store(part_count + base, count)
