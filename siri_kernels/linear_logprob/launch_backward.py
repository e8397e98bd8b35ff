"""Backward in Triton: which rows are taken from their lists, and the others recomputed.

The host reads two numbers, once: rows to recompute and entries to gather.
"""

from __future__ import annotations

import torch
import triton

from siri_kernels.linear_logprob import kernels
from siri_kernels.linear_logprob.certificate import Listed, certified_rows, left_out, report
from siri_kernels.linear_logprob.launch import Problem
from siri_kernels.linear_logprob.launch_sparse import ByID, Entries, listed_rows, target_entry
from siri_kernels.linear_logprob.shard import Shard
from siri_kernels.linear_logprob.slots import Slots
from siri_kernels.linear_logprob.softmax_fold import GradientRule, gradient_rule
from siri_kernels.linear_logprob.types import SoftmaxStats, select

GRADIENT_BLOCK = 1024
Grads = tuple["torch.Tensor | None", "torch.Tensor | None", "torch.Tensor | None"]


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
    grad_logprobs = grad_logprobs.contiguous()
    rule = gradient_rule(stats, grad_logprobs, grad_entropy, problem.rule.temperature)
    rows, device = active.sum(), problem.hidden.device
    sparse = None
    if lists is None:
        dense, counts = active, [int(rows), 0]
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
        counts = torch.stack([dense.sum(), entries]).tolist()
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
    elif by_id is not None:
        by_id.write(d_weight, d_bias, 0, len(weight))
    else:
        for grad in (d_weight, d_bias):
            if grad is not None:
                grad.zero_()
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
    tiles = problem.tiles()
    device, (total, width) = problem.hidden.device, problem.hidden.shape
    # cuBLAS's 16-bit products take 16-bit factors; fp16's range needs help.
    out_dtype = problem.gemm_dtype if tiles.mixed else torch.float32
    scale = _scale(rule) if out_dtype == torch.float16 else None
    targets = problem.targets.contiguous()
    slope = rule.offset if rule.slope is None else rule.slope
    d_hidden = None
    if need_hidden:
        d_hidden = torch.zeros(total, width, dtype=torch.float32, device=device)
    buffer = torch.empty(tiles.buffers[0].shape, dtype=out_dtype, device=device)
    for start in tiles.starts():
        tile, _ = tiles.weight_tile(start)
        n = len(tile)
        d_tile = torch.zeros(n, width, dtype=torch.float32, device=device)
        d_bias_tile = torch.zeros(n, dtype=torch.float32, device=device)
        for block in range(len(tiles.hidden)):
            rows = slice(block * tiles.rows, block * tiles.rows + len(tiles.hidden[block]))
            raw, x = tiles.raw(block, tile, None)
            dz = buffer[: raw.numel()].view(raw.shape)
            kernels.gradient_kernel[(len(raw), triton.cdiv(n, GRADIENT_BLOCK))](
                raw,
                dz,
                problem.some_bias(raw),
                problem.temperature(rows),
                targets[rows],
                rule.max[rows],
                rule.at_target[rows],
                rule.offset[rows],
                slope[rows],
                rule.offset if scale is None else scale,
                targets,  # no row is left out
                start,
                n,
                raw.stride(0),
                dz.stride(0),
                problem.softcap(),
                SOME=False,
                SLOPE=rule.slope is not None,
                SCALE=scale is not None,
                BLOCK=GRADIENT_BLOCK,
                num_warps=kernels.WARPS,
                **problem.logit_options(),
            )
            if d_hidden is not None:
                _add_product(d_hidden[rows], dz, tile)
            if d_weight is not None:
                _add_product(d_tile, dz.t(), x)
            if d_bias is not None:
                d_bias_tile += dz.sum(0, dtype=torch.float32)
        if scale is not None:
            d_tile /= scale
            d_bias_tile /= scale
        if by_id is not None:
            by_id.write(d_weight, d_bias, start, start + n, d_tile, d_bias_tile)
        else:
            if d_weight is not None:
                d_weight[start : start + n] = d_tile
            if d_bias is not None:
                d_bias[start : start + n] = d_bias_tile
    if d_hidden is None:
        return None
    if scale is not None:
        d_hidden /= scale
    return d_hidden


def _add_product(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """``out += a @ b`` in fp32."""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        out.add_(torch.mm(a, b, out_dtype=out.dtype))


def _scale(rule: GradientRule) -> torch.Tensor:
    """[1] power of two that brings the largest logit gradient to about 2**10, finite rows only."""
    size = rule.at_target.abs() + rule.offset.abs()
    if rule.slope is not None:
        size = size + rule.slope.abs()
    largest = torch.where(size.isfinite(), size, 0).max().clamp(1e-30, 1e30)
    return torch.exp2(10 - largest.log2().ceil())[None]
