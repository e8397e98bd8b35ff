"""The policy loss in Triton: one pass over the tokens, one small reduction.

Tokens are split into slots, at the ends of sequences and at every multiple of BLOCK. A program
takes a slot, so that the values of a sequence are scalars, no sequence is padded and none is too
long.
Sequence ``i`` has the slots from ``i + cu_seqlens[i] // BLOCK`` on, which a program inverts by
bisection; there are B + T // BLOCK in all. Values that depend on a whole sequence come from an
earlier pass, which writes a sum for each slot; each program adds up those of its sequence, in a
fixed order. There are no atomics, so runs repeat bit for bit. All numbers are run-time values:
nothing is compiled again when a bound changes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from siri_kernels.policy_loss.triton_common import (
    LARGE,
    LIMIT,
    advantage_of,
    clamp,
    evidence,
    exp_minus_1_minus_x,
    log_ratio,
    one_sided,
    read,
    sequence_sum,
    slot_of,
    tokens_of,
)

BLOCK = 1024  # tokens of a slot

# Rows of the earlier pass's result, [STATS, slots].
COUNT, LOG_RATIO, GAP, DRIFT = (tl.constexpr(i) for i in range(4))
STATS = 4
REDUCE_LANES = 1024
# Rows of the pass's result, [SUMS, slots], and of the reduction's.
LOSS, TOKENS, NON_EMPTY = (tl.constexpr(i) for i in range(3))
SUMS = 13
RATIO_MAX = tl.constexpr(6)
ROWS = {
    "clip_frac_low": 3,
    "clip_frac_high": 4,
    "ratio_mean": 5,
    "ratio_max": 6,
    "approx_kl": 7,
    "entropy": 8,
    "ref_kl": 9,
    "rollout_kl": 10,
    "rollout_weight_mean": 11,
    "off_policy_frac": 12,
    "tokens": 1,
}


@triton.jit(do_not_specialize=["sequences", "slots"])
def sequence_kernel(
    logprobs,
    old_logprobs,
    advantages,
    mask,
    rollout_logprobs,
    cu_seqlens,
    partials,
    sequences,
    slots,
    low,
    high,
    HAS_MASK: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    HAS_ROLLOUT: tl.constexpr,
    GMPO: tl.constexpr,
    WITH_LOG_RATIO: tl.constexpr,
    WITH_GAP: tl.constexpr,
    WITH_DRIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The earlier pass: sums over each slot of the values that whole sequences need."""
    slot = tl.program_id(0)
    sequence, _, _, start, stop, _ = slot_of(cu_seqlens, sequences, slot, BLOCK)
    tokens, inside, unmasked = tokens_of(mask, start, stop, HAS_MASK, BLOCK)
    place = partials + slot
    row = tl.cast(slots, tl.int64)
    tl.store(place + COUNT * row, tl.sum(unmasked.to(tl.float32)))
    logp = read(logprobs, tokens, unmasked)
    if WITH_LOG_RATIO:
        x, _ = log_ratio(logp, old_logprobs, tokens, unmasked)
        if GMPO:
            advantage = advantage_of(advantages, sequence, tokens, unmasked, PER_TOKEN)
            x, _, _ = one_sided(x, advantage, low, high)
        tl.store(place + LOG_RATIO * row, tl.sum(x))
    if WITH_GAP:
        old = clamp(read(old_logprobs, tokens, unmasked), -LARGE, LARGE)
        gap = evidence(old, rollout_logprobs, tokens, unmasked)
        tl.store(place + GAP * row, tl.sum(gap))
    if WITH_DRIFT:
        sampler = rollout_logprobs if HAS_ROLLOUT else old_logprobs
        drift = -evidence(logp, sampler, tokens, unmasked)
        tl.store(place + DRIFT * row, tl.sum(drift))


@triton.jit(do_not_specialize=["sequences", "slots"])
def loss_kernel(
    logprobs,
    old_logprobs,
    advantages,
    mask,
    rollout_logprobs,
    ref_logprobs,
    entropy,
    cu_seqlens,
    partials,
    sums,
    d_logprobs,
    d_entropy,
    sequences,
    slots,
    low,
    high,
    ceiling,
    tau_positive,
    tau_negative,
    weight_low,
    weight_high,
    off_policy_threshold,
    kl_coef,
    kl_limit,
    entropy_coef,
    OBJECTIVE: tl.constexpr,
    SEQUENCE_RATIO: tl.constexpr,
    HAS_CEILING: tl.constexpr,
    HAS_MASK: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    HAS_STATS: tl.constexpr,
    SEQUENCE_MEAN: tl.constexpr,
    HAS_ROLLOUT: tl.constexpr,
    CORRECTION: tl.constexpr,
    LEVEL: tl.constexpr,
    OFF_POLICY: tl.constexpr,
    HAS_REF: tl.constexpr,
    KL: tl.constexpr,
    KL_UNBIASED: tl.constexpr,
    HAS_KL_LIMIT: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_BONUS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The pass: gradients, to be divided by the denominator, and sums over each slot."""
    slot = tl.program_id(0)
    sequence, first, last, start, stop, length = slot_of(cu_seqlens, sequences, slot, BLOCK)
    tokens, inside, unmasked = tokens_of(mask, start, stop, HAS_MASK, BLOCK)
    advantage = advantage_of(advantages, sequence, tokens, unmasked, PER_TOKEN)
    logp = read(logprobs, tokens, unmasked)
    place = sums + slot
    row = tl.cast(slots, tl.int64)
    count = length.to(tl.float32)
    if HAS_STATS:
        count = sequence_sum(partials, slots, COUNT, first, last)
    divisor = tl.maximum(count, 1.0)

    x, free = log_ratio(logp, old_logprobs, tokens, unmasked)
    token_ratio = tl.exp(x)
    ratio = token_ratio
    if SEQUENCE_RATIO:
        mean = sequence_sum(partials, slots, LOG_RATIO, first, last) / divisor
        ratio = tl.where(unmasked, tl.exp(mean), 1.0)

    clipped_low = unmasked & (tokens < 0)  # none
    clipped_high = clipped_low
    if OBJECTIVE == "clip":
        loss = -advantage * ratio
        clipped = -advantage * clamp(ratio, low, high)
        slope = tl.where((clipped > loss) | (free == 0), 0.0, loss)
        loss = tl.where(clipped > loss, clipped, loss)
        if HAS_CEILING:
            beyond = (advantage < 0) & (loss > -advantage * ceiling)
            loss = tl.where(beyond, -advantage * ceiling, loss)
            slope = tl.where(beyond, 0.0, slope)
        clipped_low = (ratio < low) & (advantage < 0)
        clipped_high = (ratio > high) & (advantage > 0)
    elif OBJECTIVE == "cispo":
        bounded = clamp(logp, -LARGE, LARGE)
        slope = -clamp(ratio, low, high) * advantage
        loss = slope * bounded
        slope = tl.where(bounded == logp, slope, 0.0)
        clipped_low = unmasked & (ratio < low)
        clipped_high = unmasked & (ratio > high)
    elif OBJECTIVE == "sapo":
        tau = tl.where(advantage > 0, tau_positive, tau_negative)
        gate = tl.sigmoid(tau * (ratio - 1.0))
        loss = -advantage * gate * 4.0 / tau
        slope = tl.where(free, -4.0 * advantage * gate * (1.0 - gate) * ratio, 0.0)
    elif OBJECTIVE == "gmpo":
        _, clipped_low, clipped_high = one_sided(x, advantage, low, high)
        loss = -advantage * ratio
        slope = tl.where(clipped_low | clipped_high | (free == 0), 0.0, loss)
    else:  # reinforce
        bounded = clamp(logp, -LARGE, LARGE)
        loss = -advantage * bounded
        slope = tl.where(bounded == logp, -advantage, 0.0)

    if HAS_ROLLOUT:
        old = clamp(read(old_logprobs, tokens, unmasked), -LARGE, LARGE)
        gap = evidence(old, rollout_logprobs, tokens, unmasked)
        tl.store(place + 10 * row, tl.sum(exp_minus_1_minus_x(gap)))
        if LEVEL != "token":
            total = sequence_sum(partials, slots, GAP, first, last)
            if LEVEL == "geometric":
                total = total / divisor
            gap = tl.where(unmasked, clamp(total, -LIMIT, LIMIT), 0.0)
        weight = tl.exp(gap)
        if CORRECTION == "truncate":
            weight = clamp(weight, weight_low, weight_high)
        elif CORRECTION != "none":
            kept = (weight >= weight_low) & (weight <= weight_high)
            weight = tl.where(kept, weight if CORRECTION == "mask" else 1.0, 0.0)
        tl.store(place + 11 * row, tl.sum(tl.where(unmasked, weight, 0.0)))
        if CORRECTION != "none":
            loss *= weight
            slope *= weight
    if OFF_POLICY:
        drift = sequence_sum(partials, slots, DRIFT, first, last) / divisor
        dropped = (advantage < 0) & (tl.where(unmasked, drift, 0.0) > off_policy_threshold)
        tl.store(place + 12 * row, tl.sum(dropped.to(tl.float32)))
        loss = tl.where(dropped, 0.0, loss)
        slope = tl.where(dropped, 0.0, slope)

    if HAS_REF:
        delta, within = log_ratio(logp, ref_logprobs, tokens, unmasked)
        if KL == "k1":
            kl = delta
            d_kl = 1.0 + 0.0 * delta
            both = delta + 1.0
        elif KL == "k2":
            kl = delta * delta * 0.5
            d_kl = delta
            both = kl + d_kl
        else:
            kl = exp_minus_1_minus_x(-delta)
            d_kl = delta - kl
            both = delta
        if HAS_KL_LIMIT:
            within = within & (tl.abs(kl) <= kl_limit)
            kl = clamp(kl, -kl_limit, kl_limit)
        d_kl = tl.where(within, d_kl, 0.0)
        if KL_UNBIASED:
            both = tl.where(within, both, kl)
            d_kl = token_ratio * tl.where(free, both, d_kl)
            kl = token_ratio * kl
        tl.store(place + 9 * row, tl.sum(tl.where(unmasked, kl, 0.0)))
        loss += kl_coef * kl
        slope += kl_coef * d_kl
    if HAS_ENTROPY:
        nats = read(entropy, tokens, unmasked)
        tl.store(place + 8 * row, tl.sum(nats))
        loss -= entropy_coef * nats

    share = 1.0
    if SEQUENCE_MEAN:
        share = 1.0 / divisor
    tl.store(d_logprobs + tokens, tl.where(unmasked, slope * share, 0.0), mask=inside)
    if HAS_BONUS:
        bonus = tl.where(unmasked, -entropy_coef * share, 0.0)
        tl.store(d_entropy + tokens, bonus, mask=inside)
    tl.store(place + LOSS * row, tl.sum(tl.where(unmasked, loss, 0.0)) * share)
    tl.store(place + TOKENS * row, tl.sum(unmasked.to(tl.float32)))
    tl.store(place + NON_EMPTY * row, ((slot == first) & (count > 0)).to(tl.float32))
    tl.store(place + 3 * row, tl.sum(clipped_low.to(tl.float32)))
    tl.store(place + 4 * row, tl.sum(clipped_high.to(tl.float32)))
    tl.store(place + 5 * row, tl.sum(tl.where(unmasked, ratio, 0.0)))
    tl.store(place + RATIO_MAX * row, tl.max(tl.where(unmasked, ratio, 0.0)))
    tl.store(place + 7 * row, tl.sum(tl.where(unmasked, exp_minus_1_minus_x(x), 0.0)))


@triton.jit
def _row_sum(sums, slots, row, LANES: tl.constexpr):
    total = tl.zeros([LANES], tl.float32)
    for at in range(0, slots, LANES):
        index = at + tl.arange(0, LANES)
        place = sums + row * tl.cast(slots, tl.int64) + index
        total += tl.load(place, mask=index < slots, other=0.0)
    return tl.sum(total)


@triton.jit(do_not_specialize=["slots"])
def reduce_kernel(
    sums,
    out,
    denominator,
    slots,
    DENOMINATOR: tl.constexpr,
    LANES: tl.constexpr,
):
    """The small reduction: program ``row`` makes out[row]; program LOSS the gradients' factor too.

    DENOMINATOR: "value", a number; "pointer", a 0-d tensor; "tokens" or "sequences", counted here.
    """
    row = tl.program_id(0)
    if row == LOSS:
        if DENOMINATOR == "value":
            divisor = tl.cast(denominator, tl.float32)
        elif DENOMINATOR == "pointer":
            divisor = tl.load(denominator).to(tl.float32)
        elif DENOMINATOR == "tokens":
            divisor = tl.maximum(_row_sum(sums, slots, TOKENS, LANES), 1.0)
        else:
            divisor = tl.maximum(_row_sum(sums, slots, NON_EMPTY, LANES), 1.0)
        # A step without tokens: loss and gradient are 0.
        divisor = tl.where(divisor == 0.0, float("inf"), divisor)
        # div_rn: ``/`` is within 2 units in the last place only, and a mean of ones is to be 1.
        tl.store(out + LOSS, tl.div_rn(_row_sum(sums, slots, row, LANES), divisor))
        tl.store(out + tl.num_programs(0), tl.div_rn(1.0, divisor))
    elif row == RATIO_MAX:
        largest = tl.zeros([LANES], tl.float32)
        for at in range(0, slots, LANES):
            index = at + tl.arange(0, LANES)
            place = sums + row * tl.cast(slots, tl.int64) + index
            largest = tl.maximum(largest, tl.load(place, mask=index < slots, other=0.0))
        tl.store(out + row, tl.max(largest))
    else:
        tokens = _row_sum(sums, slots, TOKENS, LANES)
        total = _row_sum(sums, slots, row, LANES)
        divisor = tl.where(row <= NON_EMPTY, 1.0, tl.maximum(tokens, 1.0))
        tl.store(out + row, tl.div_rn(total, divisor))
