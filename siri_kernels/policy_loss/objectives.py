"""Value and derivative of each token's loss, in PyTorch; ``portable`` adds them up.

All tensors are [n], of one dtype and finite at unmasked tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from siri_kernels.policy_loss.formulas import OBJECTIVES
from siri_kernels.policy_loss.types import (
    LARGE,
    LOG_RATIO_LIMIT,
    LossOptions,
    RolloutCorrection,
)

BY_HAND = ("clip", "cispo", "sapo", "gmpo", "reinforce")
"""The objectives with derivatives by hand, here and in the Triton kernel."""


class Terms(NamedTuple):
    """Loss and derivative of n tokens.

    Args:
        loss: [n].
        slope: [n], the derivative of the loss by the token's log-prob.
        clipped_low: [n] bool, where the lower clip is active; None: nowhere.
        clipped_high: [n] bool, where the upper clip is active; None: nowhere.
    """

    loss: torch.Tensor
    slope: torch.Tensor
    clipped_low: torch.Tensor | None
    clipped_high: torch.Tensor | None


def log_ratio(logprobs: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``logprobs - other`` [n], clamped, and the same before the clamp."""
    raw = logprobs - finite(other)
    return raw.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT), raw


def finite(values: torch.Tensor) -> torch.Tensor:
    """The same with infinities replaced by +-1e30."""
    return values.clamp(-LARGE, LARGE)


def evidence(ours: torch.Tensor, sampler: torch.Tensor) -> torch.Tensor:
    """``ours`` minus the sampler's log-prob [n]; 0 where the sampler reported none (NaN)."""
    return log_ratio(ours, sampler)[0].nan_to_num_(nan=0.0)


def one_sided(
    x: torch.Tensor, advantages: torch.Tensor, options: LossOptions
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """GMPO's clip of a log-ratio, on the side given by the sign of the advantage.

    Args:
        x: log-ratios [n].
        advantages: [n].
        options: with the bounds.

    Returns:
        The clipped log-ratios, and where the lower and the upper clip are active [n] bool.
    """
    low, high = options.bounds
    clipped_low = (x < low) & (advantages < 0)
    clipped_high = (x > high) & (advantages > 0)
    clipped = x.masked_fill(clipped_low, low).masked_fill(clipped_high, high)
    return clipped.masked_fill(advantages == 0, 0), clipped_low, clipped_high


def objective(
    x: torch.Tensor,
    raw: torch.Tensor,
    ratio: torch.Tensor,
    advantages: torch.Tensor,
    logprobs: torch.Tensor,
    options: LossOptions,
) -> Terms:
    """Loss and derivative of a ratio whose derivative by the token's log-prob is itself.

    That is the token's ratio, and the sequence's in GSPO-token (arXiv 2507.18071 section 4.3).

    Args:
        x: the token's log-ratio [n], clamped.
        raw: the same before the clamp.
        ratio: the token's or the sequence's [n].
        advantages: [n].
        logprobs: [n].
        options: of the loss.
    """
    if options.objective not in BY_HAND:
        return _by_autograd(x, raw, ratio, advantages, logprobs, options)
    low, high = options.bounds
    if options.objective == "clip":
        negative = -advantages
        loss = negative * ratio
        clipped = negative * ratio.clamp(low, high)
        flat = (clipped > loss).logical_or_(x != raw)  # x != raw: past the clamp, or NaN
        slope = loss.masked_fill(flat, 0)
        loss = torch.maximum(loss, clipped)
        if options.ceiling is not None:
            ceiling = negative * options.ceiling
            beyond = (advantages < 0).logical_and_(loss > ceiling)
            loss = torch.where(beyond, ceiling, loss)
            slope.masked_fill_(beyond, 0)
        clipped_low = (ratio < low).logical_and_(advantages < 0)
        clipped_high = (ratio > high).logical_and_(advantages > 0)
        return Terms(loss, slope, clipped_low, clipped_high)
    if options.objective == "cispo":
        slope = -ratio.clamp(low, high) * advantages
        return Terms(*_linear(slope, logprobs), ratio < low, ratio > high)
    if options.objective == "sapo":
        positive, negative_tau = options.sapo_tau
        # Not where() of two numbers: that has the default dtype, which may be one of 16 bits.
        tau = torch.full_like(ratio, negative_tau).masked_fill_(advantages > 0, positive)
        gate = (tau * (ratio - 1)).sigmoid_()
        loss = -advantages * gate * 4 / tau
        slope = -4 * advantages * gate * (1 - gate) * ratio
        return Terms(loss, slope.masked_fill_(x != raw, 0), None, None)
    if options.objective == "gmpo":
        _, clipped_low, clipped_high = one_sided(x, advantages, options)
        loss = -advantages * ratio
        slope = loss.masked_fill(clipped_low | clipped_high | (x != raw), 0)
        return Terms(loss, slope, clipped_low, clipped_high)
    return Terms(*_linear(-advantages, logprobs), None, None)  # reinforce


def _by_autograd(
    x: torch.Tensor,
    raw: torch.Tensor,
    ratio: torch.Tensor,
    advantages: torch.Tensor,
    logprobs: torch.Tensor,
    options: LossOptions,
) -> Terms:
    """The same for an objective without derivatives by hand."""
    known = OBJECTIVES[options.objective]
    with torch.enable_grad():
        of = (logprobs.detach().requires_grad_(), ratio.detach().requires_grad_())
        loss = known.formula(*of, advantages, options)
        by_logprob, by_ratio = torch.autograd.grad(
            loss.sum(), of, allow_unused=True, materialize_grads=True
        )
    slope = by_logprob + (by_ratio * ratio).masked_fill(x != raw, 0)
    if known.clipped is None:
        return Terms(loss.detach(), slope, None, None)
    return Terms(loss.detach(), slope, *known.clipped(x, ratio, advantages, options))


def _linear(slope: torch.Tensor, logprobs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    bounded = finite(logprobs)
    return slope * bounded, slope.masked_fill(bounded != logprobs, 0)


def correction_weight(gap: torch.Tensor, correction: RolloutCorrection) -> torch.Tensor:
    """The correction's weight from the log of the raw weight, at any level."""
    weight = gap.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp_()
    if correction.mode == "truncate":
        return weight.clamp_(correction.low, correction.high)
    lost = (weight < correction.low).logical_or_(weight > correction.high)
    if correction.mode == "reject":
        return (~lost).to(weight.dtype)
    return weight.masked_fill_(lost, 0)


def kl(
    logprobs: torch.Tensor, ref: torch.Tensor, options: LossOptions
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Estimate of KL(policy || reference), its derivative, and the sum of the two.

    The sum is the derivative of the product of estimate and ratio, divided by the ratio. For k3 the
    sum is delta exactly, while adding the two would lose digits.

    Args:
        logprobs: [n].
        ref: log-probs of the reference [n].
        options: with the estimator and its limit.
    """
    delta, raw = log_ratio(logprobs, ref)
    if options.kl_estimator == "k1":
        value, slope, both = delta, torch.ones_like(delta), delta + 1
    elif options.kl_estimator == "k2":
        value, slope = delta.square() / 2, delta
        both = value + slope
    else:  # k3
        grown = (-delta).expm1_()
        value, slope, both = grown + delta, -grown, delta
    flat = delta != raw
    if options.kl_limit is not None:
        flat.logical_or_(value.abs() > options.kl_limit)
        value = value.clamp(-options.kl_limit, options.kl_limit)
    return value, slope.masked_fill(flat, 0), torch.where(flat, value, both)
