"""Launches the Triton kernels on logits that exist: the fold and the gradient, tile by tile."""

from __future__ import annotations

import torch
import triton

from siri_kernels.linear_logprob import kernels
from siri_kernels.linear_logprob.launch_backward import GRADIENT_BLOCK
from siri_kernels.linear_logprob.softmax_fold import FoldState, finish, gradient_rule
from siri_kernels.linear_logprob.types import LogitRule, SoftmaxStats


def _temperature(rule: LogitRule) -> tuple[float | torch.Tensor, bool]:
    t = rule.temperature
    return (t.contiguous(), True) if isinstance(t, torch.Tensor) else (t, False)


def forward(logits: torch.Tensor, targets: torch.Tensor, rule: LogitRule) -> SoftmaxStats:
    """Statistics of every row of ``logits`` [T, V]; rows to be ignored are computed too."""
    total, vocabulary = logits.shape

    def column(fill: float) -> torch.Tensor:
        return torch.full((total,), fill, dtype=torch.float32, device=logits.device)

    lowest = float("-inf")
    state = FoldState(column(lowest), column(lowest), column(0.0), column(0.0))
    temperature, per_row = _temperature(rule)
    ids = min(kernels.IDS, triton.next_power_of_2(vocabulary))
    for start in range(0, vocabulary if total else 0, ids):
        kernels.fold_kernel[(total,)](
            logits[:, start:],
            logits,
            temperature,
            targets,
            state.sum,
            *state,
            targets,  # no lists
            state.sum,
            targets,
            start,
            min(ids, vocabulary - start),
            logits.stride(0),
            0,
            1.0,
            0.0,
            FIRST=start == 0,
            BIAS=False,
            PER_ROW=per_row,
            SOFTCAP=False,
            LISTS=False,
            BLOCK=ids,
            num_warps=kernels.WARPS,
        )
    return finish(state)


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
    by = gradient_rule(stats, grad_logprobs, grad_entropy, rule.temperature)
    temperature, per_row = _temperature(rule)
    total, vocabulary = logits.shape
    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if total == 0:
        return out
    kernels.gradient_kernel[(total, triton.cdiv(vocabulary, GRADIENT_BLOCK))](
        logits,
        out,
        logits,
        temperature,
        targets,
        by.max,
        by.at_target.contiguous(),
        by.offset.contiguous(),
        by.offset if by.slope is None else by.slope.contiguous(),
        by.offset,
        active.to(torch.int8),
        0,
        vocabulary,
        logits.stride(0),
        out.stride(0),
        1.0,
        SOME=True,
        BIAS=False,
        PER_ROW=per_row,
        SOFTCAP=False,
        SLOPE=by.slope is not None,
        SCALE=False,
        BLOCK=GRADIENT_BLOCK,
        num_warps=kernels.WARPS,
    )
    return out
