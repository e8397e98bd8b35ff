"""``selective_logprob`` in Triton: launches on logits that exist."""

from __future__ import annotations

import torch
import triton

from siri_kernels._launch import launch
from siri_kernels.linear_logprob.online_softmax import finish
from siri_kernels.linear_logprob.tokens import with_gradient
from siri_kernels.linear_logprob.triton import arguments, kernels
from siri_kernels.linear_logprob.triton.dense_backward import kernel_rule
from siri_kernels.linear_logprob.triton.forward import empty_state
from siri_kernels.linear_logprob.triton.kernel_math import LN_2, LOG2_E
from siri_kernels.linear_logprob.types import LogitRule, SoftmaxStats


def _scale(rule: LogitRule) -> tuple[float | torch.Tensor, bool]:
    """``log2(e) / temperature``, and whether there is one per token."""
    t = rule.temperature
    if isinstance(t, torch.Tensor):
        return LOG2_E / t.float().contiguous(), True
    return LOG2_E / t, False


def forward(logits: torch.Tensor, targets: torch.Tensor, rule: LogitRule) -> SoftmaxStats:
    """Statistics of every token, masked ones too.

    Args:
        logits: [T, V], each token's contiguous.
        targets: [T] int64, any strides.
        rule: temperature, of any strides; no softcap.
    """
    total, vocabulary = logits.shape
    state = empty_state(total, logits.device)
    scale, per_row = _scale(rule)
    ids = min(kernels.IDS, triton.next_power_of_2(vocabulary))
    if total:
        targets = targets.contiguous()
        launch(
            kernels.online_softmax_kernel,
            (total,),
            logits,
            logits,
            scale,
            targets,
            state.sum,
            *state,
            targets,  # no top entries
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
            TOP_ENTRIES=False,
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
    unmasked: torch.Tensor,
    stats: SoftmaxStats,
    grad_logprobs: torch.Tensor,
    grad_entropy: torch.Tensor | None,
) -> torch.Tensor:
    """Gradient [T, V] of the logits, 0 for tokens that are masked or have no gradient.

    Args:
        logits: [T, V], each token's contiguous.
        targets: [T] int64, any strides.
        rule: temperature, of any strides; no softcap.
        unmasked: [T] bool.
        stats: what :func:`forward` returned.
        grad_logprobs: [T] gradient of the log-probs.
        grad_entropy: [T] gradient of the entropy, or None.
    """
    active = with_gradient(unmasked, grad_logprobs, grad_entropy)
    by = kernel_rule(stats, grad_logprobs, grad_entropy, rule.temperature)
    scale, per_row = _scale(rule)
    total, vocabulary = logits.shape
    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if total == 0:
        return out
    ids = min(kernels.IDS, triton.next_power_of_2(vocabulary))
    launch(
        kernels.gradient_kernel,
        (total, triton.cdiv(vocabulary, ids)),
        logits,
        out,
        logits,
        scale,
        targets.contiguous(),
        by.max,
        by.at_target,
        by.offset,
        arguments.pointer(by.slope, by.offset),
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
