"""Inputs, options and results of the policy loss."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch

# Every difference of log-probs is clamped to +-20 before anything else: exp(20) = 5e8 is far past
# any clip bound and far from overflow. verl does the same; TRL and Liger do not clamp.
LOG_RATIO_LIMIT = 20.0

# An infinite log-prob stands for this: finite, so that no difference is infinity - infinity, and
# past every clamp.
LARGE = 1e30


class PolicyLoss(NamedTuple):
    """Loss, 0-d and differentiable, and metrics, 0-d without gradient on the same device."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]


@dataclass(frozen=True)
class RolloutCorrection:
    """How a weight ``w = pi_old / pi_rollout`` corrects for a sampler that is not the policy.

    It multiplies the objective, never the KL or the entropy bonus, and gets no gradient. Its tokens
    stay in every denominator.

    Args:
        mode: "truncate": w clamped to [low, high] (TIS); "mask": w where low <= w <= high, else 0
            (MIS, IcePop); "reject": 1 where low <= w <= high, else 0 (rejection sampling).
        level: "token": w is the token's own; "sequence": the product over the sequence's unmasked
            tokens; "geometric": their geometric mean.
        high: number > 0.
        low: number >= 0, at most ``high``.
    """

    mode: str = "truncate"
    level: str = "token"
    high: float = 2.0
    low: float = 0.0


# Names for the usual ones, with the bounds of their authors or of the trainer that has them.
ROLLOUT_CORRECTIONS = {
    "tis": RolloutCorrection("truncate", "token", high=2.0),  # verl's default
    "mis": RolloutCorrection("mask", "sequence", high=3.0),  # TRL's default
    "icepop": RolloutCorrection("mask", "token", high=5.0, low=0.5),
}


class LossInputs(NamedTuple):
    """The tensors of a call.

    Args:
        logprobs: [T].
        old_logprobs: [T].
        advantages: [B] or [T].
        cu_seqlens: [B+1] int32.
        mask: [T] bool, or None.
        rollout_logprobs: [T], or None.
        ref_logprobs: [T], or None.
        entropy: [T], or None.
    """

    logprobs: torch.Tensor
    old_logprobs: torch.Tensor
    advantages: torch.Tensor
    cu_seqlens: torch.Tensor
    mask: torch.Tensor | None
    rollout_logprobs: torch.Tensor | None
    ref_logprobs: torch.Tensor | None
    entropy: torch.Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all arithmetic."""
        return torch.float64 if self.logprobs.dtype == torch.float64 else torch.float32

    @property
    def sequences(self) -> int:
        """B."""
        return self.cu_seqlens.size(0) - 1

    @property
    def advantage_per_token(self) -> bool:
        """False for advantages [B], also where T = B."""
        return self.advantages.size(0) != self.sequences


@dataclass(frozen=True)
class LossOptions:
    """The options of :func:`siri_kernels.policy_loss`, which describes them, checked."""

    objective: str
    clip_low: float
    clip_high: float
    dual_clip: float | None
    delta: float | None
    cispo_bounds: str
    sapo_tau: tuple[float, float]
    ratio: str
    aggregation: str
    denominator: float | torch.Tensor | None
    correction: RolloutCorrection | None
    off_policy_threshold: float | None
    kl_coef: float
    kl_estimator: str
    kl_unbiased: bool
    kl_limit: float | None
    entropy_coef: float

    @functools.cached_property
    def constant(self) -> LossOptions:
        """The same without the denominator, which is another one in every step.

        What follows from the other options is kept by it.
        """
        return dataclasses.replace(self, denominator=None)

    def with_denominator(self, denominator: float | torch.Tensor | None) -> LossOptions:
        """These options, which have none, with another denominator."""
        if denominator is None:
            return self
        options = object.__new__(LossOptions)  # an initialiser would cost ten times as much
        options.__dict__.update(self.__dict__, denominator=denominator, constant=self)
        return options

    @property
    def bounds(self) -> tuple[float, float]:
        """The bounds of the ratio; for GMPO, of the token's log-ratio."""
        if self.objective == "gmpo":
            return -self.clip_low, self.clip_high
        if self.objective == "cispo" and self.cispo_bounds == "trl":
            return 0.0, self.clip_high
        return 1 - self.clip_low, 1 + self.clip_high

    @property
    def ceiling(self) -> float | None:
        """The loss of a token with A < 0 is at most ``-ceiling * A``.

        ``delta`` caps the ratio before the minimum with the clipped one is taken. As it is at least
        1 + clip_high, that is dual clip for A < 0, and for A > 0 it changes nothing.
        """
        return self.dual_clip if self.delta is None else self.delta

    @property
    def sequence_ratio(self) -> bool:
        """Whether a token's ratio is that of its sequence."""
        return self.ratio == "sequence" or self.objective == "gmpo"

    @property
    def needs_sequences(self) -> bool:
        """Whether a token's loss depends on the other tokens of its sequence."""
        by_weight = self.correction is not None and self.correction.level != "token"
        return self.sequence_ratio or by_weight or self.off_policy_threshold is not None

    @property
    def with_kl(self) -> bool:
        """Whether the loss has a KL term."""
        return self.kl_coef != 0


def over_zero(divisor: torch.Tensor) -> torch.Tensor:
    """Infinity for a count of 0, so that loss and gradient of a step without tokens are 0.

    The count need not be read on the host.
    """
    return divisor.masked_fill(divisor == 0, float("inf"))


def metric_names(x: LossInputs, off_policy: bool) -> list[str]:
    """The metrics of a call, in the order in which the backends hold them."""
    names = ["clip_frac_low", "clip_frac_high", "ratio_mean", "ratio_max", "approx_kl", "tokens"]
    if x.entropy is not None:
        names.append("entropy")
    if x.ref_logprobs is not None:
        names.append("ref_kl")
    if x.rollout_logprobs is not None:
        names += ["rollout_kl", "rollout_weight_mean"]
    if off_policy:
        names.append("off_policy_frac")
    return names
