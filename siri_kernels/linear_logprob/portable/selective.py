"""``selective_logprob`` by blocks of tokens and tiles of ids, in PyTorch operations."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from siri_kernels.linear_logprob.call import accumulator_of
from siri_kernels.linear_logprob.online_softmax import (
    OnlineSoftmax,
    finish,
    gradient_rule,
    logit_gradient,
)
from siri_kernels.linear_logprob.portable.forward import tile_shape
from siri_kernels.linear_logprob.types import LogitRule, SoftmaxStats


class _Blocks:
    """Upcast logits of a block of tokens and a tile of ids, divided by the temperature."""

    def __init__(self, logits: torch.Tensor, rule: LogitRule, index: torch.Tensor | None) -> None:
        self.logits, self.rule = logits, rule
        tokens, self.ids = tile_shape(logits.shape[1], logits.device)
        if index is None:
            index = torch.arange(len(logits), dtype=torch.int64, device=logits.device)
        self.tokens = index.split(tokens) if len(index) else ()
        self.acc = accumulator_of(logits.dtype)

    def tiles(self, tokens: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """The first id of each tile, and the logits of these tokens."""
        rule = self.rule.select(tokens)
        for start in range(0, self.logits.shape[1], self.ids):
            tile = self.logits[:, start : start + self.ids].index_select(0, tokens).to(self.acc)
            if isinstance(rule.temperature, torch.Tensor):
                tile.div_(rule.temperature[:, None])
            elif rule.temperature != 1.0:
                tile.div_(rule.temperature)
            yield start, tile


def forward(
    logits: torch.Tensor,
    targets: torch.Tensor,
    rule: LogitRule,
    unmasked: torch.Tensor,
    index: torch.Tensor | None,
) -> SoftmaxStats:
    """Statistics of the tokens, 0 where masked.

    Args:
        logits: [T, V].
        targets: [T] int64.
        rule: temperature; no softcap.
        unmasked: [T] bool.
        index: tokens to compute; None: all of them.
    """
    blocks = _Blocks(logits, rule, index)
    stats = SoftmaxStats(*(logits.new_zeros(len(logits), dtype=blocks.acc) for _ in range(4)))
    for tokens in blocks.tokens:
        softmax = OnlineSoftmax(targets[tokens], blocks.acc)
        for start, tile in blocks.tiles(tokens):
            softmax.update(tile, start, torch.empty_like(tile))
        for whole, part in zip(stats, finish(softmax.state()), strict=True):
            whole[tokens] = part
    for whole in stats:
        whole.masked_fill_(~unmasked, 0)
    return stats


def backward(
    logits: torch.Tensor,
    targets: torch.Tensor,
    rule: LogitRule,
    stats: SoftmaxStats,
    grad_logprobs: torch.Tensor,
    grad_entropy: torch.Tensor | None,
    index: torch.Tensor | None,
) -> torch.Tensor:
    """Gradient [T, V] of the logits, contiguous, 0 for tokens outside ``index``.

    Args:
        logits: [T, V].
        targets: [T] int64.
        rule: temperature; no softcap.
        stats: what :func:`forward` returned.
        grad_logprobs: [T] gradient of the log-probs.
        grad_entropy: [T] gradient of the entropy, or None.
        index: tokens with a gradient; None: all of them.
    """
    blocks = _Blocks(logits, rule, index)
    grad = torch.zeros_like(logits, memory_format=torch.contiguous_format)
    for tokens in blocks.tokens:
        token_rule = gradient_rule(
            SoftmaxStats(*(s[tokens] for s in stats)),
            grad_logprobs[tokens],
            None if grad_entropy is None else grad_entropy[tokens],
            rule.select(tokens).temperature,
        )
        for start, tile in blocks.tiles(tokens):
            scratch = torch.empty_like(tile)
            dz = logit_gradient(tile, targets[tokens], start, token_rule, scratch)
            grad[:, start : start + tile.shape[1]].index_copy_(0, tokens, dz.to(grad.dtype))
    return grad
