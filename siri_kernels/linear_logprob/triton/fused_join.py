"""Joins the fused kernel's results over a part of the vocabulary with those of the parts before."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "first", "splits", "tiles_each", "stride", "most"])
def join_kernel(
    part_max, part_sum, part_dev, part_bits, scratch, maximum, total, dev, raw_max, raw_total,
    raw_dev, estimate, floors, top_ids, top_logits, found, rows, first, splits, tiles_each, stride,
    most, scale, inverse_scale, log2_eps, ln_2, SPLITS: tl.constexpr, IDS: tl.constexpr,
    TOP_ENTRIES: tl.constexpr,
):  # fmt: skip
    """One program a token.

    Entries that reach ``floors + log2_eps`` are saved behind those that are there.

    Args:
        part_max: [splits, T] maximum of a split, in exponents of two.
        part_sum: [splits, T] its sum.
        part_dev: [splits, T] its sum for the entropy.
        part_bits: [splits, T] int32, a bit for each tile in ``scratch``.
        scratch: [T, stride] logits of tiles that matter.
        maximum: [T] running maximum, in exponents of two.
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
        stride: of ``scratch`` from token to token.
        most: places a token has for top entries.
        scale: log2(e) / temperature.
        inverse_scale: 1 / scale.
        log2_eps: log2 of the least probability that is saved.
        ln_2: log(2).
        SPLITS: power of two that holds ``splits``.
        IDS: ids of a tile.
        TOP_ENTRIES: whether top entries are saved.
    """
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    there = split < splits
    at = split.to(tl.int64) * rows + row
    tops = tl.load(part_max + at, mask=there, other=-1.0e30)
    sums = tl.load(part_sum + at, mask=there, other=0.0)
    devs = tl.load(part_dev + at, mask=there, other=0.0)
    old_max = tl.load(maximum + row)
    old_total = tl.load(total + row)
    old_dev = tl.load(dev + row)
    before = 0
    if TOP_ENTRIES:
        before = tl.load(found + row)
    best = tl.maximum(tl.max(tops), old_max)
    step = tl.maximum(tops - best, -1000.0)
    fade = tl.exp2(step)
    old_step = tl.maximum(old_max - best, -1000.0)
    old_fade = tl.exp2(old_step)
    new_total = tl.sum(sums * fade) + old_total * old_fade
    new_dev = tl.sum((devs + step * sums) * fade) + (old_dev + old_step * old_total) * old_fade
    # best / scale rounds; what it loses goes into the sums, so that the state is exact.
    high = (best.to(tl.float64) * inverse_scale).to(tl.float32)
    low = best.to(tl.float64) - high.to(tl.float64) * scale
    low = tl.where(best > -1.0e29, low, 0.0).to(tl.float32)
    more = tl.exp2(low)
    tl.debug_barrier()  # every thread has read the state
    tl.store(maximum + row, best)
    tl.store(total + row, new_total)
    tl.store(dev + row, new_dev)
    tl.store(raw_max + row, high)
    tl.store(raw_total + row, new_total * more)
    tl.store(raw_dev + row, (new_dev + low * new_total) * more * ln_2)
    if TOP_ENTRIES:
        own = tl.load(estimate + row) * scale
        shift = tl.maximum(best, own)
        lse = shift + tl.log2(new_total * tl.exp2(best - shift) + tl.exp2(own - shift))
        tl.store(floors + row, lse)
        bound = ((lse + log2_eps).to(tl.float64) * inverse_scale).to(tl.float32)
        column = tl.arange(0, IDS)
        scratch += row * stride
        top_ids += row * most
        top_logits += row * most
        part_bits += row
        tile = 0
        for _ in range(splits):
            bits = tl.load(part_bits)
            part_bits += rows
            if bits != 0:
                for i in range(tiles_each):
                    if (bits >> i) & 1 != 0:
                        z = tl.load(scratch + tile + i * IDS + column)
                        keep = z >= bound
                        count = keep.to(tl.int32)
                        place = before + tl.cumsum(count) - 1
                        fits = keep & (place < most)
                        tl.store(top_ids + place, first + tile + i * IDS + column, mask=fits)
                        tl.store(top_logits + place, z, mask=fits)
                        before += tl.sum(count)
            tile += tiles_each * IDS
        tl.store(found + row, before)
