"""The epilogue of the screen's products: the online softmax of a tile, and its candidates."""

from __future__ import annotations

import triton
import triton.language as tl

from siri_kernels.linear_logprob.screen_triton.draws import mixed, one_to_two
from siri_kernels.linear_logprob.triton.kernel_math import (
    LARGE,
    LOWEST,
    at_least,
    capped,
    exp2,
    halves,
)

NONE = tl.constexpr(2**31 - 1)  # greater than any id
# Above all exponentials; its product with ``sparseness`` is finite: inf - inf would be NaN.
_UNREACHED = tl.constexpr(1e30)


@triton.jit
def _update_piece(
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
    at_target = target - first
    # Few tiles hold an id that is left out, so the others must not pay for it: with a barrier in it
    # the compiler does not turn the branch into selections.
    rare = first + IDS > vocabulary
    rare = rare | (tl.max(((at_target >= 0) & (at_target < IDS)).to(tl.int32), 0) > 0)
    some_odd = False
    odd = there
    if DRAWN:
        odd = there & (id_scale < 0)
        some_odd = tl.max(odd.to(tl.int32), 0) > 0
        rare = rare | some_odd
    if rare:
        tl.debug_barrier()
        usual = there & (odd == 0) if DRAWN else there
        z = tl.where(usual[None, :] & (column[None, :] != target[:, None]), z, float("-inf"))
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
        bound = tl.where(new_top > float("-inf"), least * (total + rest), _UNREACHED)
        bound = tl.where(count <= places, bound, float("inf"))  # else it is computed exactly
        reached = e
        if DRAWN:
            if some_odd:
                tl.debug_barrier()
                given = odd[None, :] & (column[None, :] != target[:, None])
                reached = tl.where(given, LARGE, reached)
            drawn = one_to_two(seed[:, None], mixed(column)[None, :])
            # ``bound * weight_of(...)``, in fewer instructions.
            most = bound * sparseness
            needed = (2 * most)[:, None] - drawn * most[:, None]
            keep = reached >= tl.minimum(needed, bound[:, None])
        else:
            keep = reached >= bound[:, None]
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
def update(
    z, first, state, target, floor, by, seed, slot, bias, scales, cand_id, cand_z, places,
    vocabulary, least, sparseness, softcap, inverse_softcap, row_scale, shared,
    ROWS: tl.constexpr, IDS: tl.constexpr, PIECES: tl.constexpr, BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr, CANDIDATES: tl.constexpr, DRAWN: tl.constexpr,
):  # fmt: skip
    """:func:`_update_piece` by a tile, a piece of its ids at a time.

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
        return _update_piece(
            z, first, state, target, floor, by, seed, slot, bias, id_scale, cand_id, cand_z,
            places, vocabulary, least, sparseness, softcap, inverse_softcap, IDS, BIAS, SOFTCAP,
            CANDIDATES, DRAWN,
        )  # fmt: skip
    else:
        left, right = halves(z, ROWS, IDS)
        state = update(
            left, first, state, target, floor, by, seed, slot, bias, scales, cand_id, cand_z,
            places, vocabulary, least, sparseness, softcap, inverse_softcap, row_scale, shared,
            ROWS, IDS // 2, PIECES // 2, BIAS, SOFTCAP, CANDIDATES, DRAWN,
        )  # fmt: skip
        return update(
            right, first + IDS // 2, state, target, floor, by, seed, slot, bias, scales, cand_id,
            cand_z, places, vocabulary, least, sparseness, softcap, inverse_softcap, row_scale,
            shared, ROWS, IDS // 2, PIECES // 2, BIAS, SOFTCAP, CANDIDATES, DRAWN,
        )  # fmt: skip
