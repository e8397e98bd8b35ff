"""What the Triton kernels of the policy loss share: slots, tokens, and numbers made of them."""

from __future__ import annotations

import triton
import triton.language as tl

LARGE = tl.constexpr(1e30)  # as types.LARGE
LIMIT = tl.constexpr(20.0)  # as types.LOG_RATIO_LIMIT


@triton.jit
def clamp(x, low, high):
    # Not minimum(maximum()): NaN stays NaN.
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def exp_minus_1_minus_x(x):
    # Next to 0 the series: what exp(x) - 1 - x would leave of it is rounding.
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
    total = tl.zeros([64], tl.float32)
    for at in range(first, last, 64):
        index = at + tl.arange(0, 64)
        place = partials + row * tl.cast(slots, tl.int64) + index
        total += tl.load(place, mask=index < last, other=0.0)
    return tl.sum(total)


@triton.jit
def read(values, tokens, counts):
    return tl.load(values + tokens, mask=counts, other=0.0).to(tl.float32)


@triton.jit
def log_ratio(ours, values, tokens, counts):
    """``ours - values``, clamped, and whether the clamp left it alone."""
    raw = ours - clamp(read(values, tokens, counts), -LARGE, LARGE)
    limited = clamp(raw, -LIMIT, LIMIT)
    return limited, limited == raw


@triton.jit
def evidence(ours, sampler, tokens, counts):
    gap, _ = log_ratio(ours, sampler, tokens, counts)
    return tl.where(gap == gap, gap, 0.0)


@triton.jit
def one_sided(x, advantage, low, high):
    clipped_low = (x < low) & (advantage < 0)
    clipped_high = (x > high) & (advantage > 0)
    x = tl.where(clipped_low, low, x)
    x = tl.where(clipped_high, high, x)
    return tl.where(advantage == 0, 0.0, x), clipped_low, clipped_high


@triton.jit
def tokens_of(mask, start, stop, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr):
    """Places of the slot's tokens, which of the lanes have one, and which of them count."""
    tokens = tl.cast(start, tl.int64) + tl.arange(0, BLOCK)
    inside = tokens < stop
    counts = inside
    if HAS_MASK:
        counts = inside & (tl.load(mask + tokens, mask=inside, other=0) != 0)
    return tokens, inside, counts


@triton.jit
def advantage_of(advantages, sequence, tokens, counts, PER_TOKEN: tl.constexpr):
    if PER_TOKEN:
        return read(advantages, tokens, counts)
    one = tl.load(advantages + sequence).to(tl.float32)
    return tl.where(counts, one, 0.0)
