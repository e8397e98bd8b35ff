"""``selective_logprob``: which backend computes, and its autograd."""

from __future__ import annotations

from typing import Any

import torch

from siri_kernels._autograd import refuse_double_backward
from siri_kernels._device import device_of
from siri_kernels.linear_logprob.autograd import active_rows, counted_rows, spread
from siri_kernels.linear_logprob.portable import selective as portable
from siri_kernels.linear_logprob.types import LogitRule, SoftmaxStats

OP = "selective_logprob"


def forward_of(
    logits: torch.Tensor, targets: torch.Tensor, rule: LogitRule, ignore_index: int, triton: bool
) -> SoftmaxStats:
    """Statistics of every row of [T, V], 0 where the target is ``ignore_index``."""
    counted = targets != ignore_index
    if triton:
        from siri_kernels.linear_logprob.triton import (
            selective as triton_selective,  # imports Triton
        )

        with device_of(logits):
            stats = triton_selective.forward(_rows_in_one_piece(logits), targets, rule)
        return spread(stats, None, counted)
    return portable.forward(logits, targets, rule, counted, counted_rows(counted))


def gradient_of(
    logits: torch.Tensor,
    targets: torch.Tensor,
    rule: LogitRule,
    ignore_index: int,
    stats: SoftmaxStats,
    grad_logprobs: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    triton: bool,
) -> torch.Tensor:
    """Gradient of [T, V] logits, contiguous."""
    counted = targets != ignore_index
    if grad_logprobs is None:
        grad_logprobs = torch.zeros_like(stats.logprobs)
    if triton:
        from siri_kernels.linear_logprob.triton import selective as triton_selective

        with device_of(logits):
            return triton_selective.backward(
                _rows_in_one_piece(logits),
                targets,
                rule,
                counted,
                stats,
                grad_logprobs,
                grad_entropy,
            )
    index = active_rows(counted, grad_logprobs, grad_entropy)
    return portable.backward(logits, targets, rule, stats, grad_logprobs, grad_entropy, index)


def _rows_in_one_piece(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.stride(1) == 1 else logits.contiguous()


class SelectiveLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        targets: torch.Tensor,
        rule: LogitRule,
        ignore_index: int,
        triton: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        ctx.rule, ctx.ignore_index, ctx.triton = rule, ignore_index, triton
        stats = forward_of(logits, targets, rule, ignore_index, triton)
        ctx.save_for_backward(logits, targets, *stats)
        return stats.logprobs, stats.entropy

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor | None) -> Any:
        logits, targets, *saved = ctx.saved_tensors
        with torch.no_grad():
            grad = gradient_of(
                logits,
                targets,
                ctx.rule,
                ctx.ignore_index,
                SoftmaxStats(*saved),
                upstream[0],
                upstream[1],
                ctx.triton,
            )
        return refuse_double_backward(OP, (grad, *[None] * 4), (logits, *upstream))
