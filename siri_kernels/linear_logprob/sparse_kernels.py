"""Triton kernels of backward from the lists: what a certified row gives to each gradient.

Every sum runs over one row's entries, or one token id's, in a fixed order, in fp32, without
atomics. Entries are stored row after row, the target's first. For the gradient of ``weight`` they
are sorted by id; ids with many entries are helped by ``piece_kernel``, which adds up the whole
pieces of PIECE entries that belong to one id.
"""

from __future__ import annotations

import triton
import triton.language as tl

from siri_kernels.linear_logprob.kernels import LOG_ZERO, row_temperature, widened

PIECE = 256  # entries
ROWS = 16  # of a matrix, gathered at a time
COLUMNS = 256  # of a matrix, a program
SLOTS = 512  # of a list, read at a time


@triton.jit
def entry_gradient(z, centred, offset, slope, temperature, softcap, SLOPE, SOFTCAP):
    by = offset
    if SLOPE:
        by += centred * slope
    grad = tl.exp(centred) * by
    if SOFTCAP:
        part = z * temperature / softcap
        part = tl.where(part > 1.0, 1.0, tl.where(part < -1.0, -1.0, part))
        grad *= 1.0 - part * part
    return grad


@triton.jit(do_not_specialize=["temperature", "softcap"])
def certify_kernel(
    slot_logits,
    found,
    counts,
    maximum,
    log_sum,
    head,
    offset,
    slope,
    temperature,
    kept,
    kept_entropy,
    norm,
    slots,
    softcap,
    SLOPE: tl.constexpr,
    PER_ROW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of each row's list: sum of p, of -p log p, and of the gradient's sizes, the target's too."""
    row = tl.program_id(0).to(tl.int64)
    mass = tl.zeros([BLOCK], tl.float32)
    moved = tl.zeros([BLOCK], tl.float32)
    size = tl.zeros([BLOCK], tl.float32)
    first = 0.0
    if tl.load(counts + row) != 0:
        first = tl.abs(tl.load(head + row))
        length = tl.minimum(tl.load(found + row), slots)
        top = tl.load(maximum + row)
        log_z = tl.load(log_sum + row)
        constant = tl.load(offset + row)
        rising = 0.0
        if SLOPE:
            rising = tl.load(slope + row)
        t = row_temperature(temperature, row, PER_ROW)
        for start in range(0, length, BLOCK):
            place = start + tl.arange(0, BLOCK)
            inside = place < length
            z = tl.load(slot_logits + row * slots + place, mask=inside, other=0.0)
            centred = z - top
            centred = tl.where(centred < LOG_ZERO, LOG_ZERO, centred)
            grad = entry_gradient(z, centred, constant, rising, t, softcap, SLOPE, SOFTCAP)
            log_p = centred - log_z
            p = tl.exp(log_p)
            mass += tl.where(inside, p, 0.0)
            moved += tl.where(inside, -p * log_p, 0.0)
            size += tl.where(inside, tl.abs(grad), 0.0)
    tl.store(kept + row, tl.sum(mass))
    tl.store(kept_entropy + row, tl.sum(moved))
    tl.store(norm + row, tl.sum(size) + first)


@triton.jit(do_not_specialize=["temperature", "softcap"])
def entries_kernel(
    slot_ids,
    slot_logits,
    stops,
    lengths,
    targets,
    vocabulary,
    maximum,
    head,
    offset,
    slope,
    temperature,
    ids,
    rows,
    grads,
    slots,
    softcap,
    SLOPE: tl.constexpr,
    PER_ROW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Entries (id, row, gradient) of the certified rows, one row after the other."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + row)
    if length > 0:
        at = tl.load(stops + row) - length
        target = tl.load(targets + row)
        # One out of range (unchecked) is nobody's: no gradient, and no read out of bounds.
        ours = (target >= 0) & (target < vocabulary)
        tl.store(ids + at, tl.where(ours, target, 0).to(tl.int32))
        tl.store(rows + at, row.to(tl.int32))
        tl.store(grads + at, tl.where(ours, tl.load(head + row), 0.0))
        top = tl.load(maximum + row)
        constant = tl.load(offset + row)
        rising = 0.0
        if SLOPE:
            rising = tl.load(slope + row)
        t = row_temperature(temperature, row, PER_ROW)
        for start in range(0, length - 1, BLOCK):
            place = start + tl.arange(0, BLOCK).to(tl.int64)
            inside = place < length - 1
            z = tl.load(slot_logits + row * slots + place, mask=inside, other=0.0)
            token = tl.load(slot_ids + row * slots + place, mask=inside, other=0)
            centred = z - top
            centred = tl.where(centred < LOG_ZERO, LOG_ZERO, centred)
            grad = entry_gradient(z, centred, constant, rising, t, softcap, SLOPE, SOFTCAP)
            tl.store(ids + at + 1 + place, token, mask=inside)
            tl.store(rows + at + 1 + place, tl.zeros_like(token) + row.to(tl.int32), mask=inside)
            tl.store(grads + at + 1 + place, grad, mask=inside)


@triton.jit
def gathered_sum(
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
        total += grad[:, None] * widened(x, GEMM)
    return tl.sum(total, 0)


@triton.jit
def hidden_kernel(
    weight,
    ids,
    grads,
    stops,
    lengths,
    out,
    weight_row,
    weight_column,
    width,
    GEMM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradient of ``hidden``: each row's entries gather rows of ``weight``; none: zero."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS).to(tl.int64)
    inside = column < width
    end = tl.load(stops + row)
    begin = end - tl.load(lengths + row)
    total = gathered_sum(
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
    hidden,
    ids,
    rows,
    grads,
    pieces,
    total,
    hidden_row,
    hidden_column,
    width,
    GEMM: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums of the whole pieces of the sorted entries that belong to one id."""
    piece = tl.program_id(0).to(tl.int64)
    begin = piece * PIECE
    if begin + PIECE <= total:
        if tl.load(ids + begin) == tl.load(ids + begin + PIECE - 1):
            column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS).to(tl.int64)
            inside = column < width
            value = gathered_sum(
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
    hidden,
    rows,
    grads,
    offsets,
    pieces,
    base,
    out,
    first,
    hidden_row,
    hidden_column,
    width,
    GEMM: tl.constexpr,
    BASE: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradient of the rows ``first``.. of ``weight``: each id's entries, added to ``base``."""
    place = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS).to(tl.int64)
    inside = column < width
    begin = tl.load(offsets + first + place)
    end = tl.load(offsets + first + place + 1)
    # Whole pieces within [begin, end).
    first_piece = (begin + PIECE - 1) // PIECE
    last_piece = tl.maximum(end // PIECE, first_piece)
    none = first_piece == last_piece
    head_end = tl.where(none, end, first_piece * PIECE)
    tail_begin = tl.where(none, end, last_piece * PIECE)
    total = gathered_sum(
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
    total += gathered_sum(
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
    at = (first + place) * width + column
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def bias_kernel(grads, offsets, base, out, BASE: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient of ``bias``: the sum of each id's entries, and ``base``."""
    token = tl.program_id(0).to(tl.int64)
    begin = tl.load(offsets + token)
    end = tl.load(offsets + token + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(begin, end, BLOCK):
        place = start + tl.arange(0, BLOCK)
        total += tl.load(grads + place, mask=place < end, other=0.0)
    value = tl.sum(total)
    if BASE:
        value += tl.load(base + token)
    tl.store(out + token, value.to(out.dtype.element_ty))


def aot_configs():
    """What :mod:`siri_kernels.aot` compiles."""
    tensors = "slot_logits maximum log_sum head offset slope kept kept_entropy norm"
    tensors += " grads pieces base"
    sizes = "slots vocabulary width first total"
    sizes += " weight_row weight_column hidden_row hidden_column"
    types = dict.fromkeys(tensors.split(), "*fp32") | dict.fromkeys(sizes.split(), "i32")
    types |= dict.fromkeys(("slot_ids", "found", "ids", "rows"), "*i32")
    types |= dict.fromkeys(("stops", "lengths", "targets", "offsets"), "*i64")
    types |= {"counts": "*i8", "softcap": "fp32"}

    def config(kernel, constants, **more):
        mine = {n: t for n, t in (types | more).items() if n in kernel.arg_names}
        return kernel, mine, constants, {"num_warps": 4}

    for everything in (False, True):
        temperature = "*fp32" if everything else "fp32"
        constants = dict.fromkeys(("SLOPE", "PER_ROW", "SOFTCAP"), everything) | {"BLOCK": SLOTS}
        for kernel in (certify_kernel, entries_kernel):
            yield config(kernel, constants, temperature=temperature)
    shape = {"ROWS": ROWS, "COLUMNS": COLUMNS}
    for name, gemm in (("*bf16", tl.bfloat16), ("*fp16", tl.float16), ("*fp32", tl.float32)):
        matrix = dict.fromkeys(("hidden", "weight", "out"), name)
        yield config(hidden_kernel, shape | {"GEMM": gemm}, **matrix)
        yield config(piece_kernel, shape | {"GEMM": gemm, "PIECE": PIECE}, **matrix)
        for base in (False, True):
            constants = shape | {"GEMM": gemm, "PIECE": PIECE, "BASE": base}
            yield config(weight_kernel, constants, **matrix)
            yield config(bias_kernel, {"BASE": base, "BLOCK": PIECE}, **matrix)
