"""NeMo-RL: SIRI's loss as one of its loss functions.

NeMo-RL builds its own loss in ``setup``; a run script passes ours to ``grpo_train`` instead:
``grpo_train(policy, ..., loss_fn=SiriLoss(), ...)``. Read against NeMo-RL at 7ea279a (2026-08-22),
``nemo_rl/algorithms/loss/interfaces.py``.
"""

from __future__ import annotations

from typing import Any

import torch

from siri_kernels.integrations._padded import padded_policy_loss
from siri_kernels.policy_loss import RolloutCorrection


class SiriLoss:
    """NeMo-RL's ``LossFunction`` protocol: the clipped loss, its sum divided by the step's tokens.

    It works with its sequence packing (one call a sequence). Log-probs come from NeMo-RL,
    with its tensor and context parallelism and its own fused head.

    Args:
        clip_low: of :func:`siri_kernels.policy_loss`.
        clip_high: of ``policy_loss``.
        dual_clip: of ``policy_loss``.
        ratio: of ``policy_loss``.
        rollout_correction: of ``policy_loss``; the sampler's log-probs are
            ``data["generation_logprobs"]``.
        use_fused_linear_logprobs: as in NeMo-RL's losses: the model returns log-probs.
    """

    reference_policy_kl_penalty = 0.0
    """NeMo-RL reads it and builds a reference model if it is not 0."""

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        dual_clip: float | None = None,
        ratio: str = "token",
        rollout_correction: RolloutCorrection | str | None = None,
        use_fused_linear_logprobs: bool = False,
    ) -> None:
        self.options: dict[str, Any] = {
            "clip_low": clip_low,
            "clip_high": clip_high,
            "dual_clip": dual_clip,
            "ratio": ratio,
            "rollout_correction": rollout_correction,
        }
        self.use_fused_linear_logprobs = use_fused_linear_logprobs

    @property
    def loss_type(self) -> Any:
        """Makes NeMo-RL scale gradients by tokens, not by sequences."""
        from nemo_rl.algorithms.loss.interfaces import LossType

        return LossType.TOKEN_LEVEL

    @property
    def input_type(self) -> Any:
        """Makes NeMo-RL pass log-probs, not logits."""
        from nemo_rl.algorithms.loss.interfaces import LossInputType

        return LossInputType.LOGPROB

    def __call__(
        self,
        next_token_logprobs: torch.Tensor,
        data: Any,
        global_valid_seqs: torch.Tensor,
        global_valid_toks: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of a micro-batch; NeMo-RL adds them up.

        Args:
            next_token_logprobs: [B, L-1].
            data: prev_logprobs, generation_logprobs, advantages and token_mask [B, L], of which the
                first column is left out, and sample_mask [B].
            global_valid_seqs: not used.
            global_valid_toks: 0-d, the step's tokens over all ranks.

        Returns:
            Loss 0-d, and numbers whose sums over micro-batches are the step's means.
        """
        mask = data["token_mask"][:, 1:] * data["sample_mask"][:, None]
        corrected = self.options["rollout_correction"] is not None
        out = padded_policy_loss(
            next_token_logprobs,
            data["prev_logprobs"][:, 1:],
            data["advantages"][:, 1:],
            mask,
            rollout=data["generation_logprobs"][:, 1:] if corrected else None,
            aggregation="token-sum-norm",
            denominator=global_valid_toks.clamp(min=1),
            **self.options,
        )
        m = out.metrics
        share = m["tokens"] / global_valid_toks.clamp(min=1)
        means = {
            "probs_ratio": m["ratio_mean"],
            "siri/clip_frac_low": m["clip_frac_low"],
            "siri/clip_frac_high": m["clip_frac_high"],
            "siri/approx_kl": m["approx_kl"],
        }
        values = torch.stack([out.loss.detach(), *(v * share for v in means.values())]).tolist()
        metrics = dict(zip(("loss", *means), values, strict=True))
        metrics["num_valid_samples"] = float(data["sample_mask"].sum())
        return out.loss, metrics
