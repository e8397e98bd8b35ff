"""Softmax over a vocabulary that is seen one tile at a time.

The target is kept out of the running sums. Its log-prob is then ``-softplus(lse of others - z)``:
right where ``z - lse`` has long rounded to 0, and never positive. The entropy follows by the chain
rule, ``H = H(target or not) + (1 - p) * H(others)``: a sum of terms that are never negative, so
nothing cancels whatever the size of the logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from siri_kernels.linear_logprob.top_entries import Collector
from siri_kernels.linear_logprob.types import SoftmaxStats

# exp of it is 0 in float64 too; finite, so that 0 * log 0 is 0 and not NaN.
LOG_ZERO = -800.0
LOWEST = {torch.float32: -87.0, torch.float64: -708.0}


def exp_(z: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """exp of logits less their maximum. ``z`` stops where it would be subnormal, or 0 by underflow:
    both take a hundred times longer, and a few 1e-38 beside a sum of 1 or more are nothing."""
    return torch.exp(z.clamp_(min=LOWEST[z.dtype]), out=out)


def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(x)) to full precision (torch's turns linear at 20)."""
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


class FoldState(NamedTuple):
    """Of each row; "others" are all ids but the target.

    The two logits are in the backend's unit: after the temperature in PyTorch, before it in Triton.
    """

    target_logit: torch.Tensor
    max: torch.Tensor  # of the others
    sum: torch.Tensor  # of exp(z - max), others
    dev: torch.Tensor  # of (z - max) * exp(z - max), others


class Fold:
    """Running softmax of a block of rows."""

    def __init__(
        self, targets: torch.Tensor, dtype: torch.dtype, collector: Collector | None = None
    ) -> None:
        self.targets, self.collector = targets, collector
        self.target_logit = targets.new_full(targets.shape, float("-inf"), dtype=dtype)
        self.max = self.target_logit
        self.sum: torch.Tensor | None = None
        self.dev: torch.Tensor | None = None

    def add(self, z: torch.Tensor, start: int, scratch: torch.Tensor) -> None:
        """Folds in the logits ``z`` [rows, n] of ids start..start+n-1; ``z`` is used up."""
        inside, column, at_target = target_entry(z, self.targets, start)
        self.target_logit = torch.where(inside, at_target, self.target_logit)
        z.scatter_(1, column, at_target.masked_fill(inside, float("-inf"))[:, None])
        top = z.amax(1)
        new_max = torch.maximum(self.max, top)
        # Nothing seen yet but -inf: any finite shift will do.
        shift = new_max.clamp(min=torch.finfo(z.dtype).min)
        exp = exp_(z.sub_(shift[:, None]), scratch)
        total = exp.sum(1)
        if self.sum is not None and self.dev is not None:
            step = (self.max - shift).clamp_(min=LOG_ZERO)
            scale = step.exp()
            before = (self.dev + step * self.sum) * scale
            total = self.sum * scale + total
        if self.collector is not None:
            self.collector.add(z, shift, top, total, start)
        dev = z.mul_(exp).sum(1)
        self.dev = dev if self.dev is None else before + dev
        self.sum, self.max = total, new_max

    def state(self) -> FoldState:
        assert self.sum is not None and self.dev is not None
        return FoldState(self.target_logit, self.max, self.sum, self.dev)


def finish(state: FoldState, temperature: float | torch.Tensor = 1.0) -> SoftmaxStats:
    """The softmax's statistics, when every tile has been folded in.

    ``temperature``: by which the logits of ``state`` have still to be divided (``sum`` and ``dev``
    are after it). The difference of two logits is divided, not each: that rounds less.
    """

    def cooled(x: torch.Tensor) -> torch.Tensor:
        if isinstance(temperature, torch.Tensor):
            return x / temperature.to(x.dtype)
        return x if temperature == 1.0 else x / temperature

    z, big = state.target_logit, torch.finfo(state.target_logit.dtype).max
    log_sum = state.sum.log()
    # lse of the others - z; the two large numbers first, whose difference rounds nothing near 0.
    gap = cooled(state.max.clamp(min=-big) - z) + log_sum
    logprobs = -softplus(gap)
    gap = gap.clamp(-big, big)  # so that probability 0 times its log is 0
    p, q = torch.sigmoid(-gap), torch.sigmoid(gap)
    inner = (log_sum - state.dev / state.sum).masked_fill(state.sum == 0, 0.0)
    entropy = p * softplus(gap) + q * softplus(-gap) + q * inner
    top = torch.maximum(state.max, z)
    shift = top.clamp(min=-big)
    step = cooled(state.max - shift).clamp(min=LOG_ZERO)
    log_sum = (state.sum * step.exp() + cooled(z - shift).exp()).log()
    return SoftmaxStats(logprobs, entropy, top, log_sum)


def target_entry(
    z: torch.Tensor, targets: torch.Tensor, start: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whether each row's target is in the tile; its column [rows, 1] (or any), and ``z`` there."""
    column = targets - start
    clamped = column.clamp(0, z.shape[1] - 1)
    at = clamped[:, None]
    return column == clamped, at, z.gather(1, at)[:, 0]


class GradientRule(NamedTuple):
    """What turns a row's logits into their gradient.

    ``dz_j = g_logp (1[j=y] - p_j) - g_H p_j (log p_j + H)``, divided by the temperature, comes to
    ``exp(z_j - max) * (slope * (z_j - max) + offset)``, and ``at_target`` at the target (with
    ``1 - p_y`` as ``-expm1(log p_y)``).
    """

    max: torch.Tensor  # largest logit, in the backend's unit (FoldState)
    at_target: torch.Tensor
    offset: torch.Tensor
    slope: torch.Tensor | None  # None: no gradient comes from the entropy


def gradient_rule(
    stats: SoftmaxStats,
    grad_logprobs: torch.Tensor,
    grad_entropy: torch.Tensor | None,
    temperature: float | torch.Tensor,
) -> GradientRule:
    """Rule of all rows, from what forward saved and the gradients that come in."""
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.to(grad_logprobs.dtype)
    at_target = -grad_logprobs * torch.expm1(stats.logprobs)
    scale = torch.exp(-stats.log_sum) / temperature
    if grad_entropy is None:
        return GradientRule(stats.max, at_target / temperature, -grad_logprobs * scale, None)
    logprobs = stats.logprobs.clamp(min=LOG_ZERO)
    at_target = at_target - grad_entropy * logprobs.exp() * (logprobs + stats.entropy)
    offset = grad_entropy * (stats.log_sum - stats.entropy) - grad_logprobs
    return GradientRule(stats.max, at_target / temperature, offset * scale, -grad_entropy * scale)


def logit_gradient(
    z: torch.Tensor, targets: torch.Tensor, start: int, rule: GradientRule, scratch: torch.Tensor
) -> torch.Tensor:
    """Gradient for the logits ``z`` of ids start.. before the division by the temperature.

    ``z`` and ``scratch`` are used up; the result is ``scratch``.
    """
    inside, column, _ = target_entry(z, targets, start)
    grad = exp_(z.sub_(rule.max[:, None]), scratch)
    torch.threshold_(grad, 2 * torch.finfo(z.dtype).tiny, 0)
    if rule.slope is None:
        grad.mul_(rule.offset[:, None])
    else:
        grad.mul_(z.mul_(rule.slope[:, None]).add_(rule.offset[:, None]))
    value = torch.where(inside, rule.at_target, grad.gather(1, column)[:, 0])
    return grad.scatter_(1, column, value[:, None])
