"""prime-rl: SIRI's loss as the trainer's custom loss.

Under ``[trainer.loss]``: ``type = "custom"`` and
``import_path = "siri_kernels.integrations.prime_rl.siri_loss"``; options under ``kwargs``.
Read against prime-rl at 559b447 (2026-08-21),
``src/prime_rl/trainer/rl/loss.py``: one sample at a time, unpadded; the trainer sums the losses and
divides by the step's tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from siri_kernels.policy_loss import PolicyLoss, policy_loss


def siri_loss(
    inputs: Any,
    *,
    objective: str = "clip",
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
    ratio: str = "token",
) -> PolicyLoss:
    """The sum over a sample's tokens of the clipped loss, in place of prime-rl's DPPO.

    Args:
        inputs: prime-rl's ``LossInputs``: trainer_logprobs, inference_logprobs and advantages [T],
            loss_mask [T] bool, loss_weights [T] or None. The ratio is to inference_logprobs:
            prime-rl recomputes no others. ``ref_logprobs`` are not read, as in its own rl loss.
        objective: of :func:`siri_kernels.policy_loss`.
        clip_low: of ``policy_loss``.
        clip_high: of ``policy_loss``.
        dual_clip: of ``policy_loss``.
        ratio: of ``policy_loss``.

    Returns:
        PolicyLoss: with the two attributes of prime-rl's ``LossOutputs``, loss and metrics.

    Raises:
        TypeError: ``inputs`` lacks one of these, because prime-rl's interface changed.
        ValueError: as ``policy_loss``.
    """
    try:
        logprobs, advantages = inputs.trainer_logprobs, inputs.advantages
        old, mask, weights = inputs.inference_logprobs, inputs.loss_mask, inputs.loss_weights
    except AttributeError as error:
        raise TypeError(f"siri_loss: prime-rl's LossInputs has another form: {error}") from None
    if weights is not None:
        advantages = advantages * weights  # weights >= 0 pass through the minimum
    return policy_loss(
        logprobs,
        old,
        advantages,
        torch.tensor([0, len(logprobs)], dtype=torch.int32, device=logprobs.device),
        objective=objective,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        ratio=ratio,
        aggregation="token-sum-norm",
        denominator=1.0,
        mask=mask,
    )
