"""Triton kernels over tokens: statistics, gradient rules, and which are within the error bound.

They replace about a hundred small operations of PyTorch, each of which costs the host 5 us: more
than the product of a few tokens takes. The formulas are those of
:mod:`siri_kernels.linear_logprob.online_softmax` and
:mod:`siri_kernels.linear_logprob.error_bound`, computed in float64: there are few tokens beside
logits, and Triton's fp32 logarithm is not right to the last digit near 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from siri_kernels.linear_logprob.triton.kernel_math import LARGE, LOWEST, at_least, scale_of
from siri_kernels.linear_logprob.triton.sparse_kernels import NATS_A_BIT, entry_gradient

TOKENS = 256  # of a program of statistics_kernel
SPLIT_TOKENS = 2048  # that split_kernel takes at a time
ENTRIES = 512  # of a token, read at a time

_LOG_ZERO = tl.constexpr(-800.0)  # as online_softmax.LOG_ZERO
_ROUNDING = tl.constexpr(8 * 2.0**-23)  # of sums in fp32, as error_bound.left_out allows for


@triton.jit
def _float64(x):
    """A number, or a scalar of a kernel, as float64."""
    return tl.zeros([], tl.float64) + x


@triton.jit
def _not_below(x, low):
    """The larger of both; NaN if ``x`` is NaN."""
    return tl.where(x < low, low, x)


@triton.jit
def _log1p(x):
    """log(1 + x) of a float64 >= 0, to full precision (Kahan's)."""
    u = x + 1.0
    return tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0)))


@triton.jit
def _expm1(x):
    """exp(x) - 1 of a float64 <= 0, to full precision (Kahan's)."""
    u = tl.exp(x)
    v = u - 1.0
    return tl.where(u == 1.0, x, tl.where(v == -1.0, -1.0, v * (x / tl.log(u))))


@triton.jit
def _softplus(x):
    """log(1 + exp(x))."""
    return _not_below(x, 0.0) + _log1p(tl.exp(-tl.abs(x)))


@triton.jit(do_not_specialize=["temperature", "tokens", "ignore_index"])
def statistics_kernel(
    target_logit, maximum, total, dev, targets, temperature, logprobs, entropy, top, log_sum,
    tokens, ignore_index, PER_ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The softmax's statistics of tokens, as ``online_softmax.finish`` has them.

    Args:
        target_logit: [T] of SoftmaxState.
        maximum: [T], the same.
        total: [T], the same.
        dev: [T], the same.
        targets: [T] int64.
        temperature: a number or [T].
        logprobs: [T], written.
        entropy: [T], written.
        top: [T], written: largest logit, and what ``log_sum`` lost by rounding.
        log_sum: [T], written.
        tokens: T.
        ignore_index: tokens with this target get zeros.
        PER_ROW: whether ``temperature`` is [T].
        BLOCK: tokens of a program.
    """
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = token < tokens
    z = tl.load(target_logit + token, mask=there, other=0.0).to(tl.float64)
    most = tl.load(maximum + token, mask=there, other=0.0).to(tl.float64)
    s = tl.load(total + token, mask=there, other=1.0).to(tl.float64)
    d = tl.load(dev + token, mask=there, other=0.0).to(tl.float64)
    if PER_ROW:
        by = 1.0 / tl.load(temperature + token, mask=there, other=1.0).to(tl.float64)
    else:
        by = 1.0 / _float64(temperature)
    log_s = tl.log(s)
    gap = (_not_below(most, -LARGE) - z) * by + log_s  # lse of the others - z
    log_p = -_softplus(gap)
    gap = tl.where(gap < -LARGE, -LARGE, tl.where(gap > LARGE, LARGE, gap))
    p = 1.0 / (1.0 + tl.exp(gap))
    q = 1.0 / (1.0 + tl.exp(-gap))
    inner = tl.where(s == 0.0, 0.0, log_s - d / s)
    h = p * _softplus(gap) + q * _softplus(-gap) + q * inner
    both = tl.where((most > z) | (most != most), most, z)
    shift = _not_below(both, -LARGE)
    step = _not_below((most - shift) * by, _LOG_ZERO)
    log_both = tl.log(s * tl.exp(step) + tl.exp((z - shift) * by))
    # fp32 rounds the logarithm by 5e-7, and with it every probability of the token. The largest
    # logit takes up the difference, where its own digits are finer.
    rest = log_both - log_both.to(tl.float32).to(tl.float64)
    both += tl.where(tl.abs(rest) < 1.0, rest / by, 0.0)
    masked = tl.load(targets + token, mask=there, other=0) == ignore_index
    log_p = tl.where(masked, 0.0, log_p)
    h = tl.where(masked, 0.0, h)
    both = tl.where(masked, 0.0, both)
    log_both = tl.where(masked, 0.0, log_both)
    tl.store(logprobs + token, log_p.to(tl.float32), mask=there)
    tl.store(entropy + token, h.to(tl.float32), mask=there)
    tl.store(top + token, both.to(tl.float32), mask=there)
    tl.store(log_sum + token, log_both.to(tl.float32), mask=there)


@triton.jit(
    do_not_specialize=["temperature", "tokens", "ignore_index", "vocabulary", "inverse_softcap"]
)
def rule_kernel(
    logprobs, entropy, maximum, log_sum, targets, grad_logprobs, grad_entropy, temperature, scale,
    top_logits, found, active, at_target, offset, slope, head, sums, tokens, ignore_index,
    vocabulary, most, inverse_softcap, LOGPROBS: tl.constexpr, ENTROPY: tl.constexpr,
    TOP_ENTRIES: tl.constexpr, PER_ROW: tl.constexpr, SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A token's gradient rule, and the sums over its top entries that the error bound is made of.

    One program a token. The rule is that of ``online_softmax.gradient_rule``, for exponents of two.

    Args:
        logprobs: [T] of SoftmaxStats.
        entropy: [T], the same.
        maximum: [T], the same.
        log_sum: [T], the same.
        targets: [T] int64, relative to the shard's first id.
        grad_logprobs: [T] incoming gradient, if LOGPROBS.
        grad_entropy: [T] incoming gradient, if ENTROPY.
        temperature: a number or [T].
        scale: log2(e) / temperature: a number or [T].
        top_logits: [T, most], if TOP_ENTRIES.
        found: [T] int32, how many entries a token has, if TOP_ENTRIES.
        active: [T] int8, written: 1 for a token with a gradient.
        at_target: [T], written: of GradientRule.
        offset: [T], written: of GradientRule.
        slope: [T], written, if ENTROPY: of GradientRule.
        head: [T], written, if TOP_ENTRIES: gradient of the target's raw logit; 0 if the target is
            not one of the shard's ids.
        sums: [4, T], written, if TOP_ENTRIES: the fields of EntrySums.
        tokens: T.
        ignore_index: tokens with this target have no gradient.
        vocabulary: V.
        most: places a token has for top entries.
        inverse_softcap: 1 / softcap.
        LOGPROBS: whether log-probs have a gradient.
        ENTROPY: whether the entropy has one.
        TOP_ENTRIES: whether there are top entries.
        PER_ROW: whether ``temperature`` and ``scale`` are [T].
        SOFTCAP: whether there is a softcap.
        BLOCK: entries read at a time.
    """
    token = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + token)
    log_p = tl.load(logprobs + token).to(tl.float64)
    log_z = tl.load(log_sum + token)
    top = tl.load(maximum + token)
    g = tl.zeros([], tl.float64)
    if LOGPROBS:
        g = tl.load(grad_logprobs + token).to(tl.float64)
    used = g != 0.0
    cool = _float64(scale_of(temperature, token, PER_ROW))
    first = -g * _expm1(log_p)
    by = tl.exp(-log_z.to(tl.float64)) / cool
    constant = -g
    rising = 0.0
    if ENTROPY:
        h = tl.load(grad_entropy + token).to(tl.float64)
        used = used | (h != 0.0)
        mean = tl.load(entropy + token).to(tl.float64)
        log_q = _not_below(log_p, _LOG_ZERO)
        first -= h * tl.exp(log_q) * (log_q + mean)
        constant += h * (log_z.to(tl.float64) - mean)
        rising = (-h * by * NATS_A_BIT).to(tl.float32)
        tl.store(slope + token, rising)
    used = used & (target != ignore_index)
    first = first / cool
    constant = (constant * by).to(tl.float32)
    tl.store(active + token, used.to(tl.int8))
    tl.store(at_target + token, first.to(tl.float32))
    tl.store(offset + token, constant)
    if TOP_ENTRIES:
        first = tl.where((target >= 0) & (target < vocabulary), first, 0.0)
        if SOFTCAP:
            part = (top.to(tl.float64) + (log_p + log_z) * cool) * inverse_softcap
            part = tl.where(part > 1.0, 1.0, tl.where(part < -1.0, -1.0, part))
            first *= 1.0 - part * part
        tl.store(head + token, first.to(tl.float32))
        mass = tl.zeros([BLOCK], tl.float32)
        moved = tl.zeros([BLOCK], tl.float32)
        size = tl.zeros([BLOCK], tl.float32)
        number = tl.load(found + token)
        target_size = 0.0
        if used:
            target_size = tl.abs(first).to(tl.float32)
            length = tl.minimum(number, most)
            rate = scale_of(scale, token, PER_ROW)
            top_logits += token * most
            for start in range(0, length, BLOCK):
                place = start + tl.arange(0, BLOCK)
                inside = place < length
                # Whole groups of 16, so that a thread loads 16 bytes; what is too much is not used.
                z = tl.load(top_logits + place, mask=place < (length + 15) // 16 * 16, other=0.0)
                y = at_least((z - top) * rate, LOWEST)
                grad = entry_gradient(z, y, constant, rising, inverse_softcap, ENTROPY, SOFTCAP)
                log_of = y * NATS_A_BIT - log_z
                p = tl.exp(log_of)
                mass += tl.where(inside, p, 0.0)
                moved += tl.where(inside, -p * log_of, 0.0)
                size += tl.where(inside, tl.abs(grad), 0.0)
        tl.store(sums + token, tl.sum(mass))
        tl.store(sums + token + tokens, tl.sum(moved))
        tl.store(sums + token + tokens + tokens, tl.sum(size) + target_size)
        over = tl.where(number > most, 1.0, 0.0)
        tl.store(sums + token + tokens + tokens + tokens, over)


@triton.jit(do_not_specialize=["temperature", "tokens", "tail", "log_eps"])
def split_kernel(
    logprobs, entropy, grad_logprobs, grad_entropy, temperature, active, sums, found, stops,
    lengths, dense, report, tokens, most, tail, log_eps, LOGPROBS: tl.constexpr,
    ENTROPY: tl.constexpr, TOP_ENTRIES: tl.constexpr, PER_ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Which tokens come from their top entries and which are recomputed, by one program.

    It is ``error_bound.left_out`` and ``error_bound.within_bound``.

    Args:
        logprobs: [T] of SoftmaxStats.
        entropy: [T], the same.
        grad_logprobs: [T] incoming gradient, if LOGPROBS.
        grad_entropy: [T] incoming gradient, if ENTROPY.
        temperature: a number or [T].
        active: [T] int8, 1 for a token with a gradient.
        sums: [4, T] the fields of EntrySums, of all shards.
        found: [T] int32, how many entries a token has.
        stops: [T] int64, written: where a token's entries end.
        lengths: [T] int64, written: how many entries are used of a token, the target's included.
        dense: [T] int64, written: the tokens to recompute, in order, as many as there are.
        report: [4] float64, written: tokens with a gradient, those to recompute, entries of the
            others, largest probability mass left out of one.
        tokens: T.
        most: places a token has for top entries.
        tail: the relative error that the caller allows.
        log_eps: log of the least probability that is saved.
        LOGPROBS: whether log-probs have a gradient.
        ENTROPY: whether the entropy has one.
        TOP_ENTRIES: whether there are top entries; else every token is recomputed.
        PER_ROW: whether ``temperature`` is [T].
        BLOCK: tokens taken at a time.
    """
    counts = tl.zeros([BLOCK], tl.int64)
    norms = tl.zeros([BLOCK], tl.float64)
    for start in range(0, tokens, BLOCK):
        token = tl.arange(0, BLOCK).to(tl.int64) + start
        used = tl.load(active + token, mask=token < tokens, other=0) != 0
        counts += used.to(tl.int64)
        if TOP_ENTRIES:
            norm = tl.load(sums + token + tokens + tokens, mask=used, other=0.0)
            norms += tl.where(tl.abs(norm) < float("inf"), norm, 0.0).to(tl.float64)
    number = tl.sum(counts)
    limit = tail * tl.sum(norms) / tl.maximum(number, 1).to(tl.float64)
    entries = tl.zeros([], tl.int64)
    recomputed = tl.zeros([], tl.int64)
    left_out = tl.zeros([BLOCK], tl.float64)
    for start in range(0, tokens, BLOCK):
        token = tl.arange(0, BLOCK).to(tl.int64) + start
        there = token < tokens
        used = tl.load(active + token, mask=there, other=0) != 0
        out = used
        if TOP_ENTRIES:
            kept = tl.load(sums + token, mask=used, other=0.0).to(tl.float64)
            over = tl.load(sums + token + tokens + tokens + tokens, mask=used, other=0.0)
            log_p = tl.load(logprobs + token, mask=used, other=0.0).to(tl.float64)
            others = -_expm1(log_p)
            mass = _not_below(others - kept, 0.0)
            cost = tl.zeros([BLOCK], tl.float64)
            if LOGPROBS:
                g = tl.load(grad_logprobs + token, mask=used, other=0.0).to(tl.float64)
                cost += tl.abs(g) * (mass + _ROUNDING * others)
            if ENTROPY:
                h = tl.load(grad_entropy + token, mask=used, other=0.0).to(tl.float64)
                mean = tl.load(entropy + token, mask=used, other=0.0).to(tl.float64)
                place = sums + token + tokens
                kept_entropy = tl.load(place, mask=used, other=0.0).to(tl.float64)
                log_q = _not_below(log_p, _LOG_ZERO)
                rest = mean + tl.exp(log_q) * log_q - kept_entropy
                # All log p + H are negative where H < -log_eps.
                sign = tl.where(mean < -log_eps, -1.0, 1.0)
                moved = _not_below(rest + sign * mean * mass, 0.0) + _ROUNDING * mean
                cost += tl.abs(h) * moved
            if PER_ROW:
                cost = cost / tl.load(temperature + token, mask=used, other=1.0).to(tl.float64)
            else:
                cost = cost / _float64(temperature)
            # NaN is not within the bound.
            within = used & (over == 0.0) & (cost <= limit) & (tl.abs(cost) < float("inf"))
            out = used & (within == 0)
            length = tl.minimum(tl.load(found + token, mask=within, other=0), most).to(tl.int64)
            length = tl.where(within, length + 1, 0)
            tl.store(lengths + token, length, mask=there)
            tl.store(stops + token, entries + tl.cumsum(length), mask=there)
            entries += tl.sum(length)
            left_out = tl.where(within & (mass > left_out), mass, left_out)
        one = out.to(tl.int64)
        tl.store(dense + recomputed + tl.cumsum(one) - 1, token, mask=out)
        recomputed += tl.sum(one)
    tl.store(report, number.to(tl.float64))
    tl.store(report + 1, recomputed.to(tl.float64))
    tl.store(report + 2, entries.to(tl.float64))
    tl.store(report + 3, tl.max(left_out))
