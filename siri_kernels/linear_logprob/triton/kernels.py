"""Triton kernels over a tile of raw logits [rows, ids]: one program a row, which is a token's.

The formulas are explained in :mod:`siri_kernels.linear_logprob.online_softmax` and
:mod:`siri_kernels.linear_logprob.top_entries`, units and rounding in
:mod:`siri_kernels.linear_logprob.triton.kernel_math`.

A row's state is read by every thread of its program and written by one. All of it is read first
and written last, with a barrier in between: a late thread must not read what another has already
replaced. (``python -m siri_kernels.aot --check`` looks for it in the compiled code; the interpreter
cannot see it.)
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
    scale_of,
    two_sums,
    upcast,
)

IDS = 4096  # of a tile
# 32 logits a thread: what a program does once, not for each logit, is a third of its work then.
WARPS = 4
PART = 512  # ids that are searched for top entries at a time


@triton.jit(do_not_specialize=["softcap", "inverse_softcap"])
def target_kernel(
    hidden, weight, targets, bias, out, hidden_row, hidden_column, weight_row, weight_column, width,
    vocabulary, softcap, inverse_softcap, GEMM: tl.constexpr, BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each row's target logit, but for the order of the GEMM's sums.

    Args:
        hidden: [T, D].
        weight: [V, D].
        targets: [T] int64, relative to the shard's first id.
        bias: [V], if BIAS.
        out: [T] float32, written.
        hidden_row: stride of ``hidden`` in elements.
        hidden_column: the same.
        weight_row: stride of ``weight`` in elements.
        weight_column: the same.
        width: D.
        vocabulary: V.
        softcap: a number, if SOFTCAP.
        inverse_softcap: 1 / softcap.
        GEMM: dtype that the product takes.
        BIAS: whether there is a bias.
        SOFTCAP: whether there is a softcap.
        BLOCK: elements read at a time.
    """
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    # A target out of range reads something, but nothing out of bounds.
    target = tl.where((target >= 0) & (target < vocabulary), target, 0)
    hidden += row * hidden_row
    weight += target * weight_row
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        column = column.to(tl.int64)
        x = tl.load(hidden + column * hidden_column, mask=inside, other=0.0)
        w = tl.load(weight + column * weight_column, mask=inside, other=0.0)
        total += upcast(x, GEMM) * upcast(w, GEMM)
    raw = tl.sum(total)
    if BIAS:
        raw += tl.load(bias + target).to(tl.float32)
    tl.store(out + row, capped(raw, softcap, inverse_softcap, SOFTCAP))


@triton.jit
def _tile_logits(
    logits,
    bias,
    column,
    width,
    softcap,
    inverse_softcap,
    other,
    WHOLE: tl.constexpr,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """Logits of these columns of a row, in fp32; ``other`` from ``width`` on.

    ``WHOLE``: no column is there, so nothing is compared.
    """
    # A tile is read once: it must not push the operands of the next product out of the cache.
    if WHOLE:
        z = tl.load(logits + column, eviction_policy="evict_first").to(tl.float32)
        if BIAS:
            z += tl.load(bias + column).to(tl.float32)
        return capped(z, softcap, inverse_softcap, SOFTCAP)
    else:
        inside = column < width
        z = tl.load(logits + column, mask=inside, other=other, eviction_policy="evict_first")
        z = z.to(tl.float32)
        if BIAS:
            z += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
        z = capped(z, softcap, inverse_softcap, SOFTCAP)
        return tl.where(inside, z, other) if SOFTCAP else z


@triton.jit
def _save_entries(
    logits,
    bias,
    first,
    begin,
    width,
    target,
    shift,
    by,
    bound,
    before,
    top_ids,
    top_logits,
    most,
    softcap,
    inverse_softcap,
    WHOLE: tl.constexpr,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    """Saves the entries of a block that reach ``bound``, in id order.

    They go behind the ``before`` that are there. Returns how many there are then; those beyond
    ``most`` are not written. The logits are read again, a part at a time: few rows of few blocks
    come here, and the others would have to hold all of theirs in registers for it.
    """
    for at in range(begin, begin + BLOCK, PART):
        column = at + tl.arange(0, PART)
        z = _tile_logits(
            logits, bias, column, width, softcap, inverse_softcap, float("-inf"), WHOLE, BIAS,
            SOFTCAP,
        )  # fmt: skip
        keep = ((z - shift) * by >= bound) & (column != target)
        count = keep.to(tl.int32)
        number = tl.sum(count)
        if number > 0:
            place = before + tl.cumsum(count) - 1
            fits = keep & (place < most)
            tl.store(top_ids + place, first + column, mask=fits)
            tl.store(top_logits + place, z, mask=fits)
        before += number
    return before


@triton.jit
def _update_block(
    old_max,
    old_total,
    old_dev,
    before,
    guess,
    logits,
    bias,
    first,
    begin,
    width,
    target,
    by,
    top_ids,
    top_logits,
    most,
    softcap,
    inverse_softcap,
    log2_eps,
    WHOLE: tl.constexpr,
    BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    TOP_ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    """Updates a row's online softmax by the columns from ``begin`` on; the new state."""
    column = begin + tl.arange(0, BLOCK)
    z = _tile_logits(
        logits, bias, column, width, softcap, inverse_softcap, float("-inf"), WHOLE, BIAS, SOFTCAP
    )
    # Few blocks hold the target, so the others must not pay for it.
    if (target >= begin) & (target < begin + BLOCK):
        z = tl.where(column == target, float("-inf"), z)
    top = tl.max(z)
    new_max = tl.maximum(old_max, top)
    # Nothing seen yet but -inf: any finite shift will do.
    shift = tl.maximum(new_max, -LARGE)
    y = at_least((z - shift) * by, LOWEST)
    exp = exp2(y)
    new_total, new_dev = two_sums(exp, y * exp)
    step = tl.maximum((old_max - shift) * by, LOWEST)
    fade = exp2(step)
    new_dev += (old_dev + step * old_total) * fade
    new_total += old_total * fade
    if TOP_ENTRIES:
        # log2(sum of the others + the target's), from the running sum and the target's logit. An
        # estimate far above all logits seen so far saves nothing, as it should.
        rest = exp2(tl.minimum((guess - shift) * by, 126.0))
        bound = tl.maximum(tl.log2(new_total + rest) + log2_eps, 0.75 * LOWEST)
        if ((top - shift) * by >= bound) & (before <= most):
            before = _save_entries(
                logits, bias, first, begin, width, target, shift, by, bound, before, top_ids,
                top_logits, most, softcap, inverse_softcap, WHOLE, BIAS, SOFTCAP, BLOCK, PART,
            )  # fmt: skip
    return new_max, new_total, new_dev, before


@triton.jit(do_not_specialize=["scale", "softcap", "inverse_softcap"])
def online_softmax_kernel(
    logits, bias, scale, targets, estimate, target_logit, maximum, total, dev, top_ids, top_logits,
    found, first, width, stride, most, softcap, inverse_softcap, log2_eps, BIAS: tl.constexpr,
    PER_ROW: tl.constexpr, SOFTCAP: tl.constexpr, TOP_ENTRIES: tl.constexpr, BLOCK: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    """Updates each token's online softmax by a tile of raw logits, and saves top entries.

    Args:
        logits: [T, n] raw products.
        bias: [V], if BIAS.
        scale: log2(e) / temperature: a number or [T].
        targets: [T] int64, relative to the shard's first id.
        estimate: [T] target logits, if TOP_ENTRIES.
        target_logit: [T], written for targets in the tile.
        maximum: [T] running maximum of the raw logits.
        total: [T] running sum of ``2 ** y``, with ``y`` the exponents.
        dev: [T] running sum of ``y * 2 ** y``.
        top_ids: [T, most] int32, top entries.
        top_logits: [T, most], the same.
        found: [T] int32, how many entries a token has.
        first: first id of the tile.
        width: ids of the tile.
        stride: of ``logits`` from token to token.
        most: places a token has for top entries.
        softcap: a number, if SOFTCAP.
        inverse_softcap: 1 / softcap.
        log2_eps: log2 of the least probability that is saved.
        BIAS: whether there is a bias.
        PER_ROW: whether ``scale`` is [T].
        SOFTCAP: whether there is a softcap.
        TOP_ENTRIES: whether top entries are saved.
        BLOCK: elements read at a time.
        PART: ids that are searched for top entries at a time.
    """
    row = tl.program_id(0).to(tl.int64)
    row_max = tl.load(maximum + row)
    row_total = tl.load(total + row)
    row_dev = tl.load(dev + row)
    guess = 0.0
    before = 0
    if TOP_ENTRIES:
        guess = tl.load(estimate + row)
        before = tl.load(found + row)
        top_ids += row * most
        top_logits += row * most
    by = scale_of(scale, row, PER_ROW)
    logits += row * stride
    if BIAS:
        bias += first
    target = tl.load(targets + row) - first
    here = (target >= 0) & (target < width)
    target = tl.where(here, target, -1).to(tl.int32)
    if here:
        own = tl.load(logits + target).to(tl.float32)
        if BIAS:
            own += tl.load(bias + target).to(tl.float32)
        tl.store(target_logit + row, capped(own, softcap, inverse_softcap, SOFTCAP))
    whole = width // BLOCK * BLOCK
    for begin in range(0, whole, BLOCK):
        row_max, row_total, row_dev, before = _update_block(
            row_max, row_total, row_dev, before, guess, logits, bias, first, begin, width, target,
            by, top_ids, top_logits, most, softcap, inverse_softcap, log2_eps, True, BIAS,
            SOFTCAP, TOP_ENTRIES, BLOCK, PART,
        )  # fmt: skip
    if whole < width:
        row_max, row_total, row_dev, before = _update_block(
            row_max, row_total, row_dev, before, guess, logits, bias, first, whole, width, target,
            by, top_ids, top_logits, most, softcap, inverse_softcap, log2_eps, False, BIAS,
            SOFTCAP, TOP_ENTRIES, BLOCK, PART,
        )  # fmt: skip
    tl.debug_barrier()  # every thread has read the state
    tl.store(maximum + row, row_max)
    tl.store(total + row, row_total)
    tl.store(dev + row, row_dev)
    if TOP_ENTRIES:
        tl.store(found + row, before)


@triton.jit(do_not_specialize=["scale", "softcap", "inverse_softcap"])
def gradient_kernel(
    logits, out, bias, scale, targets, maximum, head, offset, slope, factor, active, first, width,
    stride, out_stride, softcap, inverse_softcap, WHOLE: tl.constexpr, SOME: tl.constexpr,
    BIAS: tl.constexpr, PER_ROW: tl.constexpr, SOFTCAP: tl.constexpr, SLOPE: tl.constexpr,
    FACTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turns a tile of raw logits into their gradient, in the dtype of ``out``.

    Args:
        logits: [T, n] raw products.
        out: [T, n], written.
        bias: [V], if BIAS.
        scale: log2(e) / temperature: a number or [T].
        targets: [T] int64, relative to the shard's first id.
        maximum: [T] largest logit.
        head: [T] gradient at the target.
        offset: [T] of GradientRule.
        slope: [T] of GradientRule, by exponents, if SLOPE.
        factor: [1] that the gradient is multiplied by, if FACTOR.
        active: [T] int8, 0: no gradient.
        first: first id of the tile.
        width: ids of the tile.
        stride: of ``logits`` from token to token.
        out_stride: of ``out`` from token to token.
        softcap: a number, if SOFTCAP.
        inverse_softcap: 1 / softcap.
        WHOLE: whether ``width`` is a multiple of BLOCK.
        SOME: whether tokens that are not ``active`` get zeros, whatever their logits are.
        BIAS: whether there is a bias.
        PER_ROW: whether ``scale`` is [T].
        SOFTCAP: whether there is a softcap.
        SLOPE: whether the entropy has a gradient.
        FACTOR: whether there is a factor.
        BLOCK: elements read at a time.
    """
    row = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * BLOCK
    column = begin + tl.arange(0, BLOCK)
    by = scale_of(scale, row, PER_ROW)
    top = tl.load(maximum + row)
    constant = tl.load(offset + row)
    at_target = tl.load(head + row)
    target = tl.load(targets + row) - first - begin
    if FACTOR:
        times = tl.load(factor)
        constant *= times
        at_target *= times
    if BIAS:
        bias += first
    raw = _tile_logits(
        logits + row * stride, bias, column, width, softcap, inverse_softcap, 0.0, WHOLE, BIAS,
        SOFTCAP,
    )  # fmt: skip
    y = (raw - top) * by
    if SLOPE:
        y = at_least(y, LOWEST)
        rising = tl.load(slope + row)
        if FACTOR:
            rising *= times
        grad = exp2(y) * (constant + y * rising)
    else:
        grad = exp2(y) * constant
    if (target >= 0) & (target < BLOCK):
        grad = tl.where(column - begin == target.to(tl.int32), at_target, grad)
    if SOFTCAP:
        part = tl.maximum(raw * inverse_softcap, -1.0)  # a masked id's is -inf, and 0 * inf NaN
        grad *= 1.0 - part * part
    if SOME:
        grad = tl.where(tl.load(active + row) != 0, grad, 0.0)
    place = out + row * out_stride + column
    if WHOLE:
        tl.store(place, grad.to(out.dtype.element_ty))
    else:
        tl.store(place, grad.to(out.dtype.element_ty), mask=column < width)
