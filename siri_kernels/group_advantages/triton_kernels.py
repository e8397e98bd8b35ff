"""Grouped advantages in Triton: one launch, two for the standard deviation of a batch.

Ids of more than SCAN_LIMIT answers are sorted before. Where the number of groups is not known, two
more launches find it, and give the groups ids without gaps.

A program takes a tile of groups, one a row, so that rewards are read from memory once. Groups of
more than COLUMNS answers are read three times in steps of COLUMNS, from the cache. As in
``portable``, rewards are taken relative to the largest of their group before anything is summed, so
that a constant group is exactly all zeros. A group of huge rewards is scaled by a power of two, so
that squares do not overflow. Every sum has a fixed order and there are no atomics.

``/`` of float32 is within 2 units in the last place on a GPU: ``x / x`` need not be 1. Results that
must be exact are therefore a quotient of 0, which is always 0, or ``tl.div_rn``, which rounds as
IEEE 754 does and costs a few instructions for each row of a tile. Quotients in float64 are always
rounded like that.

With ids, ``order`` sorts the answers by group, and ``offsets`` has the first place of each group.
"""

from __future__ import annotations

import triton
import triton.language as tl

COLUMNS = 4096  # widest tile
TILE = 1024  # rewards of a tile of groups that are narrower
PARTIALS = 1024  # programs at most: every program of the second launch adds up so many partials
SCAN_LIMIT = 1 << 14  # answers up to which ids are compared in pairs and not sorted
SCAN_ROWS, SCAN_COLUMNS = 32, 64
# float32 rewards above 2**60 are multiplied with 2**-80.
HUGE, UNIT, INVERSE = tl.constexpr(2.0**60), tl.constexpr(2.0**-80), tl.constexpr(2.0**80)


@triton.jit
def _load(rewards, order, begin, place, inside, EQUAL: tl.constexpr, WIDE: tl.constexpr):
    """Rewards of a tile, where they lie, and which were scored."""
    answers = begin + place
    if not EQUAL:
        answers = tl.load(order + answers, mask=inside, other=0)
    r = tl.load(rewards + answers, mask=inside, other=0)
    # float32 holds the narrow types exactly; differences of the others are taken in float64.
    r = r.to(tl.float64) if WIDE else r.to(tl.float32)
    return r, answers, inside & (r == r)


@triton.jit
def _units_of(size, WIDE: tl.constexpr):
    """The power of two by which groups of rewards of this size are multiplied, and its inverse.

    Both are 1 unless a square may overflow.
    """
    if WIDE:  # by the exponent in its bits: float64 has room for more than float32, too
        power = tl.minimum((size.to(tl.int64, bitcast=True) >> 52) & 2047, 2045)
        unit = ((2046 - power) << 52).to(tl.float64, bitcast=True)
        inverse = (power << 52).to(tl.float64, bitcast=True)
    else:
        unit, inverse = UNIT, INVERSE
    return tl.where(size > HUGE, unit, 1.0), tl.where(size > HUGE, inverse, 1.0)


@triton.jit
def _advantages(
    r,
    top,
    unit,
    inverse,
    mean_drop,
    count,
    std,
    scored,
    eps,
    BASELINE: tl.constexpr,
    SCALE: tl.constexpr,
    VERL: tl.constexpr,
):
    """Advantages of a tile whose rows have these statistics, ``mean_drop`` and ``std`` in units.

    A later launch divides by a batch's std. Until then advantages are a quarter, so that
    leave_one_out is finite for the largest rewards.
    """
    value = (r * unit - top * unit).to(tl.float32) - mean_drop
    if BASELINE == "none":
        value = (r * unit).to(tl.float32)
    elif BASELINE == "leave_one_out":
        value = value * (count / tl.maximum(count - 1.0, 1.0))
    if VERL:
        value = tl.where(count == 1.0, (r * unit).to(tl.float32), value)
        std = tl.where(count == 1.0, unit.to(tl.float32), std)
    if SCALE == "group_std":
        value = tl.where(std == 0.0, 0.0, value / (std + eps * unit.to(tl.float32)))
    elif SCALE == "batch_std":
        value = (value * 0.25) * inverse.to(tl.float32)
    else:
        value = value * inverse.to(tl.float32)
    return tl.where(scored, value, 0.0)


@triton.jit
def _union(top, inverse, mean_drop, count, squares):
    """Count, mean and squares about it (both float64) of groups together (Chan, Golub, LeVeque).

    Means are in float64, because beside a large level float32 would lose their differences. They
    are relative to the highest mean, so that equal means give it exactly.
    """
    inverse = inverse.to(tl.float64)
    mean = top.to(tl.float64) + mean_drop.to(tl.float64) * inverse
    together = tl.sum(count)
    highest = tl.max(tl.where(count > 0, mean, float("-inf")))
    highest = tl.where(together > 0, highest, 0.0)
    below = tl.where(count > 0, mean - highest, 0.0)
    middle = highest + tl.sum(below * count) / tl.maximum(together, 1.0).to(tl.float64)
    away = tl.where(count > 0, mean - middle, 0.0)
    own = squares.to(tl.float64) * inverse * inverse
    return together, middle, tl.sum(own + away * away * count)


@triton.jit(do_not_specialize=["size", "num_groups", "tiles_each"])
def group_kernel(
    rewards,
    order,
    offsets,
    advantages,
    means,
    stds,
    degenerate,
    partials,
    size,
    num_groups,
    tiles_each,
    eps,
    correction,
    WIDE: tl.constexpr,
    BASELINE: tl.constexpr,
    SCALE: tl.constexpr,
    VERL: tl.constexpr,
    EQUAL: tl.constexpr,
    ONE_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Groups' statistics and advantages; for "batch_std" also count, mean and sum of squares."""
    program = tl.program_id(0)
    columns = tl.arange(0, COLUMNS)[None, :]
    lowest = float("-inf")
    seen = tl.zeros([1], tl.float32)
    seen_mean = tl.zeros([1], tl.float64)
    seen_squares = tl.zeros([1], tl.float64)
    for tile in range(program * tiles_each, (program + 1) * tiles_each):
        group = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        there = group < num_groups
        if EQUAL:
            begin = group * size
            width = tl.where(there, size, 0)
        else:
            begin = tl.load(offsets + group, mask=there, other=0)
            width = tl.load(offsets + group + 1, mask=there, other=0) - begin
        begin = begin[:, None]
        steps = 1 if ONE_TILE else tl.cdiv(tl.max(width), COLUMNS)
        width = width[:, None]

        count = tl.zeros([ROWS], tl.float32)
        top = tl.full([ROWS], lowest, tl.float64 if WIDE else tl.float32)
        size_of = tl.zeros([ROWS], top.dtype)
        for step in range(steps):
            place = step * COLUMNS + columns
            r, _, scored = _load(rewards, order, begin, place, place < width, EQUAL, WIDE)
            count += tl.sum(scored.to(tl.float32), 1)
            top = tl.maximum(top, tl.max(tl.where(scored, r, lowest), 1))
            size_of = tl.maximum(size_of, tl.max(tl.where(scored, tl.abs(r), 0.0), 1))
        top = tl.where(count == 0.0, 0.0, top)
        unit, inverse = _units_of(size_of, WIDE)

        total = tl.zeros([ROWS], tl.float32)
        least = tl.zeros([ROWS], tl.float32)
        for step in range(steps):
            place = step * COLUMNS + columns
            r, _, scored = _load(rewards, order, begin, place, place < width, EQUAL, WIDE)
            drop = r * unit[:, None] - (top * unit)[:, None]
            drop = tl.where(scored, drop.to(tl.float32), 0.0)
            total += tl.sum(drop, 1)
            least = tl.minimum(least, tl.min(drop, 1))
        mean_drop = tl.div_rn(total, tl.maximum(count, 1.0))

        squares = tl.zeros([ROWS], tl.float32)
        for step in range(steps):
            place = step * COLUMNS + columns
            r, _, scored = _load(rewards, order, begin, place, place < width, EQUAL, WIDE)
            centred = r * unit[:, None] - (top * unit)[:, None]
            centred = centred.to(tl.float32) - mean_drop[:, None]
            squares += tl.sum(tl.where(scored, centred * centred, 0.0), 1)
        std = tl.sqrt_rn(tl.div_rn(squares, tl.maximum(count - correction, 1.0)))

        for step in range(steps):
            place = step * COLUMNS + columns
            inside = place < width
            r, answers, scored = _load(rewards, order, begin, place, inside, EQUAL, WIDE)
            value = _advantages(
                r,
                top[:, None],
                unit[:, None],
                inverse[:, None],
                mean_drop[:, None],
                count[:, None],
                std[:, None],
                scored,
                eps,
                BASELINE,
                SCALE,
                VERL,
            )
            tl.store(advantages + answers, value, mask=inside)
        mean = top + mean_drop * inverse
        tl.store(means + group, mean.to(tl.float32), mask=there)
        tl.store(stds + group, std * inverse.to(tl.float32), mask=there)
        tl.store(degenerate + group, (least == 0.0).to(tl.int8), mask=there)

        if SCALE == "batch_std":
            tile_count, tile_mean, tile_squares = _union(top, inverse, mean_drop, count, squares)
            both = tl.maximum(seen + tile_count, 1.0)
            gap = tile_mean - seen_mean
            seen_squares += tile_squares + gap * gap * seen * tile_count / both
            # The first tile's mean as it is, not a product with a quotient that should be 1; from
            # there on equal means have a gap of 0.
            moved = seen_mean + (tile_mean - seen_mean) * (tile_count / both)
            seen_mean = tl.where(seen == 0.0, tile_mean, moved)
            seen += tile_count
    if SCALE == "batch_std":
        place = partials + program * 3 + tl.zeros([1], tl.int32)
        tl.store(place, seen.to(partials.dtype.element_ty))
        tl.store(place + 1, seen_mean.to(partials.dtype.element_ty))
        tl.store(place + 2, seen_squares.to(partials.dtype.element_ty))


@triton.jit
def _scan(rewards, ids, key, at, total, WIDE: tl.constexpr, COLUMNS: tl.constexpr):
    """COLUMNS rewards, which of them are scored, and their rows."""
    place = at + tl.arange(0, COLUMNS)
    there = place < total
    r = tl.load(rewards + place, mask=there, other=0)
    r = r.to(tl.float64) if WIDE else r.to(tl.float32)
    same = key[:, None] == tl.load(ids + place, mask=there, other=-1)[None, :]
    return r[None, :], same & (there & (r == r))[None, :]


@triton.jit(do_not_specialize=["total", "num_groups", "answer_programs"])
def scan_kernel(
    rewards,
    ids,
    advantages,
    means,
    stds,
    degenerate,
    partials,
    total,
    num_groups,
    answer_programs,
    eps,
    correction,
    WIDE: tl.constexpr,
    BASELINE: tl.constexpr,
    SCALE: tl.constexpr,
    VERL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Without a sort: each row, an answer or a group, reads all answers from the cache.

    For up to SCAN_LIMIT answers. The first programs take the answers, the others the groups.
    """
    program = tl.program_id(0)
    lowest = float("-inf")
    answers = program * ROWS + tl.arange(0, ROWS)
    groups = (program - answer_programs) * ROWS + tl.arange(0, ROWS)
    of_answers = program < answer_programs
    inside = of_answers & (answers < total)
    key = tl.load(ids + answers, mask=inside, other=-1)
    key = tl.where(of_answers | (groups >= num_groups), key, groups)

    count = tl.zeros([ROWS], tl.float32)
    top = tl.full([ROWS], lowest, tl.float64 if WIDE else tl.float32)
    size_of = tl.zeros([ROWS], top.dtype)
    for at in range(0, total, COLUMNS):
        r, same = _scan(rewards, ids, key, at, total, WIDE, COLUMNS)
        count += tl.sum(same.to(tl.float32), 1)
        top = tl.maximum(top, tl.max(tl.where(same, r, lowest), 1))
        size_of = tl.maximum(size_of, tl.max(tl.where(same, tl.abs(r), 0.0), 1))
    top = tl.where(count == 0.0, 0.0, top)
    unit, inverse = _units_of(size_of, WIDE)
    summed = tl.zeros([ROWS], tl.float32)
    least = tl.zeros([ROWS], tl.float32)
    for at in range(0, total, COLUMNS):
        r, same = _scan(rewards, ids, key, at, total, WIDE, COLUMNS)
        drop = r * unit[:, None] - (top * unit)[:, None]
        drop = tl.where(same, drop.to(tl.float32), 0.0)
        summed += tl.sum(drop, 1)
        least = tl.minimum(least, tl.min(drop, 1))
    mean_drop = tl.div_rn(summed, tl.maximum(count, 1.0))
    squares = tl.zeros([ROWS], tl.float32)
    for at in range(0, total, COLUMNS):
        r, same = _scan(rewards, ids, key, at, total, WIDE, COLUMNS)
        centred = r * unit[:, None] - (top * unit)[:, None]
        centred = centred.to(tl.float32) - mean_drop[:, None]
        squares += tl.sum(tl.where(same, centred * centred, 0.0), 1)
    std = tl.sqrt_rn(tl.div_rn(squares, tl.maximum(count - correction, 1.0)))
    mean = top + mean_drop * inverse

    r = tl.load(rewards + answers, mask=inside, other=0)
    r = r.to(tl.float64) if WIDE else r.to(tl.float32)
    value = _advantages(
        r, top, unit, inverse, mean_drop, count, std, r == r, eps, BASELINE, SCALE, VERL
    )
    tl.store(advantages + answers, value, mask=inside)
    there = (program >= answer_programs) & (groups < num_groups)
    tl.store(means + groups, mean.to(tl.float32), mask=there)
    tl.store(stds + groups, std * inverse.to(tl.float32), mask=there)
    tl.store(degenerate + groups, (least == 0.0).to(tl.int8), mask=there)
    if SCALE == "batch_std":
        scored = tl.where(there, count, 0.0)
        tile_count, tile_mean, tile_squares = _union(
            top, inverse, mean_drop, scored, tl.where(there, squares, 0.0)
        )
        place = partials + (program - answer_programs) * 3 + tl.arange(0, 1)
        of_groups = (program >= answer_programs) & (tl.arange(0, 1) == 0)
        nothing = tl.zeros([1], partials.dtype.element_ty)
        tl.store(place, nothing + tile_count.to(partials.dtype.element_ty), mask=of_groups)
        tl.store(place + 1, nothing + tile_mean.to(partials.dtype.element_ty), mask=of_groups)
        tl.store(place + 2, nothing + tile_squares.to(partials.dtype.element_ty), mask=of_groups)


@triton.jit(do_not_specialize=["total"])
def first_kernel(ids, firsts, total, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Which answers are the first of their group: those whose id no earlier answer has."""
    answers = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = answers < total
    key = tl.load(ids + answers, mask=inside, other=-1)
    earlier = tl.zeros([ROWS], tl.int32)
    for at in range(0, (tl.program_id(0) + 1) * ROWS, COLUMNS):
        place = at + tl.arange(0, COLUMNS)
        other = tl.load(ids + place, mask=place < total, other=-1)
        before = place[None, :] < answers[:, None]
        earlier += tl.sum((before & (key[:, None] == other[None, :])).to(tl.int32), 1)
    tl.store(firsts + answers, (earlier == 0).to(tl.int8), mask=inside)


@triton.jit(do_not_specialize=["total"])
def rank_kernel(ids, firsts, ranks, num_groups, total, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Ids without gaps, in the same order, and how many groups there are."""
    answers = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = answers < total
    key = tl.load(ids + answers, mask=inside, other=-1)
    rank = tl.zeros([ROWS], tl.int32)
    groups = tl.zeros([1], tl.int32)
    for at in range(0, total, COLUMNS):
        place = at + tl.arange(0, COLUMNS)
        there = place < total
        other = tl.load(ids + place, mask=there, other=-1)
        first = tl.load(firsts + place, mask=there, other=0) != 0
        groups += tl.sum(first.to(tl.int32))
        rank += tl.sum((first[None, :] & (other[None, :] < key[:, None])).to(tl.int32), 1)
    tl.store(ranks + answers, rank.to(tl.int64), mask=inside)
    one = tl.zeros([1], tl.int32)
    tl.store(num_groups + one, groups, mask=one + tl.program_id(0) == 0)


@triton.jit(do_not_specialize=["total", "programs"])
def batch_kernel(
    advantages,
    partials,
    total,
    programs,
    eps,
    correction,
    PARTIALS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Divides by the batch's standard deviation, which every program computes from the partials."""
    index = tl.arange(0, PARTIALS)
    there = index < programs
    count = tl.load(partials + index * 3, mask=there, other=0.0)
    mean = tl.load(partials + index * 3 + 1, mask=there, other=0.0)
    squares = tl.load(partials + index * 3 + 2, mask=there, other=0.0)
    scored = tl.sum(count)
    highest = tl.max(tl.where(count > 0, mean, float("-inf")))
    highest = tl.where(scored > 0, highest, 0.0)
    below = tl.where(count > 0, mean - highest, 0.0)
    middle = highest + tl.sum(count * below) / tl.maximum(scored, 1.0)
    away = tl.where(count > 0, mean - middle, 0.0)
    variance = tl.sum(squares + away * away * count) / tl.maximum(scored - correction, 1.0)
    std = tl.sqrt(variance).to(tl.float32)
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    value = tl.load(advantages + place, mask=place < total, other=0.0)
    # The values are a quarter of what they should be.
    value = tl.where(std == 0.0, 0.0, value / (std * 0.25 + eps * 0.25))
    tl.store(advantages + place, value, mask=place < total)


def warps(columns, wide):
    """Warps of group_kernel: with four the widest tiles and those of float64 spill registers."""
    return 8 if columns > 1024 or wide else 4
