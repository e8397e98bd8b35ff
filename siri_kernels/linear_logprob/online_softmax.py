"""Online softmax: a softmax over a vocabulary that is seen one tile at a time.

The running maximum and sums are those of Milakov and Gimelshein, "Online normalizer calculation for
softmax" (2018), with a third sum for the entropy.

The target is kept out of the running sums. Its log-prob is then ``-softplus(lse of others - z)``:
right where ``z - lse`` has long rounded to 0, and never positive. The entropy follows by the chain
rule, ``H = H(target or not) + (1 - p) * H(others)``: a sum of terms that are never negative, so
nothing cancels whatever the size of the logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from siri_kernels.linear_logprob.top_entries import Collector
from siri_kernels.linear_logprob.types import SoftmaxStats, select

# exp of it is 0 in float64 too; finite, so that 0 * log 0 is 0 and not NaN.
LOG_ZERO = -800.0
_LOWEST = {torch.float32: -87.0, torch.float64: -708.0}


def _exp(z: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Exponentials of logits less their maximum.

    ``z`` stops where its exponential would be subnormal, or 0 by underflow. Both take a hundred
    times longer, and a few 1e-38 are nothing beside a sum of 1 or more.
    """
    return torch.exp(z.clamp_(min=_LOWEST[z.dtype]), out=out)


def _softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(x)) to full precision (torch's turns linear at 20)."""
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


class SoftmaxState(NamedTuple):
    """Running state of each token; "others" are all ids but the target.

    Logits are in the backend's unit: after the temperature in PyTorch, before it in Triton.

    Attributes:
        target_logit: [T].
        max: [T] largest logit of the others.
        sum: [T] sum of exp(z - max) over the others.
        dev: [T] sum of (z - max) * exp(z - max) over the others.
    """

    target_logit: torch.Tensor
    max: torch.Tensor
    sum: torch.Tensor
    dev: torch.Tensor


class OnlineSoftmax:
    """Online softmax of a block of tokens.

    Args:
        targets: [T] int64.
        dtype: of logits and sums.
        collector: what saves the top entries of these tokens, or None.
    """

    def __init__(
        self, targets: torch.Tensor, dtype: torch.dtype, collector: Collector | None = None
    ) -> None:
        self.targets, self.collector = targets, collector
        self.target_logit = targets.new_full(targets.shape, float("-inf"), dtype=dtype)
        self.max = self.target_logit
        self.sum: torch.Tensor | None = None
        self.dev: torch.Tensor | None = None

    def update(self, z: torch.Tensor, start: int, scratch: torch.Tensor) -> None:
        """Takes in a tile of logits.

        Args:
            z: [T, n] logits of ids start..start+n-1; overwritten.
            start: first id of the tile.
            scratch: [T, n]; overwritten.
        """
        inside, column, at_target = _target_entry(z, self.targets, start)
        self.target_logit = torch.where(inside, at_target, self.target_logit)
        z.scatter_(1, column, at_target.masked_fill(inside, float("-inf"))[:, None])
        top = z.amax(1)
        new_max = torch.maximum(self.max, top)
        # Nothing seen yet but -inf: any finite shift will do.
        shift = new_max.clamp(min=torch.finfo(z.dtype).min)
        exp = _exp(z.sub_(shift[:, None]), scratch)
        total = exp.sum(1)
        if self.sum is not None and self.dev is not None:
            step = (self.max - shift).clamp_(min=LOG_ZERO)
            scale = step.exp()
            before = (self.dev + step * self.sum) * scale
            total = self.sum * scale + total
        if self.collector is not None:
            self.collector.add(z, shift, top, total, start, exp)
        dev = z.mul_(exp).sum(1)
        self.dev = dev if self.dev is None else before + dev
        self.sum, self.max = total, new_max

    def state(self) -> SoftmaxState:
        """The state after one tile or more."""
        assert self.sum is not None and self.dev is not None
        return SoftmaxState(self.target_logit, self.max, self.sum, self.dev)


def finish(state: SoftmaxState, temperature: float | torch.Tensor = 1.0) -> SoftmaxStats:
    """The softmax's statistics, after the last tile.

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
    logprobs = -_softplus(gap)
    gap = gap.clamp(-big, big)  # so that probability 0 times its log is 0
    p, q = torch.sigmoid(-gap), torch.sigmoid(gap)
    inner = (log_sum - state.dev / state.sum).masked_fill(state.sum == 0, 0.0)
    entropy = p * _softplus(gap) + q * _softplus(-gap) + q * inner
    top = torch.maximum(state.max, z)
    shift = top.clamp(min=-big)
    step = cooled(state.max - shift).clamp(min=LOG_ZERO)
    log_sum = (state.sum * step.exp() + cooled(z - shift).exp()).log()
    return SoftmaxStats(logprobs, entropy, top, log_sum)


def _target_entry(
    z: torch.Tensor, targets: torch.Tensor, start: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whether each token's target is in the tile; its column [T, 1] (or any), and ``z`` there."""
    column = targets - start
    clamped = column.clamp(0, z.shape[1] - 1)
    at = clamped[:, None]
    return column == clamped, at, z.gather(1, at)[:, 0]


class GradientRule(NamedTuple):
    """The rule that turns a token's logits into their gradient.

    ``dz_j = g_logp (1[j=y] - p_j) - g_H p_j (log p_j + H)``, divided by the temperature, comes to
    ``exp(z_j - max) * (slope * (z_j - max) + offset)``, and ``at_target`` at the target (with
    ``1 - p_y`` as ``-expm1(log p_y)``).

    Attributes:
        max: [T] largest logit, in the backend's unit (see :class:`SoftmaxState`).
        at_target: [T].
        offset: [T].
        slope: [T]; None: no gradient comes from the entropy.
    """

    max: torch.Tensor
    at_target: torch.Tensor
    offset: torch.Tensor
    slope: torch.Tensor | None

    def select(self, index: torch.Tensor | None) -> GradientRule:
        """The rule of the tokens ``index`` (None: all of them)."""
        return GradientRule(*select(index, *self))


def gradient_rule(
    stats: SoftmaxStats,
    grad_logprobs: torch.Tensor,
    grad_entropy: torch.Tensor | None,
    temperature: float | torch.Tensor,
) -> GradientRule:
    """The rule of all tokens, from what forward saved and the incoming gradients.

    Args:
        stats: of the tokens.
        grad_logprobs: [T] gradient of the log-probs.
        grad_entropy: [T] gradient of the entropy, or None.
        temperature: a number, or [T].
    """
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
    """Gradient of a tile of logits, as they are before the division by the temperature.

    Args:
        z: [T, n] logits of ids start..start+n-1, after the temperature; overwritten.
        targets: [T] int64.
        start: first id of the tile.
        rule: of the tokens.
        scratch: [T, n]; overwritten.

    Returns:
        ``scratch``, which holds the gradient.
    """
    inside, column, _ = _target_entry(z, targets, start)
    grad = _exp(z.sub_(rule.max[:, None]), scratch)
    torch.threshold_(grad, 2 * torch.finfo(z.dtype).tiny, 0)
    if rule.slope is None:
        grad.mul_(rule.offset[:, None])
    else:
        grad.mul_(z.mul_(rule.slope[:, None]).add_(rule.offset[:, None]))
    value = torch.where(inside, rule.at_target, grad.gather(1, column)[:, 0])
    return grad.scatter_(1, column, value[:, None])
