"""Functions shared by the Triton kernels of the policy loss: slots, tokens, log-ratios."""

from __future__ import annotations

import triton
import triton.language as tl

LARGE = tl.constexpr(1e30)  # as types.LARGE
LIMIT = tl.constexpr(20.0)  # as types.LOG_RATIO_LIMIT


@triton.jit
def clamp(x, low, high):
    """``x`` within [low, high]; unlike with minimum and maximum, NaN stays NaN."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def exp_minus_1_minus_x(x):
    """``exp(x) - 1 - x``, by its series near 0, where the difference would lose all digits."""
    series = 1.0 + x / 9.0
    series = 1.0 + x / 8.0 * series
    series = 1.0 + x / 7.0 * series
    series = 1.0 + x / 6.0 * series
    series = 1.0 + x / 5.0 * series
    series = 1.0 + x / 4.0 * series
    series = 1.0 + x / 3.0 * series
    return tl.where(tl.abs(x) < 0.5, 0.5 * x * x * series, tl.exp(x) - 1.0 - x)


@triton.jit
def slot_of(cu_seqlens, sequences, slot, BLOCK: tl.constexpr):
    """Sequence, its first slot and the one after its last, and the slot's tokens [start, stop)."""
    low = slot * 0
    high = sequences
    while high - low > 1:
        middle = (low + high) // 2
        at_most = middle + tl.load(cu_seqlens + middle) // BLOCK <= slot
        low = tl.where(at_most, middle, low)
        high = tl.where(at_most, high, middle)
    begin = tl.load(cu_seqlens + low)
    end = tl.load(cu_seqlens + low + 1)
    first = low + begin // BLOCK
    last = low + 1 + end // BLOCK
    start = tl.maximum(begin, (begin // BLOCK + slot - first) * BLOCK)
    stop = tl.minimum(end, (begin // BLOCK + slot - first + 1) * BLOCK)
    return low, first, last, start, stop, end - begin


@triton.jit
def sequence_sum(partials, slots, row: tl.constexpr, first, last):
    """Sum of one row of ``partials`` [STATS, slots] over the slots first to last - 1."""
    total = tl.zeros([64], tl.float32)
    for at in range(first, last, 64):
        index = at + tl.arange(0, 64)
        place = partials + row * tl.cast(slots, tl.int64) + index
        total += tl.load(place, mask=index < last, other=0.0)
    return tl.sum(total)


@triton.jit
def read(values, tokens, unmasked):
    """Values in float32, 0 at masked tokens."""
    return tl.load(values + tokens, mask=unmasked, other=0.0).to(tl.float32)


@triton.jit
def log_ratio(ours, values, tokens, unmasked):
    """``ours - values``, clamped, and whether the clamp changed nothing."""
    raw = ours - clamp(read(values, tokens, unmasked), -LARGE, LARGE)
    limited = clamp(raw, -LIMIT, LIMIT)
    return limited, limited == raw


@triton.jit
def evidence(ours, sampler, tokens, unmasked):
    """``ours`` minus the sampler's log-prob; 0 where the sampler reported none (NaN)."""
    gap, _ = log_ratio(ours, sampler, tokens, unmasked)
    return tl.where(gap == gap, gap, 0.0)


@triton.jit
def one_sided(x, advantage, low, high):
    """GMPO's clip of a log-ratio by the sign of the advantage, and where it is active."""
    clipped_low = (x < low) & (advantage < 0)
    clipped_high = (x > high) & (advantage > 0)
    x = tl.where(clipped_low, low, x)
    x = tl.where(clipped_high, high, x)
    return tl.where(advantage == 0, 0.0, x), clipped_low, clipped_high


@triton.jit
def tokens_of(mask, start, stop, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr):
    """Indices of the slot's tokens, which lanes have one, and which of these are unmasked."""
    tokens = tl.cast(start, tl.int64) + tl.arange(0, BLOCK)
    inside = tokens < stop
    unmasked = inside
    if HAS_MASK:
        unmasked = inside & (tl.load(mask + tokens, mask=inside, other=0) != 0)
    return tokens, inside, unmasked


@triton.jit
def advantage_of(advantages, sequence, tokens, unmasked, PER_TOKEN: tl.constexpr):
    """The advantage of each token, 0 at masked ones."""
    if PER_TOKEN:
        return read(advantages, tokens, unmasked)
    one = tl.load(advantages + sequence).to(tl.float32)
    return tl.where(unmasked, one, 0.0)
