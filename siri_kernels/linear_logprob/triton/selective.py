"""Launches the Triton kernels on logits that exist: the fold and the gradient, tile by tile."""

from __future__ import annotations

import torch
import triton

from siri_kernels.linear_logprob.online_softmax import finish
from siri_kernels.linear_logprob.triton import kernels
from siri_kernels.linear_logprob.triton.dense_backward import kernel_rule
from siri_kernels.linear_logprob.triton.forward import empty_state
from siri_kernels.linear_logprob.triton.kernel_math import LN_2, LOG2_E
from siri_kernels.linear_logprob.types import LogitRule, SoftmaxStats


def _scale(rule: LogitRule) -> tuple[float | torch.Tensor, bool]:
    """``log2(e) / temperature``, and whether there is one a row."""
    t = rule.temperature
    if isinstance(t, torch.Tensor):
        return LOG2_E / t.float().contiguous(), True
    return LOG2_E / t, False


def forward(logits: torch.Tensor, targets: torch.Tensor, rule: LogitRule) -> SoftmaxStats:
    """Statistics of every row of ``logits`` [T, V]; rows to be ignored are computed too.

    ``targets`` and a tensor of temperatures may have any strides.
    """
    total, vocabulary = logits.shape
    state = empty_state(total, logits.device)
    scale, per_row = _scale(rule)
    ids = min(kernels.IDS, triton.next_power_of_2(vocabulary))
    if total:
        targets = targets.contiguous()
        kernels.fold_kernel[(total,)](
            logits,
            logits,
            scale,
            targets,
            state.sum,
            *state,
            targets,  # no lists
            state.sum,
            targets,
            0,
            vocabulary,
            logits.stride(0),
            0,
            1.0,
            1.0,
            0.0,
            BIAS=False,
            PER_ROW=per_row,
            SOFTCAP=False,
            LISTS=False,
            BLOCK=ids,
            PART=min(kernels.PART, ids),
            num_warps=kernels.WARPS,
        )
    state.dev.mul_(LN_2)
    return finish(state, rule.temperature)


def backward(
    logits: torch.Tensor,
    targets: torch.Tensor,
    rule: LogitRule,
    counted: torch.Tensor,
    stats: SoftmaxStats,
    grad_logprobs: torch.Tensor,
    grad_entropy: torch.Tensor | None,
) -> torch.Tensor:
    """Gradient of ``logits``, 0 in rows that are not counted or have no gradient."""
    active = grad_logprobs != 0
    if grad_entropy is not None:
        active |= grad_entropy != 0
    active &= counted
    by = kernel_rule(stats, grad_logprobs, grad_entropy, rule.temperature)
    scale, per_row = _scale(rule)
    total, vocabulary = logits.shape
    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if total == 0:
        return out
    ids = min(kernels.IDS, triton.next_power_of_2(vocabulary))
    kernels.gradient_kernel[(total, triton.cdiv(vocabulary, ids))](
        logits,
        out,
        logits,
        scale,
        targets.contiguous(),
        by.max,
        by.at_target,
        by.offset,
        by.offset if by.slope is None else by.slope,
        by.offset,
        active.to(torch.int8),
        0,
        vocabulary,
        logits.stride(0),
        vocabulary,
        1.0,
        1.0,
        WHOLE=vocabulary % ids == 0,
        SOME=True,
        BIAS=False,
        PER_ROW=per_row,
        SOFTCAP=False,
        SLOPE=by.slope is not None,
        FACTOR=False,
        BLOCK=ids,
        num_warps=kernels.WARPS,
    )
    return out
