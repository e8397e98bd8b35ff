"""Dense backward in PyTorch: gradients from logits recomputed over the whole vocabulary."""

from __future__ import annotations

import torch

from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.online_softmax import GradientRule, logit_gradient
from siri_kernels.linear_logprob.portable.forward import Tiles
from siri_kernels.linear_logprob.portable.products import add_product, set_product
from siri_kernels.linear_logprob.portable.sparse_backward import WeightGradient
from siri_kernels.linear_logprob.types import Gradients, Needed


def recompute(
    call: HeadCall, rule: GradientRule, needed: Needed, sparse: WeightGradient | None = None
) -> Gradients:
    """Exact gradients of the call's tokens.

    Args:
        call: of tokens that are all computed, with targets relative to the shard's first id.
        rule: of the same tokens.
        needed: which gradients.
        sparse: what other tokens give to the gradients of ``weight`` and ``bias``, added before
            these are rounded.
    """
    tiles = Tiles(call)
    hidden, weight, bias, acc = call.hidden, call.weight, call.bias, tiles.acc
    columns = [
        [None] * len(tiles.hidden) if column is None else tiles.blocks(column) for column in rule
    ]
    block_rules = [GradientRule(*block) for block in zip(*columns, strict=True)]
    block_targets = tiles.blocks(call.targets)
    whole = hidden.new_zeros(tiles.padded if needed.hidden else 0, hidden.shape[1], dtype=acc)
    d_hidden = whole.split(tiles.sizes) if needed.hidden else ()
    d_weight = torch.empty_like(weight) if needed.weight else None
    # Tiles of it are sums themselves where it has their dtype; else it gets them rounded.
    direct = d_weight is not None and d_weight.dtype == acc and d_weight.is_contiguous()
    height = 0 if direct or d_weight is None else tiles.ids
    sums = weight.new_empty(height, weight.shape[1], dtype=acc)
    d_bias = torch.empty_like(bias) if bias is not None and needed.bias else None
    for start in tiles.starts():
        tile, bias_tile = tiles.weight_tile(start)
        n = tile.shape[0]
        d_tile = None
        if d_weight is not None:
            d_tile = d_weight[start : start + n] if direct else sums[:n]
            if not block_rules:
                d_tile.zero_()
        d_bias_tile = tile.new_zeros(n, dtype=acc) if d_bias is not None else None
        left = tiles.total
        for block, block_rule in enumerate(block_rules):
            raw, x = tiles.raw(block, tile, bias_tile)
            slope = None
            if tiles.softcap is not None:
                slope = (raw / tiles.softcap).tanh_().square_().neg_().add_(1)
            z = tiles.logits(raw, block)
            scratch = tiles.scratch(z)
            dz = logit_gradient(z, block_targets[block], start, block_rule, scratch)
            del raw, z  # the products need their memory
            if slope is not None:
                dz.mul_(slope)
            if needed.hidden:
                add_product(d_hidden[block], dz, tile.to(acc))
            real = min(left, dz.shape[0])  # padding has no gradient to give
            left -= real
            if d_tile is not None:
                if block:
                    add_product(d_tile, dz[:real].t(), x[:real].to(acc))
                else:  # the first product writes the sums: they need not be cleared
                    set_product(d_tile, dz[:real].t(), x[:real].to(acc))
            if d_bias_tile is not None:
                d_bias_tile += dz[:real].sum(0)
        if sparse is not None and d_tile is not None:
            ids, rows = sparse.rows(start, start + n)
            d_tile.index_add_(0, ids - start, rows)
            del ids, rows  # the next tile needs their memory
        if sparse is not None and d_bias_tile is not None:
            ids, values = sparse.bias(start, start + n)
            d_bias_tile.index_add_(0, ids - start, values)
        if d_weight is not None and d_tile is not None and not direct:
            d_weight[start : start + n] = d_tile
        if d_bias is not None and d_bias_tile is not None:
            d_bias[start : start + n] = d_bias_tile
    if not needed.hidden:
        return Gradients(None, d_weight, d_bias)
    return Gradients(whole[: tiles.total].to(call.hidden_grad_dtype), d_weight, d_bias)
