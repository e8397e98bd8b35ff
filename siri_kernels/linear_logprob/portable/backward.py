"""Backward in PyTorch: which tokens come from their top entries, and which are recomputed."""

from __future__ import annotations

import torch

from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.error_bound import EntrySums, left_out, report, within_bound
from siri_kernels.linear_logprob.online_softmax import GradientRule, gradient_rule
from siri_kernels.linear_logprob.portable import ordered_backward, sparse_backward
from siri_kernels.linear_logprob.portable.dense_backward import recompute
from siri_kernels.linear_logprob.tokens import tokens_with_gradient
from siri_kernels.linear_logprob.top_entries import TopEntries
from siri_kernels.linear_logprob.types import Gradients, Needed, SoftmaxStats, Upstream, select


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
    unmasked = call.unmasked()
    index = tokens_with_gradient(unmasked, *upstream)
    if top is not None:
        # Only unmasked tokens have top entries. (Tokens with a gradient are unmasked.)
        place = unmasked.cumsum(0) - 1
        top = top.select(None if index is None else place[index])
    total, call = len(call.hidden), call.local().select(index)
    stats = SoftmaxStats(*select(index, *stats))
    grad_logprobs, grad_entropy = select(index, *upstream)
    if grad_logprobs is None:
        grad_logprobs = torch.zeros_like(stats.logprobs)
    upstream = grad_logprobs, grad_entropy
    rule = gradient_rule(stats, grad_logprobs, grad_entropy, call.rule.temperature)
    if top is None or not len(call.hidden):
        report(len(call.hidden), len(call.hidden), 0, 0.0, call.hidden.device)
        grads = recompute(call, rule, needed)
    else:
        mass, sparse, entries = _within_bound(call, stats, top, upstream, rule)
        dense = (~sparse).nonzero()[:, 0]
        grads, left = _from_entries(call, rule, entries, dense, needed, top.mass)
        tail_mass = mass.where(sparse, 0).max()
        if left is not None:
            scale = (grad_logprobs / call.rule.temperature)[dense].abs()
            tail_mass = torch.maximum(tail_mass, (left.abs() / scale).max())
        report(len(mass), len(dense), len(entries.row), tail_mass, mass.device)
    d_hidden = grads.hidden
    if d_hidden is not None and call.shard is not None:
        d_hidden = call.shard.total(d_hidden).to(call.hidden.dtype)
    if d_hidden is not None and index is not None:
        d_hidden = d_hidden.new_zeros(total, d_hidden.shape[1]).index_copy_(0, index, d_hidden)
    return grads._replace(hidden=d_hidden)


def _within_bound(
    call: HeadCall,
    stats: SoftmaxStats,
    top: TopEntries,
    upstream: Upstream,
    rule: GradientRule,
) -> tuple[torch.Tensor, torch.Tensor, sparse_backward.Entries]:
    """Mass left out [T], which tokens are within the error bound [T], and their entries."""
    entries, sums = sparse_backward.entries(call, stats, top, rule)
    if call.shard is not None:
        sums = EntrySums(*call.shard.total(torch.stack(sums)))
    grad_logprobs, grad_entropy = upstream
    assert grad_logprobs is not None
    mass, cost = left_out(stats, sums, grad_logprobs, grad_entropy, call.rule.temperature)
    sparse = within_bound(cost, sums.norm, len(cost), call.tail)
    return mass, sparse, entries.of(sparse)


def _from_entries(
    call: HeadCall,
    rule: GradientRule,
    entries: sparse_backward.Entries,
    dense: torch.Tensor,
    needed: Needed,
    mass: torch.Tensor | None,
) -> tuple[Gradients, torch.Tensor | None]:
    """Gradients from the entries, and those of the tokens ``dense``, recomputed.

    Args:
        call: of the tokens.
        rule: of the same tokens.
        entries: of the tokens within the error bound.
        dense: indices of the other tokens.
        needed: which gradients.
        mass: [V] of ``TopEntries``.

    Returns:
        The gradients; and what is left of the tokens ``dense``, if not all ids were recomputed.
    """
    left = None
    gemm, acc = call.gemm_dtype, call.accumulator
    d_hidden = d_weight = d_bias = None
    if needed.hidden:
        weight = sparse_backward.Operand(call.weight, gemm, acc)
        d_hidden = weight.bags(entries.id, entries.grad, entries.length).to(call.hidden_grad_dtype)
    sparse = None
    if needed.weight or needed.bias:
        sparse = sparse_backward.WeightGradient(
            entries, sparse_backward.Operand(call.hidden, gemm, acc)
        )
    if len(dense):
        dense_call, dense_rule = call.select(dense), rule.select(dense)
        order = ordered_backward.order_that_pays(dense_call, dense_rule, mass)
        if mass is not None and order is not None:
            # The gradient of a token's logits sums to 0: its norm is twice that of the target's.
            norm = 2 * rule.at_target.abs()
            allowed = call.tail * norm.where(norm.isfinite(), 0).mean() * len(dense)
            exact, left = ordered_backward.recompute(
                dense_call, dense_rule, needed, sparse, mass, order, allowed
            )
        else:
            exact = recompute(dense_call, dense_rule, needed, sparse)
        d_weight, d_bias = exact.weight, exact.bias
        if d_hidden is not None and exact.hidden is not None:
            d_hidden.index_copy_(0, dense, exact.hidden)
    elif sparse is not None:
        if needed.weight:
            d_weight = sparse.weight_like(call.weight)
        if needed.bias and call.bias is not None:
            d_bias = sparse.bias_like(call.bias)
    return Gradients(d_hidden, d_weight, d_bias), left
