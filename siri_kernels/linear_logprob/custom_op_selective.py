"""``selective_logprob`` as a ``torch.library`` operator, kept in a graph by ``torch.compile``.

See :mod:`siri_kernels._compiled` for what an operator is given and when it checks.
"""

from __future__ import annotations

from typing import Any

import torch

from siri_kernels.linear_logprob.call import accumulator_of
from siri_kernels.linear_logprob.selective_autograd import OP, forward_of, gradient_of
from siri_kernels.linear_logprob.types import LogitRule, SoftmaxStats
from siri_kernels.linear_logprob.validate import check_rule, check_targets

Saved = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _number_or_tokens(temperature: torch.Tensor) -> float | torch.Tensor:
    return temperature if temperature.dim() else float(temperature)


@torch.library.custom_op("siri_kernels::selective_logprob", mutates_args=())
def selective_logprob(
    logits: torch.Tensor,
    targets: torch.Tensor,
    temperature: torch.Tensor,
    ignore_index: int,
    triton: bool,
) -> Saved:
    """Statistics of every token: the four fields of SoftmaxStats.

    Args:
        logits: [T, V].
        targets: [T] int64.
        temperature: [T], or 0-d and on the CPU.
        ignore_index: targets with this value are masked.
        triton: whether the Triton kernels compute.
    """
    check_targets(OP, targets, logits.shape[1], ignore_index)
    rule = check_rule(OP, _number_or_tokens(temperature), None, targets, logits.device)
    stats = forward_of(logits, targets, rule, ignore_index, triton)
    return stats.logprobs, stats.entropy, stats.max, stats.log_sum


@selective_logprob.register_fake
def _(
    logits: torch.Tensor,
    targets: torch.Tensor,
    temperature: torch.Tensor,
    ignore_index: int,
    triton: bool,
) -> Saved:
    tokens, acc = targets.shape[0], accumulator_of(logits.dtype)
    a, b, c, d = (logits.new_empty(tokens, dtype=acc) for _ in range(4))
    return a, b, c, d


@torch.library.custom_op("siri_kernels::selective_logprob_backward", mutates_args=())
def selective_logprob_backward(
    logits: torch.Tensor,
    targets: torch.Tensor,
    temperature: torch.Tensor,
    saved: list[torch.Tensor],
    grad_logprobs: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    ignore_index: int,
    triton: bool,
) -> torch.Tensor:
    """Gradient [T, V] of ``logits``.

    Args:
        logits: as in :func:`selective_logprob`, and so on.
        targets: the same.
        temperature: the same.
        saved: what :func:`selective_logprob` returned.
        grad_logprobs: [T] gradient of the log-probs, or None.
        grad_entropy: [T] gradient of the entropy, or None.
        ignore_index: as in :func:`selective_logprob`.
        triton: the same.
    """
    rule = LogitRule(_number_or_tokens(temperature))
    stats = SoftmaxStats(*saved)
    return gradient_of(
        logits, targets, rule, ignore_index, stats, grad_logprobs, grad_entropy, triton
    )


@selective_logprob_backward.register_fake
def _(
    logits: torch.Tensor,
    targets: torch.Tensor,
    temperature: torch.Tensor,
    saved: list[torch.Tensor],
    grad_logprobs: torch.Tensor | None,
    grad_entropy: torch.Tensor | None,
    ignore_index: int,
    triton: bool,
) -> torch.Tensor:
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    logits, targets, temperature, ctx.ignore_index, ctx.triton = inputs
    ctx.save_for_backward(logits, targets, temperature, *output)
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *upstream: torch.Tensor | None) -> Any:
    logits, targets, temperature, *saved = ctx.saved_tensors
    if upstream[0] is None and upstream[1] is None:
        return (None,) * 5
    grad = selective_logprob_backward(
        logits,
        targets,
        temperature,
        saved,
        upstream[0],
        upstream[1],
        ctx.ignore_index,
        ctx.triton,
    )
    return grad, *[None] * 4


selective_logprob.register_autograd(_backward, setup_context=_setup_context)
