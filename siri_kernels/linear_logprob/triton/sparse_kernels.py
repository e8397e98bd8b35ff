"""Triton kernels of sparse backward: gradients from top entries of rows within the error bound.

A row is a token's. Every sum runs over one row's entries, or one id's, in a fixed order, in fp32,
without atomics. Entries are stored row after row, the target's first. For the gradient of
``weight`` they are sorted by id. For ids with many entries ``piece_kernel`` first adds up the whole
pieces of PIECE entries that belong to one id.
"""

from __future__ import annotations

import triton
import triton.language as tl

from siri_kernels.linear_logprob.triton.kernel_math import LOWEST, at_least, exp2, scale_of, upcast

PIECE = 256  # entries
# Rows and columns of a matrix gathered at a time. Each thread has 8 columns of every row, so that
# it loads and stores 16 bytes and sums up alone.
ROWS = 4
COLUMNS = 512
GATHER_WARPS = 2
ENTRIES = 512  # of a row, read at a time

# Natural logarithm of 2.
NATS_A_BIT = tl.constexpr(0.6931471805599453)


@triton.jit
def entry_gradient(
    z, y, offset, slope, inverse_softcap, SLOPE: tl.constexpr, SOFTCAP: tl.constexpr
):
    """Gradient of raw logits by GradientRule.

    Args:
        z: logits.
        y: their exponents of two, ``(z - max) * scale``.
        offset: of GradientRule.
        slope: of GradientRule, if SLOPE.
        inverse_softcap: 1 / softcap.
        SLOPE: whether the entropy has a gradient.
        SOFTCAP: whether there is a softcap.
    """
    by = offset
    if SLOPE:
        by += y * slope
    grad = exp2(y) * by
    if SOFTCAP:
        part = z * inverse_softcap
        part = tl.where(part > 1.0, 1.0, tl.where(part < -1.0, -1.0, part))
        grad *= 1.0 - part * part
    return grad


@triton.jit(do_not_specialize=["scale", "inverse_softcap"])
def entries_kernel(
    top_ids, top_logits, stops, lengths, targets, vocabulary, maximum, head, offset, slope, scale,
    ids, rows, grads, most, inverse_softcap, SLOPE: tl.constexpr, PER_ROW: tl.constexpr,
    SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Entries (id, row, gradient) of the rows within the error bound, row after row.

    Args:
        top_ids: [T, most] int32, top entries.
        top_logits: [T, most], the same.
        stops: [T] int64, where each token's entries end.
        lengths: [T] int64, how many entries each token has.
        targets: [T] int64, relative to the shard's first id.
        vocabulary: V.
        maximum: [T] largest logit.
        head: [T] gradient at the target.
        offset: [T] of GradientRule.
        slope: [T] of GradientRule, if SLOPE.
        scale: log2(e) / temperature: a number or [T].
        ids: [N] int32, written.
        rows: [N] int32, written.
        grads: [N] float32, written.
        most: places a token has for top entries.
        inverse_softcap: 1 / softcap.
        SLOPE: whether the entropy has a gradient.
        PER_ROW: whether ``scale`` is [T].
        SOFTCAP: whether there is a softcap.
        BLOCK: elements read at a time.
    """
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + row)
    if length > 0:
        at = tl.load(stops + row) - length
        ids += at
        rows += at
        grads += at
        target = tl.load(targets + row)
        # A target out of range (unchecked) has no gradient and is not read out of bounds.
        ours = (target >= 0) & (target < vocabulary)
        tl.store(ids, tl.where(ours, target, 0).to(tl.int32))
        tl.store(rows, row.to(tl.int32))
        tl.store(grads, tl.where(ours, tl.load(head + row), 0.0))
        top = tl.load(maximum + row)
        constant = tl.load(offset + row)
        rising = 0.0
        if SLOPE:
            rising = tl.load(slope + row)
        by = scale_of(scale, row, PER_ROW)
        top_ids += row * most
        top_logits += row * most
        for start in range(0, length - 1, BLOCK):
            place = start + tl.arange(0, BLOCK)
            inside = place < length - 1
            group = place < (length + 14) // 16 * 16  # as in rule_kernel
            z = tl.load(top_logits + place, mask=group, other=0.0)
            token = tl.load(top_ids + place, mask=group, other=0)
            y = at_least((z - top) * by, LOWEST)
            grad = entry_gradient(z, y, constant, rising, inverse_softcap, SLOPE, SOFTCAP)
            tl.store(ids + 1 + place, token, mask=inside)
            tl.store(rows + 1 + place, tl.zeros_like(token) + row.to(tl.int32), mask=inside)
            tl.store(grads + 1 + place, grad, mask=inside)


@triton.jit
def _gathered_sum(
    matrix,
    index,
    grads,
    begin,
    end,
    column,
    inside,
    matrix_row,
    matrix_column,
    GEMM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum over entries begin..end-1 of gradient times a row of ``matrix``: some of its columns."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(begin, end, ROWS):
        place = start + tl.arange(0, ROWS)
        there = place < end
        at = tl.load(index + place, mask=there, other=0).to(tl.int64)
        grad = tl.load(grads + place, mask=there, other=0.0)
        x = tl.load(
            matrix + at[:, None] * matrix_row + column[None, :] * matrix_column,
            mask=there[:, None] & inside[None, :],
            other=0.0,
        )
        total += grad[:, None] * upcast(x, GEMM)
    return tl.sum(total, 0)


@triton.jit
def hidden_kernel(
    weight, ids, grads, stops, lengths, out, weight_row, weight_column, width, GEMM: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradient of ``hidden``: each row's entries gather rows of ``weight``; none: zero.

    Args:
        weight: [V, D].
        ids: [N] int32, ids of the entries.
        grads: [N] float32, gradients of the entries.
        stops: [T] int64, where each token's entries end.
        lengths: [T] int64, how many entries each token has.
        out: [T, D], written.
        weight_row: stride of ``weight`` in elements.
        weight_column: the same.
        width: D.
        GEMM: dtype that the product takes.
        ROWS: entries gathered at a time.
        COLUMNS: columns of a program.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    column = column.to(tl.int64)
    end = tl.load(stops + row)
    begin = end - tl.load(lengths + row)
    total = _gathered_sum(
        weight,
        ids,
        grads,
        begin,
        end,
        column,
        inside,
        weight_row,
        weight_column,
        GEMM,
        ROWS,
        COLUMNS,
    )
    tl.store(out + row * width + column, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def piece_kernel(
    hidden, ids, rows, grads, pieces, total, hidden_row, hidden_column, width, GEMM: tl.constexpr,
    PIECE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums of the whole pieces of the sorted entries that belong to one id.

    Args:
        hidden: [T, D].
        ids: [N] int32, sorted.
        rows: [N] int32, tokens of the entries.
        grads: [N] float32, gradients of the entries.
        pieces: [N // PIECE, D] float32, written.
        total: N.
        hidden_row: stride of ``hidden`` in elements.
        hidden_column: the same.
        width: D.
        GEMM: dtype that the product takes.
        PIECE: entries of a piece.
        ROWS: entries gathered at a time.
        COLUMNS: columns of a program.
    """
    piece = tl.program_id(0).to(tl.int64)
    begin = piece * PIECE
    if begin + PIECE <= total:
        if tl.load(ids + begin) == tl.load(ids + begin + PIECE - 1):
            column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
            inside = column < width
            column = column.to(tl.int64)
            value = _gathered_sum(
                hidden,
                rows,
                grads,
                begin,
                begin + PIECE,
                column,
                inside,
                hidden_row,
                hidden_column,
                GEMM,
                ROWS,
                COLUMNS,
            )
            tl.store(pieces + piece * width + column, value, mask=inside)


@triton.jit(do_not_specialize=["first"])
def weight_kernel(
    hidden, ids, rows, grads, offsets, pieces, base, out, first, hidden_row, hidden_column, width,
    GEMM: tl.constexpr, BASE: tl.constexpr, BY_ENTRY: tl.constexpr, PIECE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradient of ``weight`` from id ``first`` on, where ids have entries: their sum, and ``base``.

    The other ids are left as they are: most have no entries, and a memset is faster. One program an
    id; or one an entry, of which the first of each id works, where there are fewer entries.

    Args:
        hidden: [T, D].
        ids: [N] int32, sorted, if BY_ENTRY.
        rows: [N] int32, tokens of the entries.
        grads: [N] float32, gradients of the entries.
        offsets: [V + 1] int64, where each id's entries begin.
        pieces: [N // PIECE, D] float32, sums of whole pieces.
        base: [n, D] float32, added.
        out: [V, D], written.
        first: first id of the launch.
        hidden_row: stride of ``hidden`` in elements.
        hidden_column: the same.
        width: D.
        GEMM: dtype that the product takes.
        BASE: whether ``base`` is added.
        BY_ENTRY: whether there is a program for each entry of all ids; ``first`` is 0 then.
        PIECE: entries of a piece.
        ROWS: entries gathered at a time.
        COLUMNS: columns of a program.
    """
    place = tl.program_id(0).to(tl.int64)
    entry = place
    if BY_ENTRY:
        place = tl.load(ids + entry).to(tl.int64)
    begin = tl.load(offsets + first + place)
    end = tl.load(offsets + first + place + 1)
    if BY_ENTRY:
        end = tl.where(begin == entry, end, begin)
    if begin < end:
        # Whole pieces within [begin, end).
        first_piece = (begin + PIECE - 1) // PIECE
        last_piece = tl.maximum(end // PIECE, first_piece)
        none = first_piece == last_piece
        head_end = tl.where(none, end, first_piece * PIECE)
        tail_begin = tl.where(none, end, last_piece * PIECE)
        out += (first + place) * width
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = column < width
        column = column.to(tl.int64)
        total = _gathered_sum(
            hidden,
            rows,
            grads,
            begin,
            head_end,
            column,
            inside,
            hidden_row,
            hidden_column,
            GEMM,
            ROWS,
            COLUMNS,
        )
        for piece in range(first_piece, last_piece):
            total += tl.load(pieces + piece * width + column, mask=inside, other=0.0)
        total += _gathered_sum(
            hidden,
            rows,
            grads,
            tail_begin,
            end,
            column,
            inside,
            hidden_row,
            hidden_column,
            GEMM,
            ROWS,
            COLUMNS,
        )
        if BASE:
            total += tl.load(base + place * width + column, mask=inside, other=0.0)
        tl.store(out + column, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first"])
def bias_kernel(grads, offsets, base, out, first, BASE: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient of ``bias`` from ``first`` on, where ids have entries: their sum, and ``base``.

    Args:
        grads: [N] float32, gradients of the entries.
        offsets: [V + 1] int64, where each id's entries begin.
        base: [n] float32, added.
        out: [V], written.
        first: first id of the launch.
        BASE: whether ``base`` is added.
        BLOCK: elements read at a time.
    """
    place = tl.program_id(0).to(tl.int64)
    begin = tl.load(offsets + first + place)
    end = tl.load(offsets + first + place + 1)
    if begin < end:
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(begin, end, BLOCK):
            at = start + tl.arange(0, BLOCK)
            total += tl.load(grads + at, mask=at < end, other=0.0)
        value = tl.sum(total)
        if BASE:
            value += tl.load(base + place)
        tl.store(out + first + place, value.to(out.dtype.element_ty))
