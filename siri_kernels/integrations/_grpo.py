"""The losses that TRL and Liger call ``loss_type``, of padded log-probs, by ``policy_loss``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from siri_kernels import varlen
from siri_kernels.integrations._grpo_kl import corrected_sequence_kl
from siri_kernels.policy_loss import PolicyLoss, RolloutCorrection, policy_loss

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")
LEVELS = ("token", "sequence")

# Weights are passed on unchanged: none is clamped, and 0 (a masked token) stays 0 although
# policy_loss clamps log-ratios to +-20.
_AS_GIVEN = RolloutCorrection("mask", "token", high=1e9, low=3e-9)


@dataclass(frozen=True)
class GrpoOptions:
    """Options of TRL's and Liger's constructors; docs/losses.md has the mapping."""

    loss_type: str
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    level: str = "token"
    delta: float | None = None
    beta: float = 0.0
    unbiased_kl: bool = False
    sapo_tau: tuple[float, float] = (1.0, 1.05)
    vespo_pos: tuple[float, float] = (2.0, 3.0)
    vespo_neg: tuple[float, float] = (3.0, 2.0)

    def check(self, op: str) -> None:
        """Refuse options for which ``policy_loss`` differs from TRL and Liger.

        Raises:
            ValueError: an unknown name, or one of those options; ``op`` is named.
        """
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(f"{op}: loss_type must be one of {LOSS_TYPES}; got {self.loss_type!r}")
        if self.level not in LEVELS:
            raise ValueError(
                f"{op}: importance_sampling_level must be one of {LEVELS}; got {self.level!r}"
            )
        clipped = self.loss_type not in ("cispo", "sapo", "vespo")
        if clipped and self.delta is not None and self.delta < 1 + self.epsilon_high:
            raise ValueError(
                f"{op}: delta must be at least 1 + epsilon_high = {1 + self.epsilon_high}; got "
                f"{self.delta}: below, it would cap positive advantages too"
            )


def grpo_loss(
    options: GrpoOptions,
    logprobs: torch.Tensor,
    mask: torch.Tensor,
    advantages: torch.Tensor,
    *,
    old: torch.Tensor | None,
    ref: torch.Tensor | None,
    weights: torch.Tensor | None,
    denominator: float | torch.Tensor | None,
) -> PolicyLoss:
    """Pack and call :func:`siri_kernels.policy_loss`.

    Args:
        options: checked ones.
        logprobs: [B, L], of the policy that learns.
        mask: [B, L] bool, True at unmasked tokens.
        advantages: [B].
        old: [B, L]; None: ``logprobs`` themselves, ratio 1.
        ref: [B, L], needed with ``beta``.
        weights: [B, L] or [B, 1], the sampler's correction; None: 1.
        denominator: of the aggregation; None for ``bnpo``: this call's unmasked tokens.

    Returns:
        PolicyLoss: with ``cispo`` at level "token" also the metric ``cispo_clip_ratio``, the share
        of tokens past the bound with a positive advantage: TRL's and Liger's; ``clip_frac_high``
        counts those with any.
    """
    keep = varlen.pack(logprobs, mask=mask)
    total = len(keep.values)

    def packed(values: torch.Tensor) -> torch.Tensor:
        return varlen.pack(values.expand_as(logprobs), mask=mask, total=total).values

    before = keep.values.detach() if old is None else packed(old)
    kind = options.loss_type
    objective = {"cispo": "cispo", "sapo": "sapo", "vespo": "reinforce"}.get(kind, "clip")
    if kind == "vespo":
        ratio = logprobs.detach() - (logprobs.detach() if old is None else old)
        advantages = advantages * _vespo_weight(options, ratio, mask, advantages, weights)
        weights = None
    elif weights is not None and options.level == "sequence" and kind != "cispo":
        # Their gradient of a sequence's ratio goes through its mean, so the mean weight counts.
        # CISPO's goes through each token's log-prob, so each has its own. Padding may hold NaN.
        weights = torch.where(mask, weights, 0.0).sum(1, keepdim=True) / mask.sum(
            1, keepdim=True
        ).clamp(min=1)
    rollout = None if weights is None else before - packed(weights).float().log()
    aggregation = {
        "grpo": "seq-mean-token-mean",
        "sapo": "seq-mean-token-mean",
        "dr_grpo": "token-sum-norm",
        "luspo": "seq-mean-token-sum",
    }.get(kind, "token-mean")
    by_sequence = bool(options.beta) and options.unbiased_kl and options.level == "sequence"
    by_sequence = by_sequence and ref is not None
    beta = 0.0 if by_sequence else options.beta
    out = policy_loss(
        keep.values,
        before,
        advantages,
        keep.cu_seqlens,
        objective=objective,
        clip_low=options.epsilon_low,
        clip_high=options.epsilon_high,
        delta=options.delta if objective == "clip" else None,
        cispo_bounds="trl",
        sapo_tau=options.sapo_tau,
        ratio=options.level,
        aggregation=aggregation,
        denominator=denominator,
        rollout_logprobs=rollout,
        rollout_correction=None if rollout is None else _AS_GIVEN,
        ref_logprobs=None if ref is None or not beta else packed(ref),
        kl_coef=beta,
        kl_unbiased=options.unbiased_kl and bool(beta),
    )
    if by_sequence:
        assert ref is not None
        kl, mean = corrected_sequence_kl(kind, logprobs, old, ref, mask, denominator)
        out.metrics["ref_kl"] = mean
        out = PolicyLoss(out.loss + options.beta * kl, out.metrics)
    if kind == "cispo" and options.level == "token":
        with torch.no_grad():
            ratio = (logprobs - (logprobs if old is None else old)).exp()
            past = (ratio > options.epsilon_high) & (advantages[:, None] > 0) & mask
            share = past.sum().float() / mask.sum().clamp(min=1)
            out.metrics["cispo_clip_ratio"] = share
    return out


def _vespo_weight(
    options: GrpoOptions,
    log_ratio: torch.Tensor,
    mask: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor | None,
) -> torch.Tensor:
    """VESPO's ``exp(lambda) w^k exp(-lambda w)``, a constant [B]; w the sequence's ratio.

    ``k`` and ``lambda`` by the sign of the advantage; the sampler's correction is a factor of w.
    """
    low = math.log(1e-8)
    log_w = log_ratio.clamp(-20, 20).masked_fill(~mask, 0).sum(1)
    if weights is not None:
        if weights.shape == mask.shape:  # TRL and Liger sum over padding too, where TRL has 1
            weights = torch.where(mask | weights.isfinite(), weights, 1.0)
        log_w = log_w + weights.log().clamp(low, 20).sum(1)
    log_w = log_w.clamp(low, 20)
    k, rate = (
        torch.full_like(log_w, neg).masked_fill(advantages >= 0, pos)
        for pos, neg in zip(options.vespo_pos, options.vespo_neg, strict=True)
    )
    rate = rate.clamp(min=1e-4)
    return (rate + k * log_w - rate * log_w.exp()).exp().nan_to_num(0.0, 0.0, 0.0)
