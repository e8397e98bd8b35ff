"""Few tokens to recompute, beside many that come from their top entries.

Their logit gradients are made entries of the gradient of ``weight`` like the others. A loop over
tiles of ``weight`` would read and write all of its gradient in fp32 for their sake, and keep the
host busy for longer than the GPU.
"""

from __future__ import annotations

import torch

from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.online_softmax import GradientRule
from siri_kernels.linear_logprob.triton.dense_backward import (
    LogitGradients,
    add_product,
    fp16_factor,
)
from siri_kernels.linear_logprob.triton.sparse_backward import Entries

# Tokens. Each costs the gradient of weight a row of hidden for every id, which the caches hold: by
# count 0.1 ms at 151 936 ids of width 1536 on an H200, where the loop costs 0.9.
MOST = 8


def append(
    call: HeadCall, rule: GradientRule, tokens: torch.Tensor, entries: Entries, need_hidden: bool
) -> torch.Tensor | None:
    """Writes the tokens' logit gradients into the last entries, which are kept for them.

    Args:
        call: of these k tokens, as
            :func:`siri_kernels.linear_logprob.triton.arguments.prepared` gives it.
        rule: of the same tokens.
        tokens: [k] int64, their places among all tokens.
        entries: the last k * V are written.
        need_hidden: whether the gradient of ``hidden`` is needed.

    Returns:
        The gradient [k, D] of ``hidden`` in float32, or None.
    """
    weight, (count, width) = call.weight, call.hidden.shape
    vocabulary, device = len(weight), weight.device
    gradients = LogitGradients(call, rule, None, vocabulary, torch.float32)
    last = slice(len(entries.ids) - count * vocabulary, None)
    dz = entries.grads[last].view(count, vocabulary)
    for start in gradients.starts():
        tile = gradients.tile(start)
        dz[:, start : start + len(tile)] = gradients.gradient(0, start, tile)
    ids = torch.arange(vocabulary, dtype=torch.int32, device=device)
    entries.ids[last].view(count, vocabulary).copy_(ids)
    entries.rows[last].view(count, vocabulary).copy_(tokens[:, None])
    if not need_hidden:
        return None
    factor = fp16_factor(call, rule) if call.hidden.is_cuda else None
    if factor is not None:
        dz = dz * factor
    out = torch.empty(count, width, dtype=torch.float32, device=device)
    operand = gradients.operand(weight)
    add_product(out, dz.to(operand.dtype), operand, first=True)
    return out if factor is None else out.div_(factor)
