"""``selective_logprob``: which backend computes, and its autograd."""

from __future__ import annotations

from typing import Any

import torch

from siri_kernels._autograd import refuse_double_backward
from siri_kernels._device import device_of
from siri_kernels.linear_logprob.portable import selective as portable
from siri_kernels.linear_logprob.tokens import spread, tokens_with_gradient, unmasked_tokens
from siri_kernels.linear_logprob.types import LogitRule, SoftmaxStats

OP = "selective_logprob"


def forward_of(
    logits: torch.Tensor, targets: torch.Tensor, rule: LogitRule, ignore_index: int, triton: bool
) -> SoftmaxStats:
    """Statistics of every token, 0 where masked.

    Args:
        logits: [T, V].
        targets: [T] int64.
        rule: temperature; no softcap.
        ignore_index: targets with this value are masked.
        triton: whether the Triton kernels compute.
    """
    unmasked = targets != ignore_index
    if triton:
        from siri_kernels.linear_logprob.triton import selective as triton_selective

        with device_of(logits):
            stats = triton_selective.forward(_with_contiguous_tokens(logits), targets, rule)
        return spread(stats, None, unmasked)
    return portable.forward(logits, targets, rule, unmasked, unmasked_tokens(unmasked))


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
    """Gradient [T, V] of the logits, contiguous.

    Args:
        logits: [T, V].
        targets: [T] int64.
        rule: temperature; no softcap.
        ignore_index: targets with this value are masked.
        stats: what :func:`forward_of` returned.
        grad_logprobs: [T] gradient of the log-probs; None: 0.
        grad_entropy: [T] gradient of the entropy, or None.
        triton: whether the Triton kernels compute.
    """
    unmasked = targets != ignore_index
    if grad_logprobs is None:
        grad_logprobs = torch.zeros_like(stats.logprobs)
    if triton:
        from siri_kernels.linear_logprob.triton import selective as triton_selective

        with device_of(logits):
            return triton_selective.backward(
                _with_contiguous_tokens(logits),
                targets,
                rule,
                unmasked,
                stats,
                grad_logprobs,
                grad_entropy,
            )
    index = tokens_with_gradient(unmasked, grad_logprobs, grad_entropy)
    return portable.backward(logits, targets, rule, stats, grad_logprobs, grad_entropy, index)


def _with_contiguous_tokens(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.stride(1) == 1 else logits.contiguous()


class SelectiveLogprob(torch.autograd.Function):
    """Log-probs and entropy from logits, and their gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        targets: torch.Tensor,
        rule: LogitRule,
        ignore_index: int,
        triton: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs [T] and entropy [T].

        Args:
            ctx: autograd's.
            logits: [T, V].
            targets: [T] int64.
            rule: temperature; no softcap.
            ignore_index: targets with this value are masked.
            triton: whether the Triton kernels compute.
        """
        ctx.set_materialize_grads(False)
        ctx.rule, ctx.ignore_index, ctx.triton = rule, ignore_index, triton
        stats = forward_of(logits, targets, rule, ignore_index, triton)
        ctx.save_for_backward(logits, targets, *stats)
        return stats.logprobs, stats.entropy

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor | None) -> Any:
        """Gradient of the logits; none of the other arguments."""
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
