"""The registry of the objectives: each is a formula of a token's loss.

Autograd differentiates a formula; the reference backend uses them all. ``objectives`` has the
derivatives of some by hand, and the Triton kernel has the same ones. For any other objective
``policy_loss`` differentiates the formula, on every device.

To add an objective: write its formula here and put it into ``OBJECTIVES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from siri_kernels.policy_loss.types import LARGE, LossOptions

Formula = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, LossOptions], torch.Tensor]
Clipped = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, LossOptions], tuple[torch.Tensor, torch.Tensor]
]


def _clip(
    logprobs: torch.Tensor, ratio: torch.Tensor, advantage: torch.Tensor, options: LossOptions
) -> torch.Tensor:
    # -min(r A, clip(r) A), bounded by delta or dual_clip
    low, high = options.bounds
    free = ratio if options.delta is None else ratio.clamp(max=options.delta)
    loss = torch.maximum(-advantage * free, -advantage * ratio.clamp(low, high))
    if options.dual_clip is not None:
        capped = torch.minimum(loss, -advantage * options.dual_clip)
        loss = torch.where(advantage < 0, capped, loss)
    return loss


def _cispo(
    logprobs: torch.Tensor, ratio: torch.Tensor, advantage: torch.Tensor, options: LossOptions
) -> torch.Tensor:
    # -w A logprobs with the clipped ratio as a constant weight w
    low, high = options.bounds
    return -ratio.clamp(low, high).detach() * advantage * logprobs.clamp(-LARGE, LARGE)


def _sapo(
    logprobs: torch.Tensor, ratio: torch.Tensor, advantage: torch.Tensor, options: LossOptions
) -> torch.Tensor:
    # -4/tau sigmoid(tau (r - 1)) A
    positive, negative = options.sapo_tau
    tau = torch.full_like(advantage, negative).masked_fill(advantage > 0, positive)
    return -advantage * torch.sigmoid(tau * (ratio - 1)) * 4 / tau


def _gmpo(
    logprobs: torch.Tensor, ratio: torch.Tensor, advantage: torch.Tensor, options: LossOptions
) -> torch.Tensor:
    # -r A; the token ratios in r and their gradients are clipped before
    return -advantage * ratio


def _reinforce(
    logprobs: torch.Tensor, ratio: torch.Tensor, advantage: torch.Tensor, options: LossOptions
) -> torch.Tensor:
    # -A logprobs
    return -advantage * logprobs.clamp(-LARGE, LARGE)


def _past_with_sign(
    log_ratio: torch.Tensor, ratio: torch.Tensor, advantage: torch.Tensor, options: LossOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = options.bounds
    return (ratio < low) & (advantage < 0), (ratio > high) & (advantage > 0)


def _past(
    log_ratio: torch.Tensor, ratio: torch.Tensor, advantage: torch.Tensor, options: LossOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = options.bounds  # the weight is clipped whatever the sign
    return ratio < low, ratio > high


def _log_past_with_sign(
    log_ratio: torch.Tensor, ratio: torch.Tensor, advantage: torch.Tensor, options: LossOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    return _past_with_sign(ratio, log_ratio, advantage, options)


@dataclass(frozen=True)
class Objective:
    """One objective.

    Args:
        formula: the losses of n tokens, from logprobs [n], the ratio [n], the advantages [n] (all
            of one floating-point dtype) and the options. Differentiable with respect to logprobs
            and ratio. It must be 0 where the advantage is 0, because the trainer leaves such
            sequences out.
        clipped: where the clip is active on the low and on the high side, two bool tensors [n],
            from the token's log-ratio [n], the ratio, the advantages and the options; for the
            metrics. None: nowhere.
    """

    formula: Formula
    clipped: Clipped | None = None


OBJECTIVES: dict[str, Objective] = {
    "clip": Objective(_clip, _past_with_sign),
    "cispo": Objective(_cispo, _past),
    "sapo": Objective(_sapo),
    "gmpo": Objective(_gmpo, _log_past_with_sign),
    "reinforce": Objective(_reinforce),
}
"""By the name in ``policy_loss(objective=...)`` and in a recipe's ``loss.objective``."""
