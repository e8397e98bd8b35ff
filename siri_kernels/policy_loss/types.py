"""What goes in and comes out of the policy loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

# Before exp: exp(20) = 5e8 is far past any clip bound and far from overflow. As verl.
LOG_RATIO_LIMIT = 20.0


class PolicyLoss(NamedTuple):
    """Loss, 0-d and differentiable, and metrics, 0-d without gradient on the same device."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]


@dataclass(frozen=True)
class LossInputs:
    """The tensors, checked; the ones per token are [T]."""

    logprobs: torch.Tensor
    old_logprobs: torch.Tensor
    advantages: torch.Tensor  # [B] or [T]
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
    def advantage_per_token(self) -> bool:
        """False when the shape says [B], also where T = B."""
        return len(self.advantages) != len(self.cu_seqlens) - 1


@dataclass(frozen=True)
class LossOptions:
    """The numbers and names, checked."""

    clip_low: float
    clip_high: float
    dual_clip: float | None
    ratio: str
    aggregation: str
    denominator: float | torch.Tensor | None
    kl_coef: float
    kl_estimator: str
    entropy_coef: float
