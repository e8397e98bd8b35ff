"""Backward in Triton: which rows are taken from their lists, and the others recomputed.

The host reads two numbers, once: rows to recompute and entries to gather.
"""

from __future__ import annotations

import functools

import torch
import triton

from siri_kernels.linear_logprob.error_bound import Listed, certified_rows, left_out, report
from siri_kernels.linear_logprob.online_softmax import GradientRule, gradient_rule
from siri_kernels.linear_logprob.top_entries import Slots
from siri_kernels.linear_logprob.triton import kernels
from siri_kernels.linear_logprob.triton.forward import LOGITS, Products
from siri_kernels.linear_logprob.triton.kernel_math import LN_2
from siri_kernels.linear_logprob.triton.problem import Problem, row_part
from siri_kernels.linear_logprob.triton.sparse_backward import (
    ByID,
    Entries,
    listed_rows,
    target_entry,
)
from siri_kernels.linear_logprob.types import SoftmaxStats, select
from siri_kernels.linear_logprob.vocab_parallel import Shard

Grads = tuple["torch.Tensor | None", "torch.Tensor | None", "torch.Tensor | None"]


def read_counts(counts: torch.Tensor) -> list[int]:
    """The one place where the host waits for the GPU: how many rows to recompute, and how many
    entries to gather."""
    return counts.tolist()


def kernel_rule(
    stats: SoftmaxStats,
    grad_logprobs: torch.Tensor,
    grad_entropy: torch.Tensor | None,
    temperature: float | torch.Tensor,
) -> GradientRule:
    """The rule as the kernels take it: of contiguous tensors, and by exponents of two."""
    top, at_target, offset, slope = gradient_rule(stats, grad_logprobs, grad_entropy, temperature)
    slope = None if slope is None else (slope * LN_2).contiguous()
    return GradientRule(top.contiguous(), at_target.contiguous(), offset.contiguous(), slope)


def backward(
    problem: Problem,
    counted: torch.Tensor,
    stats: SoftmaxStats,
    lists: Slots | None,
    upstream: tuple[torch.Tensor | None, ...],
    tail: float,
    needs: tuple[bool, bool, bool],
    shard: Shard | None = None,
) -> Grads:
    """Gradients of ``hidden``, ``weight`` and ``bias``; None where not needed."""
    active = torch.zeros_like(counted)
    for grad in upstream:
        if grad is not None:
            active |= grad != 0
    active &= counted
    grad_logprobs, grad_entropy = upstream
    if grad_logprobs is None:
        grad_logprobs = torch.zeros_like(stats.logprobs)
    rule = kernel_rule(stats, grad_logprobs, grad_entropy, problem.rule.temperature)
    rows, device = active.sum(), problem.hidden.device
    sparse = None
    if lists is None:
        dense, counts = active, read_counts(torch.stack([rows, torch.zeros_like(rows)]))
        report(rows, rows, 0, 0.0, device)
    else:
        head = target_entry(problem, stats, rule)
        listed = listed_rows(problem, lists, stats, rule, head, active)
        if shard is not None:
            listed = Listed(*shard.total(torch.stack(listed)))
        mass, cost = left_out(stats, listed, grad_logprobs, grad_entropy, problem.rule.temperature)
        certified = certified_rows(
            cost.masked_fill(~active, 0), listed.norm, rows.clamp(min=1), tail
        )
        certified &= active
        dense = active & ~certified
        lengths = (lists.found.long().clamp(max=lists.ids.shape[1]) + 1) * certified
        stops, entries = lengths.cumsum(0), lengths.sum()
        tail_mass = torch.where(certified, mass, 0).amax() if len(mass) else mass.sum()
        report(rows, dense.sum(), entries, tail_mass, device)
        counts = read_counts(torch.stack([dense.sum(), entries]))
        sparse = Entries.of(problem, lists, stats, rule, head, stops, lengths, counts[1])
    d_hidden = d_weight = d_bias = None
    hidden, weight, bias = problem.hidden, problem.weight, problem.bias
    if needs[0]:
        dtype = hidden.dtype if shard is None else torch.float32  # a part of a sum
        if sparse is not None and counts[1]:
            d_hidden = sparse.of_hidden(problem, dtype)
        else:
            d_hidden = torch.zeros(hidden.shape, dtype=dtype, device=device)
    if needs[1]:
        d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    if needs[2] and bias is not None:
        d_bias = torch.empty_like(bias, memory_format=torch.contiguous_format)
    by_id = None
    if sparse is not None and counts[1] and (needs[1] or needs[2]):
        by_id = ByID(problem, sparse, needs[1])
    if counts[0]:
        index = torch.argsort((~dense).to(torch.int8), stable=True)[: counts[0]]
        part = GradientRule(*select(index, *rule))
        exact = _recomputed(problem.rows(index), part, needs[0], d_weight, d_bias, by_id)
        if d_hidden is not None and exact is not None:
            d_hidden.index_copy_(0, index, exact.to(d_hidden.dtype))
    else:
        for grad in (d_weight, d_bias):
            if grad is not None:
                grad.zero_()
        if by_id is not None:
            by_id.write(d_weight, d_bias, 0, len(weight))
    if d_hidden is not None and shard is not None:
        d_hidden = shard.total(d_hidden).to(hidden.dtype)
    return d_hidden, d_weight, d_bias


def _recomputed(
    problem: Problem,
    rule: GradientRule,
    need_hidden: bool,
    d_weight: torch.Tensor | None,
    d_bias: torch.Tensor | None,
    by_id: ByID | None,
) -> torch.Tensor | None:
    """Exact gradients of these rows: that of ``hidden`` returned, the others, and what ``by_id``
    adds to them, written."""
    device, (total, width) = problem.hidden.device, problem.hidden.shape
    # A tile of the gradient of weight is held in fp32: not more of it than of the logits.
    products = Products(problem, most_ids=LOGITS // width)
    # cuBLAS's 16-bit products take 16-bit factors; fp16's range needs help.
    out_dtype = problem.gemm_dtype if products.mixed else torch.float32
    factor = _factor(rule) if out_dtype == torch.float16 else None
    d_hidden = None
    if need_hidden:
        d_hidden = torch.zeros(total, width, dtype=torch.float32, device=device)
    columns = (
        problem.scale(),
        problem.targets,
        rule.max,
        rule.at_target,
        rule.offset,
        rule.offset if rule.slope is None else rule.slope,
    )
    blocks = [[row_part(column, rows) for column in columns] for rows in products.rows]
    ids = min(kernels.IDS, triton.next_power_of_2(products.ids))
    constants = {
        "SOME": False,
        "SLOPE": rule.slope is not None,
        "FACTOR": factor is not None,
        "BLOCK": ids,
        "num_warps": kernels.WARPS,
        **problem.options(),
    }
    buffer = torch.empty(products.buffers[0].shape, dtype=out_dtype, device=device)
    d_tiles = torch.empty(products.ids if d_weight is not None else 0, width, device=device,
                          dtype=torch.float32)  # fmt: skip
    for start in products.starts():
        tile = products.tile(start)
        n = len(tile)
        d_tile, d_bias_tile = d_tiles[:n], None
        for block, (rows, arguments) in enumerate(zip(products.rows, blocks, strict=True)):
            raw = products.raw(block, tile)
            dz = buffer[: raw.numel()].view(raw.shape)
            kernels.gradient_kernel[(len(raw), triton.cdiv(n, ids))](
                raw,
                dz,
                problem.some_bias(raw),
                *arguments,
                rule.offset if factor is None else factor,
                problem.targets,  # not read: no row is left out
                start,
                n,
                n,
                n,
                *problem.softcap(),
                WHOLE=n % ids == 0,
                **constants,
            )
            if d_hidden is not None:
                add_product(d_hidden[rows], dz, tile)
            if d_weight is not None:
                add_product(d_tile, dz.t(), products.hidden[block], first=block == 0)
            if d_bias is not None:
                part = dz.sum(0, dtype=torch.float32)
                d_bias_tile = part if d_bias_tile is None else d_bias_tile.add_(part)
        if factor is not None:
            d_tile.div_(factor)
            if d_bias_tile is not None:
                d_bias_tile.div_(factor)
        if d_weight is not None:
            d_weight[start : start + n] = d_tile
        if d_bias is not None and d_bias_tile is not None:
            d_bias[start : start + n] = d_bias_tile
        if by_id is not None:
            by_id.write(d_weight, d_bias, start, start + n, d_tile, d_bias_tile)
    if d_hidden is not None and factor is not None:
        d_hidden.div_(factor)
    return d_hidden


@functools.cache
def adds_in_place(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of 16-bit factors can add to an fp32 tensor here, and does: tried once for
    each device and dtype, whatever the version of PyTorch promises."""
    a = torch.ones(16, 16, dtype=dtype, device=device)
    out = torch.ones(16, 16, dtype=torch.float32, device=device)
    try:
        torch.addmm(out, a, a, out_dtype=out.dtype, out=out)
    except (RuntimeError, TypeError):
        return False
    return bool((out == 17).all())


def add_product(
    out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, first: bool = False
) -> torch.Tensor:
    """``out += a @ b`` in fp32; ``first``: ``out = a @ b``.

    The product reads and writes ``out`` in its own last step where PyTorch has such a form; else
    the sum is a pass of its own.
    """
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out) if first else out.addmm_(a, b)
    if first:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    if adds_in_place(out.device, a.dtype):
        return torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    return out.add_(torch.mm(a, b, out_dtype=out.dtype))


def _factor(rule: GradientRule) -> torch.Tensor:
    """[1] power of two that brings the largest logit gradient to about 2**10, finite rows only."""
    size = rule.at_target.abs() + rule.offset.abs()
    if rule.slope is not None:
        size = size + rule.slope.abs()
    largest = torch.where(size.isfinite(), size, 0).max().clamp(1e-30, 1e30)
    return torch.exp2(10 - largest.log2().ceil())[None]
