"""Kernels that keep the 8-bit copy of a head's weight: has it changed, its mean, its outliers.

All but the first look at ``changed``, which the first sets, and do nothing where it is 0. None has
atomic operations: whoever sets ``changed`` writes the same.
"""

from __future__ import annotations

import triton
import triton.language as tl

FINITE = tl.constexpr(0x7F800000)  # as bits, all finite fp32 >= 0 are below
SAMPLE = 4096  # rows whose median error is taken


@triton.jit
def _mixed(x, row):
    """A hash of a row's 64 bits and its number: every bit of both changes half of the result's."""
    x = (x ^ (x >> 32)) * 0x2545F4914F6CDD1D + (row + 1) * 0x1E3779B97F4A7C15
    x = (x ^ (x >> 29)) * 0x3F58476D1CE4E5B9
    x = (x ^ (x >> 32)) * 0x14D049BB133111EB
    return x ^ (x >> 29)


@triton.jit(do_not_specialize=["rows"])
def fingerprint_kernel(
    bits, keys, kept, changed, rows, width, row_stride, column_stride, BITS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A hash of each block of rows, bit for bit, and whether one is not what it was.

    A row's numbers, as integers, are multiplied by 64-bit keys and added; such sums are mixed with
    the row's number. Two rows have the same sum with a chance of 2 ** -33 at most, however few bits
    differ, for keys that are drawn.

    Args:
        bits: [V, D] int16 or int32, the numbers.
        keys: [D] int64, drawn.
        kept: [blocks] int64, hashes of the last call, overwritten.
        changed: [1] int32, set to 1 if a hash is another one.
        rows: V.
        width: D.
        row_stride: of ``bits``.
        column_stride: of ``bits``.
        BITS: of a number.
        ROWS: of a block; one program takes one.
        COLUMNS: read at a time.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    total = tl.zeros([ROWS, COLUMNS], tl.uint64)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < width
        key = tl.load(keys + column, mask=inside, other=0).to(tl.uint64, bitcast=True)
        place = row[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
        value = tl.load(bits + place, mask=there[:, None] & inside[None, :], other=0)
        if BITS == 16:
            value = value.to(tl.uint16, bitcast=True)
        else:
            value = value.to(tl.uint32, bitcast=True)
        total += value.to(tl.uint64) * key[None, :]
    mixed = _mixed(tl.sum(total, 1), row.to(tl.uint64))
    now = tl.sum(tl.where(there, mixed, 0), 0).to(tl.int64, bitcast=True)
    before = tl.load(kept + tl.program_id(0))
    tl.debug_barrier()  # every thread has read it
    if now != before:
        tl.store(kept + tl.program_id(0), now)
        tl.store(changed, 1)


@triton.jit(do_not_specialize=["rows"])
def sums_kernel(
    weight, changed, sums, counts, rows, width, row_stride, column_stride, GEMM: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums of the columns over a block of rows, those left out that are not finite.

    Args:
        weight: [V, D].
        changed: [1] int32.
        sums: [blocks, D] float32, written.
        counts: [blocks] int32, written: rows that are added.
        rows: V.
        width: D.
        row_stride: of ``weight``.
        column_stride: of ``weight``.
        GEMM: dtype to which numbers are rounded first.
        ROWS: of a block; one program takes one.
        COLUMNS: read at a time.
    """
    if tl.load(changed) != 0:
        block = tl.program_id(0).to(tl.int64)
        row = block * ROWS + tl.arange(0, ROWS)
        there = row < rows
        wrong = tl.zeros([ROWS, COLUMNS], tl.int32)
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = there[:, None] & (column < width)[None, :]
            place = row[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
            value = tl.load(weight + place, mask=inside, other=0.0).to(GEMM).to(tl.float32)
            wrong |= tl.where(tl.abs(value) < float("inf"), 0, 1)
        usual = there & (tl.max(wrong, 1) == 0)
        tl.store(counts + block, tl.sum(usual.to(tl.int32), 0))
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = usual[:, None] & (column < width)[None, :]
            place = row[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
            value = tl.load(weight + place, mask=inside, other=0.0).to(GEMM).to(tl.float32)
            tl.store(sums + block * width + column, tl.sum(value, 0), mask=column < width)


@triton.jit(do_not_specialize=["blocks"])
def mean_kernel(
    changed, sums, counts, mean, blocks, width, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The mean row.

    Args:
        changed: [1] int32.
        sums: [blocks, D] of :func:`sums_kernel`.
        counts: [blocks] int32, the same.
        mean: [D] float32, written.
        blocks: of rows.
        width: D.
        BLOCKS: read at a time.
        COLUMNS: of a program.
    """
    if tl.load(changed) != 0:
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        total = tl.zeros([BLOCKS, COLUMNS], tl.float64)
        count = tl.zeros([BLOCKS], tl.int32)
        for start in range(0, blocks, BLOCKS):
            block = start + tl.arange(0, BLOCKS)
            there = block < blocks
            count += tl.load(counts + block, mask=there, other=0)
            place = block.to(tl.int64)[:, None] * width + column[None, :]
            inside = there[:, None] & (column < width)[None, :]
            total += tl.load(sums + place, mask=inside, other=0.0).to(tl.float64)
        divisor = tl.maximum(tl.sum(count, 0), 1).to(tl.float64)
        tl.store(mean + column, (tl.sum(total, 0) / divisor).to(tl.float32), mask=column < width)


@triton.jit
def _median(error, norm, rows, SAMPLE: tl.constexpr):
    """The median of the errors above 0 of at most SAMPLE rows; infinity if there is none.

    Args:
        error: [V] of DeviceRows.
        norm: [V], the same.
        rows: V.
        SAMPLE: rows, evenly spaced.
    """
    taken = tl.minimum(rows, SAMPLE)
    number = tl.arange(0, SAMPLE)
    there = number < taken
    row = number.to(tl.int64) * rows // taken
    value = tl.load(error + row, mask=there, other=0.0)
    length = tl.load(norm + row, mask=there, other=0.0)
    value = tl.where((length < float("inf")) & (value > 0) & (value < float("inf")), value, 0.0)
    bits = value.to(tl.int32, bitcast=True)
    some = bits > 0
    least = (tl.sum(some.to(tl.int32), 0) + 1) // 2  # of the sorted, as many up to the median
    # As bits, positive numbers are in order: bit by bit, the largest that has fewer below it.
    below = tl.zeros([], tl.int32)
    for bit in tl.static_range(31):
        tried = below + (1 << (30 - bit))
        fewer = tl.sum((some & (bits < tried)).to(tl.int32), 0)
        below = tl.where((fewer < least) & (tried <= FINITE), tried, below)
    return tl.where(least > 0, below.to(tl.float32, bitcast=True), float("inf"))


@triton.jit(do_not_specialize=["rows"])
def numbers_kernel(
    changed, scale, error, norm, numbers, rows, outlier, most, SAMPLE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Which rows are outliers, and the numbers of all others. There is one program.

    Args:
        changed: [1] int32.
        scale: [V] float32, -1 is written for outliers.
        error: [V] float32 of the rows.
        norm: [V] float32, the same.
        numbers: [4] float32, written: root mean square of errors and of norms over the usual rows,
            the largest norm of an outlier, and 1 where there are few outliers.
        rows: V.
        outlier: a row is one whose error is so many times the median.
        most: outliers.
        SAMPLE: rows whose median is taken.
        BLOCK: rows at a time.
    """
    if tl.load(changed) != 0:
        limit = outlier * _median(error, norm, rows, SAMPLE)
        errors = tl.zeros([BLOCK], tl.float64)
        norms = tl.zeros([BLOCK], tl.float64)
        usual_rows = tl.zeros([BLOCK], tl.int32)
        largest = tl.full([BLOCK], -1.0, tl.float32)
        for start in range(0, rows, BLOCK):
            row = start + tl.arange(0, BLOCK)
            there = row < rows
            change = tl.load(error + row, mask=there, other=0.0)
            length = tl.load(norm + row, mask=there, other=0.0)
            finite = length < float("inf")
            usual = finite & (change < float("inf")) & (change <= limit)
            odd = there & (usual == 0)
            usual = there & usual
            tl.store(scale + row, -1.0, mask=odd)
            usual_rows += usual.to(tl.int32)
            errors += tl.where(usual, change.to(tl.float64) * change.to(tl.float64), 0.0)
            norms += tl.where(usual, length.to(tl.float64) * length.to(tl.float64), 0.0)
            largest = tl.maximum(largest, tl.where(odd & finite, length, -1.0))
        count = tl.sum(usual_rows, 0)
        by = 1.0 / tl.maximum(count, 1).to(tl.float64)
        typical_error = tl.sqrt(tl.sum(errors, 0) * by).to(tl.float32)
        typical = tl.sqrt(tl.sum(norms, 0) * by).to(tl.float32)
        typical_error = tl.where(count > 0, typical_error, float("inf"))
        typical = tl.where(count > 0, typical, float("inf"))
        top = tl.max(largest, 0)
        suited = (rows - count <= most) & (typical_error < float("inf"))
        tl.store(numbers, typical_error)
        tl.store(numbers + 1, typical)
        tl.store(numbers + 2, tl.where(top >= 0, top, typical))
        tl.store(numbers + 3, tl.where(suited, 1.0, 0.0))


@triton.jit(do_not_specialize=["rows"])
def outliers_kernel(changed, scale, codes, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Writes zeros for the codes of outliers.

    Args:
        changed: [1] int32.
        scale: [V] float32, -1 for outliers.
        codes: [V, W] int8.
        rows: V.
        width: W.
        ROWS: of a program.
        COLUMNS: written at a time.
    """
    if tl.load(changed) != 0:
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        odd = tl.load(scale + row, mask=row < rows, other=0.0) < 0
        if tl.max(odd.to(tl.int32), 0) > 0:
            for start in range(0, width, COLUMNS):
                column = start + tl.arange(0, COLUMNS)
                mask = odd[:, None] & (column < width)[None, :]
                zeros = tl.zeros([ROWS, COLUMNS], tl.int8)
                tl.store(codes + row[:, None] * width + column[None, :], zeros, mask=mask)
