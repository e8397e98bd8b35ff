"""Backward in Triton: which tokens come from their top entries, and which are recomputed.

The host reads two numbers, once: tokens to recompute and entries to gather.
"""

from __future__ import annotations

import torch

from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.error_bound import report
from siri_kernels.linear_logprob.top_entries import TopEntries
from siri_kernels.linear_logprob.triton import arguments, token_math
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
    hidden, weight, bias = call.hidden, call.weight, call.bias
    d_hidden = d_weight = d_bias = sparse = by_id = None
    # Most ids have no entries. Zeros are written while the host waits; recomputing, which writes
    # every id, is rare where there are top entries.
    new = torch.empty_like if top is None else torch.zeros_like
    if needed.weight:
        d_weight = new(weight, memory_format=torch.contiguous_format)
    if needed.bias and bias is not None:
        d_bias = new(bias, memory_format=torch.contiguous_format)
    recomputed, count = counts()
    if top is not None and count:
        sparse = Entries.of(call, top, stats, tokens, split, count)
    if needed.hidden:
        if sparse is not None:
            d_hidden = sparse.hidden_gradient(call)
        else:
            d_hidden = torch.zeros(hidden.shape, dtype=call.hidden_grad_dtype, device=hidden.device)
    if sparse is not None and (needed.weight or needed.bias):
        by_id = WeightGradient(call, sparse, needed.weight)
    if recomputed:
        dense = split.dense[:recomputed]
        part, rule = call.select(dense), tokens.rule.select(dense)
        exact = recompute(part, rule, needed.hidden, d_weight, d_bias, by_id)
        if d_hidden is not None and exact is not None:
            d_hidden.index_copy_(0, dense, exact.to(d_hidden.dtype))
    elif by_id is not None:
        by_id.write(d_weight, d_bias, 0, len(weight))
    elif top is None:  # no token has a gradient
        for grad in (d_weight, d_bias):
            if grad is not None:
                grad.zero_()
    if d_hidden is not None and call.shard is not None:
        d_hidden = call.shard.total(d_hidden).to(hidden.dtype)
    return Gradients(d_hidden, d_weight, d_bias)
