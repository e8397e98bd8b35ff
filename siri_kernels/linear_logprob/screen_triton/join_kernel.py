"""A row's softmax from what its splits found: exact logits of the candidates, and the error.

:mod:`siri_kernels.linear_logprob.screen.estimate` explains the formulas and is the specification.
"""

from __future__ import annotations

import triton
import triton.language as tl

from siri_kernels.linear_logprob.screen_triton.draws import mixed, seed_of, splits_of, weight_of
from siri_kernels.linear_logprob.triton.kernel_math import (
    LARGE,
    LOWEST,
    at_least,
    capped,
    exp2,
    upcast,
)

_TINY = tl.constexpr(1.1754943508222875e-38)  # the least normal number


@triton.jit
def _merged(base, part_max, part_sum, part_dev, splits, by, ROWS: tl.constexpr,
            SPLITS: tl.constexpr):  # fmt: skip
    """Maximum, sum and sum for the entropy of a row over all its splits.

    Args:
        base: place of the row's first split.
        part_max: as the kernel has it, and so on.
        part_sum: the same.
        part_dev: the same.
        splits: their number.
        by: log2(e) / temperature.
        ROWS: rows of a block, the distance of a row's splits.
        SPLITS: a power of two that holds ``splits``.
    """
    split = tl.arange(0, SPLITS)
    there = split < splits
    at = base + split * ROWS
    tops = tl.load(part_max + at, mask=there, other=float("-inf"))
    sums = tl.load(part_sum + at, mask=there, other=0.0)
    devs = tl.load(part_dev + at, mask=there, other=0.0)
    top = tl.max(tops)
    step = at_least((tops - tl.maximum(top, -LARGE)) * by, LOWEST)
    fade = tl.exp2(step)
    return top, tl.sum(sums * fade), tl.sum((devs + step * sums) * fade)


@triton.jit
def _selected(
    base, part_count, cand_id, cand_z, places, splits, shift, by, bound, seed, sparseness,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, DRAWN: tl.constexpr,
):  # fmt: skip
    """Moves the candidates that reach ``bound`` to the front of the first split's places.

    Returns their number: where they are more than the places, ``places + 1`` or more.

    Args:
        base: place of the row's first split.
        part_count: as the kernel has it, and so on.
        cand_id: the same.
        cand_z: the same.
        places: the same.
        splits: number of splits.
        shift: the row's largest logit.
        by: log2(e) / temperature.
        bound: the least ``2 ** y`` of a candidate.
        seed: of the row.
        sparseness: as the kernel has it.
        ROWS: rows of a block.
        CHUNK: candidates at a time.
        DRAWN: whether the logits are screened ones.
    """
    before = 0
    over = False
    front = base.to(tl.int64) * places
    for split in range(splits):
        count = tl.load(part_count + base + split * ROWS)
        over = over | (count > places)
        slot = (base + split * ROWS).to(tl.int64) * places
        for begin in range(0, tl.minimum(count, places), CHUNK):
            at = begin + tl.arange(0, CHUNK)
            there = at < count
            ids = tl.load(cand_id + slot + at, mask=there, other=0)
            z = tl.load(cand_z + slot + at, mask=there, other=float("-inf"))
            e = exp2(at_least((z - shift) * by, LOWEST))
            if DRAWN:
                weight = weight_of(seed, mixed(ids), sparseness)
                keep = there & ((e >= bound * weight) | (z == float("-inf")))
            else:
                keep = there & (e >= bound)
            number = keep.to(tl.int32)
            place = before + tl.cumsum(number) - 1
            tl.debug_barrier()  # the chunk was read: what is written may lie in it
            tl.store(cand_id + front + place, ids, mask=keep & (place < places))
            tl.store(cand_z + front + place, z, mask=keep & (place < places))
            before += tl.sum(number)
            tl.debug_barrier()
    return tl.where(over, tl.maximum(before, places + 1), before)


@triton.jit
def _exact_logits(
    front, count, x_row, weight, bias, cand_id, exact, x_column, weight_row, weight_column, width,
    softcap, inverse_softcap, GEMM: tl.constexpr, BIAS: tl.constexpr, SOFTCAP: tl.constexpr,
    MANY: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Writes the exact logits of a row's candidates.

    Args:
        front: where they lie.
        count: their number.
        x_row: the row of ``hidden``.
        weight: as the kernel has it, and so on.
        bias: the same.
        cand_id: the same.
        exact: [places], written.
        x_column: stride of ``hidden``.
        weight_row: as the kernel has it, and so on.
        weight_column: the same.
        width: the same.
        softcap: the same.
        inverse_softcap: the same.
        GEMM: the same.
        BIAS: the same.
        SOFTCAP: the same.
        MANY: candidates at a time.
        STEP: columns at a time.
    """
    inner = tl.arange(0, STEP)
    for begin in range(0, count, MANY):
        at = begin + tl.arange(0, MANY)
        there = at < count
        ids = tl.load(cand_id + front + at, mask=there, other=0)
        w_row = weight + ids.to(tl.int64)[:, None] * weight_row
        total = tl.zeros([MANY, STEP], tl.float32)
        for k in range(0, width, STEP):
            column = k + inner
            inside = column < width
            column = column.to(tl.int64)
            x = tl.load(x_row + column * x_column, mask=inside, other=0.0)
            w_there = there[:, None] & inside[None, :]
            w = tl.load(w_row + column[None, :] * weight_column, mask=w_there, other=0.0)
            total += upcast(w, GEMM) * upcast(x, GEMM)[None, :]
        z = tl.sum(total, 1)
        if BIAS:
            z += tl.load(bias + ids, mask=there, other=0.0)
        z = capped(z, softcap, inverse_softcap, SOFTCAP)
        tl.store(exact + at, z, mask=there)


@triton.jit(
    do_not_specialize=[
        "vocabulary", "programs", "places", "most", "least", "sparseness", "deviations",
        "most_deviation", "farthest", "softcap", "inverse_softcap", "tolerance", "ln_2",
    ]
)  # fmt: skip
def screened_join_kernel(
    live, index, hidden, weight, bias, row_scale, shared, deviation, targets, floors, bys,
    part_max, part_sum, part_dev, part_count, cand_id, cand_z, exact, maximum, total, dev, error,
    accepted, top_ids, top_logits, found, hidden_row, hidden_column, weight_row, weight_column,
    vocabulary, width, programs, places, most, least, sparseness, deviations, most_deviation,
    farthest, softcap, inverse_softcap, tolerance, ln_2, ROWS: tl.constexpr, IDS: tl.constexpr,
    SPLITS: tl.constexpr, CHUNK: tl.constexpr, MANY: tl.constexpr, STEP: tl.constexpr,
    GEMM: tl.constexpr, BIAS: tl.constexpr, SOFTCAP: tl.constexpr, TOP_ENTRIES: tl.constexpr,
    DRAWN: tl.constexpr,
):  # fmt: skip
    """One program a row. Arrays over tokens are written at the row's token.

    Args:
        live: [1] int32, how many of the rows are computed: the first.
        index: [R] int64, the token of each row.
        hidden: [T, D].
        weight: [V, D].
        bias: [V] float32, if BIAS.
        row_scale: [R] of the 8-bit hidden states, if DRAWN, and so on.
        shared: [R] logit that all ids share.
        deviation: [R] of a screened logit's error, in nats after the temperature.
        targets: [T] int32; -1: none.
        floors: [T] target logits.
        bys: [T], log2(e) / temperature.
        part_max: as the product kernels wrote it, and so on.
        part_sum: the same.
        part_dev: the same.
        part_count: the same.
        cand_id: the same; overwritten.
        cand_z: the same; overwritten.
        exact: [R, places] float32, memory to use, if DRAWN.
        maximum: [T], written: the largest logit but the target's.
        total: [T], written: sum of exp(logit - maximum) after the temperature.
        dev: [T], written: sum of (logit - maximum) * exp(logit - maximum), in nats.
        error: [T], written: the estimated error of the log-prob in nats; infinity: unknown.
        accepted: [T] int8, written: 1 where it is at most ``tolerance``.
        top_ids: [T, most] int32, written: the top entries, if TOP_ENTRIES.
        top_logits: [T, most], the same.
        found: [T] int32, written: how many there are.
        hidden_row: stride of ``hidden`` in elements.
        hidden_column: the same.
        weight_row: stride of ``weight`` in elements.
        weight_column: the same.
        vocabulary: V.
        width: D.
        programs: of the product kernel's launch.
        places: of a row's candidates in a split.
        most: places of a token's top entries.
        least: the least probability of a top entry.
        sparseness: as the product kernel has it.
        deviations: standard deviations of the estimate.
        most_deviation: of a logit, beyond which nothing is known.
        farthest: deviations of a single logit, the same.
        softcap: a number, if SOFTCAP.
        inverse_softcap: 1 / softcap.
        tolerance: the largest error.
        ln_2: log(2).
        ROWS: rows of a block of the product kernel.
        IDS: ids of its tiles.
        SPLITS: a power of two that holds all splits.
        CHUNK: candidates at a time.
        MANY: the same, of exact products.
        STEP: columns of those at a time.
        GEMM: dtype that the product takes.
        BIAS: whether there is a bias.
        SOFTCAP: whether there is a softcap.
        TOP_ENTRIES: whether top entries are written.
        DRAWN: whether the logits are screened ones; else exact, and ``error`` is 0.
    """
    row = tl.program_id(0)
    rows = tl.load(live)
    if row < rows:
        splits = splits_of(rows, vocabulary, programs, ROWS, IDS)
        base = row // ROWS * splits * ROWS + row % ROWS
        token = tl.load(index + row)
        target = tl.load(targets + token)
        by = tl.load(bys + token)
        own = tl.load(floors + token)
        seed = target
        sigma = 0.0
        if DRAWN:
            seed = seed_of(tl.load(row_scale + row), tl.load(shared + row), target)
            sigma = tl.load(deviation + row)
        top, whole, whole_dev = _merged(
            base, part_max, part_sum, part_dev, splits, by, ROWS, SPLITS
        )
        shift = tl.maximum(top, -LARGE)
        rest = tl.exp2(tl.minimum((own - shift) * by, 126.0))
        count = _selected(
            base, part_count, cand_id, cand_z, places, splits, shift, by, least * (whole + rest),
            seed, sparseness, ROWS, CHUNK, DRAWN,
        )  # fmt: skip
        over = count > places
        front = base.to(tl.int64) * places
        here = tl.minimum(count, places)
        number = tl.arange(0, CHUNK)
        exact += row.to(tl.int64) * places
        top_ids += token * most
        top_logits += token * most
        odd_sum = 0.0
        odd_dev = 0.0
        if DRAWN:
            here = tl.where(over, 0, here)  # such a token is computed exactly
            _exact_logits(
                front, here, hidden + token * hidden_row, weight, bias, cand_id, exact,
                hidden_column, weight_row, weight_column, width, softcap, inverse_softcap, GEMM,
                BIAS, SOFTCAP, MANY, STEP,
            )  # fmt: skip
            tl.debug_barrier()
            # Ids that are exact for all rows are in no sum yet.
            best = top
            for begin in range(0, here, CHUNK):
                at = begin + number
                q = tl.load(cand_z + front + at, mask=at < here, other=0.0)
                z = tl.load(exact + at, mask=at < here, other=0.0)
                z = tl.where((at < here) & (q == float("-inf")), z, float("-inf"))
                best = tl.maximum(best, tl.max(z))
            high = tl.maximum(best, -LARGE)
            step = tl.maximum((top - high) * by, LOWEST)
            fade = tl.exp2(step)
            whole_dev = (whole_dev + step * whole) * fade
            whole = whole * fade
            shift = high
            for begin in range(0, here, CHUNK):
                at = begin + number
                q = tl.load(cand_z + front + at, mask=at < here, other=0.0)
                z = tl.load(exact + at, mask=at < here, other=0.0)
                odd = (at < here) & (q == float("-inf"))
                y = at_least((z - shift) * by, LOWEST)
                e = tl.where(odd, exp2(y), 0.0)
                odd_sum += tl.sum(e)
                odd_dev += tl.sum(y * e)
            whole += odd_sum
            whole_dev += odd_dev
            rest = tl.exp2(tl.minimum((own - shift) * by, 126.0))
        scale = 1.0 / (whole + rest)
        saved_share, kept_count, far_square, far_most = 0.0, 0.0, 0.0, 0.0
        variance, change, change_dev, drawn_change, drawn_dev = 0.0, 0.0, 0.0, 0.0, 0.0
        best = float("-inf")
        before = 0
        for begin in range(0, here, CHUNK):
            at = begin + number
            there = at < here
            ids = tl.load(cand_id + front + at, mask=there, other=0)
            q = tl.load(cand_z + front + at, mask=there, other=float("-inf"))
            if DRAWN:
                z = tl.load(exact + at, mask=there, other=float("-inf"))
                # An id that is exact for all rows is screened without an error.
                q = tl.where(q == float("-inf"), z, q)
                yq = at_least((q - shift) * by, LOWEST)
                yz = at_least((z - shift) * by, LOWEST)
                p, e = exp2(yq), exp2(yz)
                share = p * scale
                weight_here = weight_of(seed, mixed(ids), sparseness)
                saved = there & (share >= least)
                drawn = there & ~saved & (share >= least * weight_here)
                chance = tl.minimum(share / (sparseness * least), 1.0)
                far = tl.where(saved | drawn, (z - q) * by * ln_2, 0.0)
                saved_share += tl.sum(tl.where(saved, share, 0.0))
                kept_count += tl.sum((saved | drawn).to(tl.float32))
                far_square += tl.sum(far * far)
                far_most = tl.maximum(far_most, tl.max(tl.abs(far)))
                missed = tl.where(drawn, (e - p) / chance, 0.0)
                variance += tl.sum(missed * missed * scale * scale * (1.0 - chance))
                moved = yz * e - yq * p
                change += tl.sum(tl.where(saved, e - p, 0.0))
                change_dev += tl.sum(tl.where(saved, moved, 0.0))
                drawn_change += tl.sum(missed)
                drawn_dev += tl.sum(tl.where(drawn, moved / chance, 0.0))
            else:
                z = q
                share = exp2(at_least((z - shift) * by, LOWEST)) * scale
                saved = there & (share >= least)
            best = tl.maximum(best, tl.max(tl.where(saved, z, float("-inf"))))
            if TOP_ENTRIES:
                keeps = saved.to(tl.int32)
                place = before + tl.cumsum(keeps) - 1
                fits = saved & (place < most)
                tl.store(top_ids + place, ids, mask=fits)
                tl.store(top_logits + place, z, mask=fits)
                before += tl.sum(keeps)
        if TOP_ENTRIES:
            tl.store(found + token, tl.where(over, places + most, before))
        off = 0.0
        if DRAWN:
            mass = tl.maximum(whole * scale - saved_share, 0.0)
            seen = tl.sqrt(far_square / tl.maximum(kept_count, 1.0))
            sigma = tl.maximum(sigma, seen)
            variance = tl.maximum(variance, mass * (sparseness * least) * sigma * sigma)
            by_sample = deviations * tl.sqrt(variance)
            by_mass = mass * (tl.exp2(deviations * sigma / ln_2) - 1.0)
            use = by_sample < by_mass
            off = tl.where(use, by_sample, by_mass)
            # Written so that NaN is unknown, too.
            known = (sigma <= most_deviation) & (far_most <= farthest * sigma) & (over == 0)
            whole += change + tl.where(use, drawn_change, 0.0)
            whole_dev += change_dev + tl.where(use, drawn_dev, 0.0)
            known = known & (scale <= LARGE) & (tl.abs(whole) + tl.abs(whole_dev) <= LARGE)
            known = known & (far_square <= LARGE) & (variance <= LARGE)
            off = tl.where(known, off, float("inf"))
            whole = tl.maximum(whole, _TINY)
            # Sums are relative to the largest exact logit, as the state has it.
            high = tl.where(best > -LARGE, best, shift)
            step = tl.minimum(tl.maximum((shift - high) * by, LOWEST), 100.0)
            fade = tl.exp2(step)
            whole_dev = (whole_dev + step * whole) * fade
            whole *= fade
            top = tl.where(shift > -LARGE, high, top)
        tl.store(maximum + token, top)
        tl.store(total + token, whole)
        tl.store(dev + token, whole_dev * ln_2)
        tl.store(error + token, off)
        tl.store(accepted + token, (off <= tolerance).to(tl.int8))
