"""The policy loss over packed tokens in vectorised PyTorch, value and gradient in one pass.

Nothing here reads a tensor's value on the host. Sums over sequences are differences of running
counts (integers) or segment reductions, so that every sum has one order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from siri_kernels import varlen
from siri_kernels.policy_loss.types import LOG_RATIO_LIMIT, LossInputs, LossOptions


class LossAndGradient(NamedTuple):
    loss: torch.Tensor
    d_logprobs: torch.Tensor
    d_entropy: torch.Tensor | None
    metrics: dict[str, torch.Tensor]


class _Sequences:
    """Counted tokens, and sums of them by sequence."""

    def __init__(self, x: LossInputs) -> None:
        total = len(x.logprobs)
        self.cu_seqlens = x.cu_seqlens
        self.ids = varlen.sequence_ids(x.cu_seqlens, total)
        mask = x.mask
        self.mask = torch.ones_like(x.logprobs, dtype=torch.bool) if mask is None else mask
        running = torch.cat([x.cu_seqlens.new_zeros(1), self.mask.cumsum(0, dtype=torch.int32)])
        at = running[x.cu_seqlens.long()]
        self.counts = (at[1:] - at[:-1]).to(x.dtype)  # [B]
        self.tokens = running[-1].to(x.dtype)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """[T], 0 where not counted -> [B]; 0 for a sequence without counted tokens."""
        # unsafe: without it torch reads the offsets back to check them.
        sums = torch.segment_reduce(
            values.double(), "sum", offsets=self.cu_seqlens.long(), unsafe=True, initial=0
        )
        return sums.to(values.dtype) / self.counts.clamp(min=1)

    def weights(self, options: LossOptions, dtype: torch.dtype) -> torch.Tensor:
        """[T]: what the aggregation multiplies each token's loss with; 0 where not counted."""
        by_sequence = options.aggregation.startswith("seq-mean")
        divisor: float | torch.Tensor | None = options.denominator
        if divisor is None:
            count = (self.counts > 0).sum().to(dtype) if by_sequence else self.tokens
            divisor = count.clamp(min=1)
        weights = self.mask.to(dtype) / divisor
        if options.aggregation == "seq-mean-token-mean":
            weights = weights / self.counts.clamp(min=1)[self.ids]
        return weights


def policy_loss(x: LossInputs, options: LossOptions) -> LossAndGradient:
    """Loss, its gradient with respect to logprobs and entropy, and metrics."""
    dtype, limit = x.dtype, LOG_RATIO_LIMIT
    sequences = _Sequences(x)
    mask = sequences.mask

    def counted(values: torch.Tensor) -> torch.Tensor:
        # where, not a product: infinity and NaN outside the mask must not come through.
        return torch.where(mask, values, 0)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return counted(values).sum() / sequences.tokens.clamp(min=1)

    logprobs, old = x.logprobs.to(dtype), x.old_logprobs.to(dtype)
    advantages = x.advantages.to(dtype)
    if not x.advantage_per_token:
        advantages = advantages[sequences.ids]
    advantages = counted(advantages)
    token_log_ratio = counted(logprobs - old)
    log_ratio = token_log_ratio
    if options.ratio == "sequence":
        log_ratio = sequences.mean(token_log_ratio)[sequences.ids]
    inside = log_ratio.abs() <= limit
    ratio = log_ratio.clamp(-limit, limit).exp()

    low, high = 1 - options.clip_low, 1 + options.clip_high
    clipped_low = (ratio < low) & (advantages < 0)
    clipped_high = (ratio > high) & (advantages > 0)
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(low, high))
    flat = clipped_low | clipped_high | ~inside
    if options.dual_clip is not None:
        ceiling = -advantages * options.dual_clip
        beyond = (advantages < 0) & (loss > ceiling)
        loss, flat = torch.where(beyond, ceiling, loss), flat | beyond
    d_loss = (-advantages * ratio).masked_fill(flat, 0)

    if x.ref_logprobs is not None and options.kl_coef != 0:
        raw = counted(logprobs - x.ref_logprobs.to(dtype))
        kl, d_kl = _kl(raw, options.kl_estimator)
        loss = loss + options.kl_coef * kl
        d_loss = d_loss + options.kl_coef * d_kl
    d_entropy = None
    weights = sequences.weights(options, dtype)
    if x.entropy is not None and options.entropy_coef != 0:
        loss = loss - options.entropy_coef * counted(x.entropy.to(dtype))
        d_entropy = -options.entropy_coef * weights

    token_log_ratio = token_log_ratio.clamp(-limit, limit)
    metrics = {
        "clip_frac_low": mean(clipped_low.to(dtype)),
        "clip_frac_high": mean(clipped_high.to(dtype)),
        "ratio_mean": mean(ratio),
        "ratio_max": _max(counted(ratio)),
        "approx_kl": mean(token_log_ratio.expm1() - token_log_ratio),
        "tokens": sequences.tokens,
    }
    if x.entropy is not None:
        metrics["entropy"] = mean(x.entropy.to(dtype))
    if x.rollout_logprobs is not None:
        gap = counted(old - x.rollout_logprobs.to(dtype)).clamp(-limit, limit)
        metrics["rollout_kl"] = mean(gap.expm1() - gap)
        metrics["rollout_weight_mean"] = mean(gap.exp())
    # A token that is not counted has loss 0 already, and its weight is 0 too.
    return LossAndGradient((weights * loss).sum(), weights * d_loss, d_entropy, metrics)


def _kl(raw: torch.Tensor, estimator: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimate of KL(policy || reference) from ``raw = logprobs - ref``, and its derivative."""
    delta = raw.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if estimator == "k1":
        value, slope = delta, torch.ones_like(delta)
    elif estimator == "k2":
        value, slope = delta.square() / 2, delta
    else:  # k3
        grown = (-delta).expm1()
        value, slope = grown + delta, -grown
    return value, slope.masked_fill(raw.abs() > LOG_RATIO_LIMIT, 0)


def _max(values: torch.Tensor) -> torch.Tensor:
    """Largest of values >= 0; 0 if there are none."""
    return torch.cat([values, values.new_zeros(1)]).max()
