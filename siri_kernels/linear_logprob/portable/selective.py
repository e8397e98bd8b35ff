"""``selective_logprob`` by blocks of rows and tiles of ids, in PyTorch operations."""

from __future__ import annotations

from typing import Any

import torch

from siri_kernels.linear_logprob.online_softmax import Fold, finish, gradient_rule, logit_gradient
from siri_kernels.linear_logprob.portable.forward import tile_shape, widened
from siri_kernels.linear_logprob.types import LogitRule, SoftmaxStats


class _Blocks:
    """Widened logits of a block of rows and a tile of ids, divided by the temperature."""

    def __init__(self, logits: torch.Tensor, rule: LogitRule, index: torch.Tensor | None) -> None:
        self.logits, self.rule = logits, rule
        rows, self.ids = tile_shape(logits.shape[1], logits.device)
        if index is None:
            index = torch.arange(len(logits), dtype=torch.int64, device=logits.device)
        self.rows = index.split(rows) if len(index) else ()
        self.acc = widened(logits.dtype)

    def tiles(self, rows: torch.Tensor) -> Any:
        rule = self.rule.rows(rows)
        for start in range(0, self.logits.shape[1], self.ids):
            tile = self.logits[:, start : start + self.ids].index_select(0, rows).to(self.acc)
            if isinstance(rule.temperature, torch.Tensor):
                tile.div_(rule.temperature[:, None])
            elif rule.temperature != 1.0:
                tile.div_(rule.temperature)
            yield start, tile


def forward(
    logits: torch.Tensor,
    targets: torch.Tensor,
    rule: LogitRule,
    counted: torch.Tensor,
    index: torch.Tensor | None,
) -> SoftmaxStats:
    """Statistics of the rows ``index`` (None: all) of [T, V], 0 where ``counted`` [T] is False."""
    blocks = _Blocks(logits, rule, index)
    stats = SoftmaxStats(*(logits.new_zeros(len(logits), dtype=blocks.acc) for _ in range(4)))
    for rows in blocks.rows:
        fold = Fold(targets[rows], blocks.acc)
        for start, tile in blocks.tiles(rows):
            fold.add(tile, start, torch.empty_like(tile))
        for whole, part in zip(stats, finish(fold.state()), strict=True):
            whole[rows] = part
    for whole in stats:
        whole.masked_fill_(~counted, 0)
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
    """Gradient of [T, V] logits, contiguous; of the rows ``index`` (None: all), else 0."""
    blocks = _Blocks(logits, rule, index)
    grad = torch.zeros_like(logits, memory_format=torch.contiguous_format)
    for rows in blocks.rows:
        row_rule = gradient_rule(
            SoftmaxStats(*(s[rows] for s in stats)),
            grad_logprobs[rows],
            None if grad_entropy is None else grad_entropy[rows],
            rule.rows(rows).temperature,
        )
        for start, tile in blocks.tiles(rows):
            scratch = torch.empty_like(tile)
            dz = logit_gradient(tile, targets[rows], start, row_rule, scratch)
            grad[:, start : start + tile.shape[1]].index_copy_(0, rows, dz.to(grad.dtype))
    return grad
