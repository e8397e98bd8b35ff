"""Backward in Triton: which tokens come from their top entries, and which are recomputed.

The host reads two numbers, once: tokens to recompute and entries to gather.
"""

from __future__ import annotations

import torch

from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.error_bound import EntrySums, left_out, report, within_bound
from siri_kernels.linear_logprob.online_softmax import GradientRule
from siri_kernels.linear_logprob.tokens import with_gradient
from siri_kernels.linear_logprob.top_entries import TopEntries
from siri_kernels.linear_logprob.triton import arguments
from siri_kernels.linear_logprob.triton.dense_backward import kernel_rule, recompute
from siri_kernels.linear_logprob.triton.sparse_backward import (
    Entries,
    WeightGradient,
    entry_sums,
    target_gradient,
)
from siri_kernels.linear_logprob.types import Gradients, Needed, SoftmaxStats, Upstream


def read_counts(counts: torch.Tensor) -> list[int]:
    """How many tokens to recompute and entries to gather: the one place that waits for the GPU."""
    return counts.tolist()


def backward(
    call: HeadCall,
    stats: SoftmaxStats,
    top: TopEntries | None,
    upstream: Upstream,
    needed: Needed,
) -> Gradients:
    """Gradients of ``hidden``, ``weight`` and ``bias``.

    Args:
        call: all its tokens.
        stats: what forward returned.
        top: the same.
        upstream: gradients [T] of the log-probs and of the entropy; None: 0.
        needed: which gradients.
    """
    active, call = with_gradient(call.unmasked(), *upstream), arguments.prepared(call)
    grad_logprobs, grad_entropy = upstream
    if grad_logprobs is None:
        grad_logprobs = torch.zeros_like(stats.logprobs)
    rule = kernel_rule(stats, grad_logprobs, grad_entropy, call.rule.temperature)
    sparse, dense = _split(call, stats, top, (grad_logprobs, grad_entropy), rule, active)
    hidden, weight, bias = call.hidden, call.weight, call.bias
    d_hidden = d_weight = d_bias = by_id = None
    if needed.hidden:
        if sparse is not None:
            d_hidden = sparse.hidden_gradient(call)
        else:
            d_hidden = torch.zeros(hidden.shape, dtype=call.hidden_grad_dtype, device=hidden.device)
    if needed.weight:
        d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    if needed.bias and bias is not None:
        d_bias = torch.empty_like(bias, memory_format=torch.contiguous_format)
    if sparse is not None and (needed.weight or needed.bias):
        by_id = WeightGradient(call, sparse, needed.weight)
    if dense is not None:
        part, part_rule = call.select(dense), rule.select(dense)
        exact = recompute(part, part_rule, needed.hidden, d_weight, d_bias, by_id)
        if d_hidden is not None and exact is not None:
            d_hidden.index_copy_(0, dense, exact.to(d_hidden.dtype))
    else:
        for grad in (d_weight, d_bias):
            if grad is not None:
                grad.zero_()
        if by_id is not None:
            by_id.write(d_weight, d_bias, 0, len(weight))
    if d_hidden is not None and call.shard is not None:
        d_hidden = call.shard.total(d_hidden).to(hidden.dtype)
    return Gradients(d_hidden, d_weight, d_bias)


def _split(
    call: HeadCall,
    stats: SoftmaxStats,
    top: TopEntries | None,
    upstream: tuple[torch.Tensor, torch.Tensor | None],
    rule: GradientRule,
    active: torch.Tensor,
) -> tuple[Entries | None, torch.Tensor | None]:
    """Entries of the tokens within the error bound, and the indices of the others that are active.

    Each is None if there are none.
    """
    tokens, device = active.sum(), call.hidden.device
    sparse = None
    if top is None:
        dense, counts = active, read_counts(torch.stack([tokens, torch.zeros_like(tokens)]))
        report(tokens, tokens, 0, 0.0, device)
    else:
        head = target_gradient(call, stats, rule)
        sums = entry_sums(call, top, stats, rule, head, active)
        if call.shard is not None:
            sums = EntrySums(*call.shard.total(torch.stack(sums)))
        mass, cost = left_out(stats, sums, *upstream, call.rule.temperature)
        cost.masked_fill_(~active, 0)
        within = within_bound(cost, sums.norm, tokens.clamp(min=1), call.tail)
        within &= active
        dense = active & ~within
        lengths = (top.found.long().clamp(max=top.ids.shape[1]) + 1) * within
        stops, entries = lengths.cumsum(0), lengths.sum()
        tail_mass = torch.where(within, mass, 0).amax() if len(mass) else mass.sum()
        report(tokens, dense.sum(), entries, tail_mass, device)
        counts = read_counts(torch.stack([dense.sum(), entries]))
        if counts[1]:
            sparse = Entries.of(call, top, stats, rule, head, stops, lengths, counts[1])
    if not counts[0]:
        return sparse, None
    return sparse, torch.argsort((~dense).to(torch.int8), stable=True)[: counts[0]]
