"""Triton kernels over a tile of logits [rows, ids]: one program a row, whatever surrounds it.

The formulas are those of :mod:`.softmax_fold` and :mod:`.slots`, which say why.

Maxima in Triton drop NaN, so nothing here is clamped by one: a NaN reaches its row's sum.
"""

from __future__ import annotations

import triton
import triton.language as tl

IDS = 4096  # of a tile
WARPS = 8

LOG_ZERO = tl.constexpr(-800.0)
LOWEST = tl.constexpr(-87.0)
# Largest finite fp32.
LARGE = tl.constexpr(3.4028234663852886e38)


@triton.jit
def tanh(x):
    size = tl.abs(x)
    square = x * x
    # Padé's, right to 1e-10 below 0.5, where the exponentials would cancel.
    over = x * (945.0 + square * (105.0 + square))
    small = over / (945.0 + square * (420.0 + 15.0 * square))
    e = tl.exp(-2.0 * size)
    large = (1.0 - e) / (1.0 + e)
    return tl.where(size < 0.5, small, tl.where(x < 0, -large, large))


@triton.jit
def row_temperature(temperature, row, PER_ROW: tl.constexpr):
    if PER_ROW:
        return tl.load(temperature + row).to(tl.float32)
    else:
        return temperature


@triton.jit
def capped(raw, softcap, SOFTCAP: tl.constexpr):
    return softcap * tanh(raw / softcap) if SOFTCAP else raw


@triton.jit
def widened(x, GEMM: tl.constexpr):
    """``x`` as the GEMM takes it, in fp32."""
    return x.to(GEMM).to(tl.float32)


@triton.jit(do_not_specialize=["temperature", "softcap"])
def target_kernel(
    hidden,
    weight,
    targets,
    bias,
    temperature,
    out,
    hidden_row,
    hidden_column,
    weight_row,
    weight_column,
    width,
    vocabulary,
    softcap,
    GEMM: tl.constexpr,
    BIAS: tl.constexpr,
    PER_ROW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each row's target logit, but for the order of the GEMM's sums."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    # A target out of range reads something, but nothing out of bounds.
    target = tl.where((target >= 0) & (target < vocabulary), target, 0)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK).to(tl.int64)
        inside = column < width
        x = tl.load(hidden + row * hidden_row + column * hidden_column, mask=inside, other=0.0)
        w = tl.load(weight + target * weight_row + column * weight_column, mask=inside, other=0.0)
        total += widened(x, GEMM) * widened(w, GEMM)
    raw = tl.sum(total)
    if BIAS:
        raw += tl.load(bias + target).to(tl.float32)
    z = capped(raw, softcap, SOFTCAP) / row_temperature(temperature, row, PER_ROW)
    tl.store(out + row, z)


@triton.jit(do_not_specialize=["temperature", "softcap", "start", "width"])
def fold_kernel(
    logits,
    bias,
    temperature,
    targets,
    estimate,
    target_logit,
    maximum,
    total,
    dev,
    slot_ids,
    slot_logits,
    found,
    start,
    width,
    stride,
    slots,
    softcap,
    log_eps,
    FIRST: tl.constexpr,
    BIAS: tl.constexpr,
    PER_ROW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    LISTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Folds a tile of raw logits into each row's running softmax, and lists what can matter."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    z = tl.load(logits + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        z += tl.load(bias + start + column, mask=inside, other=0.0).to(tl.float32)
    z = capped(z, softcap, SOFTCAP) / row_temperature(temperature, row, PER_ROW)

    target = tl.load(targets + row) - start
    at_target = inside & (column == target)
    if (target >= 0) & (target < width):
        tl.store(target_logit + row, tl.sum(tl.where(at_target, z, 0.0)))
    others = inside & (column != target)
    top = tl.max(tl.where(others, z, float("-inf")))
    new_max = top
    if not FIRST:
        old_max = tl.load(maximum + row)
        new_max = tl.maximum(old_max, top)
    # Nothing seen yet but -inf: any finite shift will do.
    shift = tl.maximum(new_max, -LARGE)
    z -= shift
    z = tl.where(z < LOWEST, LOWEST, z)
    exp = tl.where(others, tl.exp(z), 0.0)
    new_total = tl.sum(exp)
    new_dev = tl.sum(tl.where(others, z * exp, 0.0))
    if not FIRST:
        step = old_max - shift
        step = tl.where(step < LOG_ZERO, LOG_ZERO, step)
        scale = tl.exp(step)
        old_total = tl.load(total + row)
        new_dev += (tl.load(dev + row) + step * old_total) * scale
        new_total += old_total * scale
    tl.store(maximum + row, new_max)
    tl.store(total + row, new_total)
    tl.store(dev + row, new_dev)

    if LISTS:
        # log(sum of the others + exp(target)), from the running sum and the target's logit.
        a = tl.log(new_total)
        b = tl.load(estimate + row) - shift
        high = tl.maximum(a, b)
        low = tl.minimum(a, b)
        bound = high + tl.log(1.0 + tl.exp(tl.maximum(low - high, LOWEST))) + log_eps
        before = 0
        if not FIRST:
            before = tl.load(found + row)
        keep = others & (z >= bound) & (before <= slots)
        here = tl.sum(keep.to(tl.int32))
        if here > 0:
            place = before + tl.cumsum(keep.to(tl.int32)) - 1
            keep = keep & (place < slots)
            tl.store(slot_ids + row * slots + place, start + column, mask=keep)
            tl.store(slot_logits + row * slots + place, z + shift, mask=keep)
        if FIRST:
            tl.store(found + row, here)
        else:
            tl.store(found + row, before + here)


@triton.jit(do_not_specialize=["temperature", "softcap", "start", "width"])
def gradient_kernel(
    logits,
    out,
    bias,
    temperature,
    targets,
    maximum,
    head,
    offset,
    slope,
    scale,
    active,
    start,
    width,
    stride,
    out_stride,
    softcap,
    SOME: tl.constexpr,
    BIAS: tl.constexpr,
    PER_ROW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SLOPE: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A tile of raw logits into their gradient, in the dtype of ``out``, by GradientRule.

    ``SOME``: rows that are not ``active`` get zeros, whatever their logits are.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    raw = tl.load(logits + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        raw += tl.load(bias + start + column, mask=inside, other=0.0).to(tl.float32)
    cap = capped(raw, softcap, SOFTCAP)
    z = cap / row_temperature(temperature, row, PER_ROW) - tl.load(maximum + row)
    sure = z < LOWEST
    z = tl.where(sure, LOWEST, z)
    exp = tl.where(sure, 0.0, tl.exp(z))
    by = tl.load(offset + row)
    if SLOPE:
        by += z * tl.load(slope + row)
    grad = exp * by
    grad = tl.where(column == tl.load(targets + row) - start, tl.load(head + row), grad)
    if SOFTCAP:
        part = cap / softcap
        grad *= 1.0 - part * part
    if SCALE:
        grad *= tl.load(scale)
    if SOME:
        grad = tl.where(tl.load(active + row) != 0, grad, 0.0)
    tl.store(out + row * out_stride + column, grad.to(out.dtype.element_ty), mask=inside)


def aot_configs():
    """What :mod:`siri_kernels.aot` compiles."""
    tensors = "estimate target_logit maximum total dev slot_logits head offset slope scale"
    sizes = "start width stride out_stride slots vocabulary"
    sizes += " hidden_row hidden_column weight_row weight_column"
    types = dict.fromkeys(tensors.split(), "*fp32") | dict.fromkeys(sizes.split(), "i32")
    types |= {"targets": "*i64", "slot_ids": "*i32", "found": "*i32", "active": "*i8"}
    types |= {"softcap": "fp32", "log_eps": "fp32"}

    def config(kernel, temperature, bias, out, constants, logits="*fp32"):
        mine = types | {"temperature": temperature, "bias": bias, "out": out, "logits": logits}
        mine |= {"hidden": bias, "weight": bias}
        mine = {n: t for n, t in mine.items() if n in kernel.arg_names}
        return kernel, mine, constants, {"num_warps": WARPS}

    for everything in (False, True):
        temperature = "*fp32" if everything else "fp32"
        options = dict.fromkeys(("BIAS", "PER_ROW", "SOFTCAP"), everything)
        for bias, gemm in (("*bf16", tl.bfloat16), ("*fp16", tl.float16), ("*fp32", tl.float32)):
            constants = options | {"GEMM": gemm, "BLOCK": 1024}
            yield config(target_kernel, temperature, bias, "*fp32", constants)
            constants = options | {"SLOPE": everything, "SCALE": bias == "*fp16", "BLOCK": 1024}
            constants["SOME"] = False
            yield config(gradient_kernel, temperature, bias, bias, constants)
            # selective_logprob: on logits that exist.
            constants |= dict.fromkeys(("BIAS", "SOFTCAP", "SCALE"), False) | {"SOME": True}
            yield config(gradient_kernel, temperature, bias, bias, constants, bias)
            constants = options | dict.fromkeys(("BIAS", "SOFTCAP", "LISTS"), False)
            for first in (False, True):
                constants = constants | {"FIRST": first, "BLOCK": IDS}
                yield config(fold_kernel, temperature, bias, bias, constants, bias)
        for first in (False, True):
            for lists in (False, True):
                constants = options | {"FIRST": first, "LISTS": lists, "BLOCK": IDS}
                yield config(fold_kernel, temperature, "*bf16", "*fp32", constants)
