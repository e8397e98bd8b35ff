"""Dense backward over the ids that matter to the batch, in the order of their mass, in PyTorch.

A token whose softmax is wide needs more entries than forward saves, and still not the whole
vocabulary: the ids that many tokens agree to be improbable change nothing. Forward adds up the
probabilities of each id over the tokens (``TopEntries.mass``). Here the logits are recomputed for
tiles of ids in the order of that mass, all products dense, until what is left out is within the
error bound. How much is left of each token is known exactly, because the gradient of the logits
sums to 0.

What is left of ``d_hidden`` is added with one rank: each token's remainder times the mean of the
weight's rows left out, by their mass. Its L1 error is at most twice the remainder, so twice the
remainders have to be within the bound.
"""

from __future__ import annotations

import torch

from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.online_softmax import GradientRule, logit_gradient
from siri_kernels.linear_logprob.portable.forward import Tiles
from siri_kernels.linear_logprob.portable.products import add_product, set_product
from siri_kernels.linear_logprob.portable.sparse_backward import WeightGradient
from siri_kernels.linear_logprob.types import Gradients, Needed

# Beyond this share of the ids gathering rows costs more than the products left out.
_MOST = 0.75


def order_that_pays(
    call: HeadCall, rule: GradientRule, mass: torch.Tensor | None
) -> torch.Tensor | None:
    """The ids [V], targets first, then by descending mass; None where their order does not help.

    It helps where the ids that matter are probably few enough, and the call has no special cases.

    Args:
        call: of the tokens.
        rule: of the same tokens. An entropy with a gradient is a special case.
        mass: [V] of ``TopEntries``.
    """
    if mass is None or call.shard is not None or call.rule.softcap is not None:
        return None
    if rule.slope is not None or call.weight.dtype != call.accumulator:
        return None
    first = mass.index_fill(0, call.targets, float("inf"))  # the remainder is that of other ids
    # No mass is below 0, so that integers of the same bits have its order. They are sorted by their
    # digits, in a tenth of the time.
    bits = first.view(torch.int32 if first.dtype is torch.float32 else torch.int64)
    order = torch.argsort(-bits, stable=True)
    kept = mass[order[: int(_MOST * len(mass))]].sum()
    return order if bool(mass.sum() - kept <= call.tail * mass.sum()) else None


def recompute(
    call: HeadCall,
    rule: GradientRule,
    needed: Needed,
    sparse: WeightGradient | None,
    mass: torch.Tensor,
    order: torch.Tensor,
    allowed: torch.Tensor,
) -> tuple[Gradients, torch.Tensor]:
    """Gradients of the call's tokens, within the error bound.

    Args:
        call: of tokens that are all computed, without softcap and shard.
        rule: of the same tokens, without a gradient of the entropy.
        needed: which gradients.
        sparse: what other tokens give to the gradients of ``weight`` and ``bias``.
        mass: [V] of ``TopEntries``.
        order: of :func:`order_that_pays`.
        allowed: 0-d, the L1 norm of the error that these tokens may have together.

    Returns:
        The gradients, and the remainder [T] of each token's logit gradient.
    """
    weight, bias, targets = call.weight, call.bias, call.targets
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), dtype=order.dtype, device=order.device)
    tiles = Tiles(call)
    rules = [
        GradientRule(*block)
        for block in zip(*(_blocks(tiles, column) for column in rule), strict=True)
    ]
    block_targets = tiles.blocks(place[targets])
    sums = weight.new_zeros(tiles.padded if needed.hidden else 0, weight.shape[1])
    d_hidden = sums.split(tiles.sizes) if needed.hidden else ()
    d_weight = d_bias = None
    if needed.weight:
        d_weight = torch.zeros_like(weight) if sparse is None else sparse.weight_like(weight)
    if bias is not None and needed.bias:
        d_bias = torch.zeros_like(bias) if sparse is None else sparse.bias_like(bias)
    left = weight.new_zeros(tiles.padded)
    lefts = left.split(tiles.sizes)
    # The sums are fp32: a difference that rounds to 0 is no proof.
    rounding = 8 * torch.finfo(left.dtype).eps * rule.at_target.abs().sum()
    rows = weight.new_empty(tiles.ids, weight.shape[1])
    d_rows = torch.empty_like(rows) if needed.weight else None
    done = 0
    for start in tiles.starts():
        ids = order[start : start + tiles.ids]
        # index_select copies rows whole; weight[ids] takes four times as long on a CPU.
        tile = torch.index_select(weight, 0, ids, out=rows[: len(ids)])
        bias_tile = None if bias is None else bias.index_select(0, ids).to(tiles.acc)
        d_tile = None if d_rows is None else d_rows[: len(ids)]
        real = tiles.total
        for block, block_rule in enumerate(rules):
            z, x = tiles.raw(block, tile, bias_tile)
            z = tiles.logits(z, block)
            scratch = tiles.scratch(z)
            dz = logit_gradient(z, block_targets[block], start, block_rule, scratch)
            del z  # the products need its memory
            lefts[block].sub_(dz.sum(1))
            if needed.hidden:
                add_product(d_hidden[block], dz, tile)
            dz, x = dz[:real], x[:real]  # padding has no gradient to give
            real = max(0, real - len(block_targets[block]))
            if d_tile is not None:
                if block:
                    add_product(d_tile, dz.t(), x)
                else:  # the first product writes the sums: they need not be cleared
                    set_product(d_tile, dz.t(), x)
            if d_bias is not None:
                d_bias.index_add_(0, ids, dz.sum(0).to(d_bias.dtype))
        if d_weight is not None and d_tile is not None:
            d_weight.index_add_(0, ids, d_tile)
        done = start + len(ids)
        if done >= len(targets) and bool(
            2 * (left[: tiles.total].abs().sum() + rounding) <= allowed
        ):
            break
    left = left[: tiles.total]
    if done == len(order):
        left = torch.zeros_like(left)
    elif needed.hidden:
        outside = mass.index_fill(0, order[:done], 0)
        mean = weight.t().mv(outside) / outside.sum().clamp(min=torch.finfo(mass.dtype).tiny)
        sums[: tiles.total].addr_(left, mean)
    whole = sums[: tiles.total].to(call.hidden_grad_dtype) if needed.hidden else None
    return Gradients(whole, d_weight, d_bias), left


def _blocks(tiles: Tiles, column: torch.Tensor | None) -> list[torch.Tensor] | list[None]:
    return [None] * len(tiles.hidden) if column is None else tiles.blocks(column)
