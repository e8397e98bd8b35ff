"""Backward in Triton: which tokens come from their top entries, and which are recomputed.

The host reads two numbers, once: tokens to recompute and entries to gather.
"""

from __future__ import annotations

import torch

from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.error_bound import report
from siri_kernels.linear_logprob.top_entries import TopEntries
from siri_kernels.linear_logprob.triton import arguments, few_dense, token_math
from siri_kernels.linear_logprob.triton.dense_backward import recompute
from siri_kernels.linear_logprob.triton.sparse_backward import Entries, WeightGradient
from siri_kernels.linear_logprob.types import Gradients, Needed, SoftmaxStats, Upstream


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
    call = arguments.prepared(call)
    upstream = tuple(None if grad is None else grad.contiguous() for grad in upstream)
    tokens = token_math.token_gradients(call, stats, top, upstream)
    if call.shard is not None and tokens.sums is not None:
        tokens = tokens._replace(sums=call.shard.total(tokens.sums))
    split = token_math.split(call, stats, top, upstream, tokens)
    used, dropped, kept, mass = split.report.unbind()
    report(used, dropped, kept, mass, mass.device)
    counts = token_math.reading(split.report)
    # Zeros are written while the host waits: most ids have no entries.
    grads = _new_gradients(call, needed, zeros=top is not None)
    recomputed, count = counts()
    dense = split.dense[:recomputed]
    part, part_rule = call, tokens.rule
    if recomputed:
        part, part_rule = call.select(dense), tokens.rule.select(dense)
    exact = entries = by_id = None
    few = 0 < recomputed <= few_dense.MOST and count > 0 and needed.weight
    if top is not None and count:
        more = recomputed * len(call.weight) if few else 0
        entries = Entries.of(call, top, stats, tokens, split, count, more)
        if needed.hidden:
            grads = grads._replace(hidden=entries.hidden_gradient(call))
        if few:
            exact = few_dense.append(part, part_rule, dense, entries, needed.hidden)
        if needed.weight or needed.bias:
            by_id = WeightGradient(call, entries, needed.weight)
    elif needed.hidden:
        d_hidden = torch.zeros(call.hidden.shape, dtype=call.hidden_grad_dtype, device=dense.device)
        grads = grads._replace(hidden=d_hidden)
    if recomputed and not few:
        exact = recompute(part, part_rule, needed.hidden, grads.weight, grads.bias, by_id)
    elif by_id is not None:
        by_id.write(grads.weight, grads.bias, 0, len(call.weight))
    elif top is None:  # no token has a gradient
        zeros = _new_gradients(call, needed, zeros=True)
        grads = zeros._replace(hidden=grads.hidden)
    if grads.hidden is not None and exact is not None:
        grads.hidden.index_copy_(0, dense, exact.to(grads.hidden.dtype))
    if grads.hidden is not None and call.shard is not None:
        grads = grads._replace(hidden=call.shard.total(grads.hidden).to(call.hidden.dtype))
    return grads


def _new_gradients(call: HeadCall, needed: Needed, zeros: bool) -> Gradients:
    """Gradients of ``weight`` and ``bias`` to be written, or zeros."""
    new = torch.zeros_like if zeros else torch.empty_like
    d_weight = d_bias = None
    if needed.weight:
        d_weight = new(call.weight, memory_format=torch.contiguous_format)
    if needed.bias and call.bias is not None:
        d_bias = new(call.bias, memory_format=torch.contiguous_format)
    return Gradients(None, d_weight, d_bias)
