"""Joins the fused kernel's results over a part of the vocabulary with those of the parts before."""

from __future__ import annotations

import triton
import triton.language as tl

from siri_kernels.linear_logprob.triton.kernel_math import LARGE, scale_of


@triton.jit
def _raw_bound(bound, by, inverse_scale, PER_ROW: tl.constexpr):
    """The raw logit of the exponent ``bound``; finite or NaN, never as low as a masked logit."""
    if PER_ROW:
        raw = (bound.to(tl.float64) / by.to(tl.float64)).to(tl.float32)
    else:
        raw = (bound.to(tl.float64) * inverse_scale).to(tl.float32)
    return tl.where(raw < -LARGE, -LARGE, raw)


@triton.jit
def _save(z, ids, bound, before, top_ids, top_logits, most):
    """Saves the entries that reach ``bound`` behind the ``before`` that are there; the new number.

    Args:
        z: [n] logits.
        ids: [n], ascending.
        bound: the least logit.
        before: how many entries there are.
        top_ids: [most] of the token.
        top_logits: [most], the same.
        most: places.
    """
    keep = z >= bound
    count = keep.to(tl.int32)
    place = before + tl.cumsum(count) - 1
    fits = keep & (place < most)
    tl.store(top_ids + place, ids, mask=fits)
    tl.store(top_logits + place, z, mask=fits)
    return before + tl.sum(count)


@triton.jit(
    do_not_specialize=["rows", "first", "splits", "tiles_each", "stride", "most", "scale"],
)
def join_kernel(
    part_max, part_sum, part_dev, part_bits, scratch, maximum, total, dev, raw_max, raw_total,
    raw_dev, estimate, floors, top_ids, top_logits, found, rows, first, splits, tiles_each, stride,
    most, scale, inverse_scale, log2_eps, ln_2, SPLITS: tl.constexpr, IDS: tl.constexpr,
    TOP_ENTRIES: tl.constexpr, RAW: tl.constexpr, PER_ROW: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """One program a token.

    Entries that reach ``floors + log2_eps`` are saved behind those that are there.

    Args:
        part_max: [splits, T] maximum of a split, in exponents of two; with RAW a raw logit.
        part_sum: [splits, T] its sum.
        part_dev: [splits, T] its sum for the entropy.
        part_bits: [splits, T, 4] int32, a bit for each quarter of a tile in ``scratch``.
        scratch: [T, stride * IDS] logits of quarters that matter.
        maximum: [T] running maximum, in the unit of ``part_max``.
        total: [T] running sum.
        dev: [T] running sum for the entropy.
        raw_max: [T], written: as ``SoftmaxState`` has it, a raw logit.
        raw_total: [T], written: the same for the sum.
        raw_dev: [T], written: the same, in nats.
        estimate: [T] raw target logits.
        floors: [T] running log-sum-exp with the target's logit, in exponents of two.
        top_ids: [T, most] int32, top entries.
        top_logits: [T, most], the same.
        found: [T] int32, how many entries a token has.
        rows: T.
        first: first id of the part.
        splits: of the part.
        tiles_each: tiles of a split.
        stride: of ``scratch`` from token to token, in tiles.
        most: places a token has for top entries.
        scale: log2(e) / temperature: a number or [T].
        inverse_scale: 1 / scale, if it is a number.
        log2_eps: log2 of the least probability that is saved.
        ln_2: log(2).
        SPLITS: power of two that holds ``splits``.
        IDS: ids of a tile.
        TOP_ENTRIES: whether top entries are saved.
        RAW: whether the maxima are raw logits.
        PER_ROW: whether ``scale`` is [T].
        PAIRS: whether a quarter is every fourth pair of ids, as ``fused_kernel`` has it; else it is
            a quarter of the ids in a row.
    """
    LOWEST: tl.constexpr = -LARGE if RAW else -1.0e30
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    there = split < splits
    at = split.to(tl.int64) * rows + row
    tops = tl.load(part_max + at, mask=there, other=LOWEST)
    sums = tl.load(part_sum + at, mask=there, other=0.0)
    devs = tl.load(part_dev + at, mask=there, other=0.0)
    old_max = tl.load(maximum + row)
    old_total = tl.load(total + row)
    old_dev = tl.load(dev + row)
    before = 0
    if TOP_ENTRIES:
        before = tl.load(found + row)
    by = scale_of(scale, row, PER_ROW)
    best = tl.maximum(tl.max(tops), old_max)
    step, old_step = tops - best, old_max - best
    if RAW:
        step, old_step = step * by, old_step * by
    step, old_step = tl.maximum(step, -1000.0), tl.maximum(old_step, -1000.0)
    fade, old_fade = tl.exp2(step), tl.exp2(old_step)
    new_total = tl.sum(sums * fade) + old_total * old_fade
    new_dev = tl.sum((devs + step * sums) * fade) + (old_dev + old_step * old_total) * old_fade
    if RAW:
        high, low, level = best, tl.full([], 0.0, tl.float32), best * by
    else:
        # best / scale rounds; what it loses goes into the sums, so that the state is exact.
        high = (best.to(tl.float64) * inverse_scale).to(tl.float32)
        low = best.to(tl.float64) - high.to(tl.float64) * scale
        low = tl.where(best > -1.0e29, low, 0.0).to(tl.float32)
        level = best
    more = tl.exp2(low)
    tl.debug_barrier()  # every thread has read the state
    tl.store(maximum + row, best)
    tl.store(total + row, new_total)
    tl.store(dev + row, new_dev)
    tl.store(raw_max + row, high)
    tl.store(raw_total + row, new_total * more)
    tl.store(raw_dev + row, (new_dev + low * new_total) * more * ln_2)
    if TOP_ENTRIES:
        own = tl.load(estimate + row) * by
        shift = tl.maximum(tl.maximum(level, own), -LARGE)
        lse = shift + tl.log2(new_total * tl.exp2(level - shift) + tl.exp2(own - shift))
        bound = _raw_bound(lse + log2_eps, by, inverse_scale, PER_ROW)
        column = tl.arange(0, IDS)
        pair = tl.arange(0, IDS // 2)
        quarter = pair % 4 if PAIRS else pair // (IDS // 8)
        place_in_tile = quarter * (IDS // 4) + pair // 4 * 2 if PAIRS else pair * 2
        place_in_tile = place_in_tile[:, None] + tl.arange(0, 2)[None, :]
        inner = tl.arange(0, IDS // 4)
        id_of_inner = inner // 2 * 8 + inner % 2 if PAIRS else inner
        scratch += row * (stride * IDS)
        top_ids += row * most
        top_logits += row * most
        part_bits += row * 4
        tile = 0
        for _ in range(splits):
            bits_0, bits_1 = tl.load(part_bits), tl.load(part_bits + 1)
            bits_2, bits_3 = tl.load(part_bits + 2), tl.load(part_bits + 3)
            part_bits += rows * 4
            bits = bits_0 | bits_1 | bits_2 | bits_3
            if bits != 0:
                low_bits = tl.where(quarter == 0, bits_0, bits_1)
                of_pair = tl.where(quarter < 2, low_bits, tl.where(quarter == 2, bits_2, bits_3))
                for i in range(tiles_each):
                    if (bits >> i) & 1 != 0:
                        on_1, on_2, on_3 = (bits_1 >> i) & 1, (bits_2 >> i) & 1, (bits_3 >> i) & 1
                        at_tile = tile + i * IDS
                        if ((bits_0 >> i) & 1) + on_1 + on_2 + on_3 == 1:  # mostly
                            which = on_1 + 2 * on_2 + 3 * on_3
                            few = tl.load(scratch + at_tile + which * (IDS // 4) + inner)
                            few_ids = first + at_tile + which * (2 if PAIRS else IDS // 4)
                            before = _save(
                                few, few_ids + id_of_inner, bound, before, top_ids, top_logits, most
                            )
                        else:
                            z = tl.load(
                                scratch + at_tile + place_in_tile,
                                mask=((of_pair >> i) & 1 != 0)[:, None],
                                other=float("-inf"),
                            )
                            z = tl.reshape(z, [IDS])
                            ids = first + at_tile + column
                            before = _save(z, ids, bound, before, top_ids, top_logits, most)
            tile += tiles_each * IDS
        tl.store(found + row, before)
        # A token that has too many entries is recomputed: no more of its logits are stored.
        tl.store(floors + row, tl.where(before > most, 1.0e30, lse))
