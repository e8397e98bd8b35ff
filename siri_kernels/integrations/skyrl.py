"""SkyRL (0.4): policy loss ``siri`` and advantage estimator ``siri_grpo`` in its registries.

Call :func:`register` before the run starts, then set ``trainer.algorithm.policy_loss_type=siri``
and ``trainer.algorithm.advantage_estimator=siri_grpo``. SkyRL ships both to its workers.
"""

from __future__ import annotations

from typing import Any

import torch

from siri_kernels.group_advantages import group_advantages
from siri_kernels.integrations._padded import padded_policy_loss
from siri_kernels.policy_loss import RolloutCorrection

LOSS, ESTIMATOR = "siri", "siri_grpo"

_UNKNOWN_CORRECTIONS = (
    "sequence_mask_metric", "outlier_token_is_threshold_low", "outlier_token_is_threshold_high",
    "token_mask_is_threshold_low", "token_mask_is_threshold_high",
)  # fmt: skip


def register() -> None:
    """Put both into SkyRL's registries; a second call changes nothing.

    Raises:
        ImportError: SkyRL is not installed.
    """
    from skyrl.backends.skyrl_train.utils.ppo_utils import (
        AdvantageEstimatorRegistry,
        PolicyLossRegistry,
    )

    if LOSS not in PolicyLossRegistry.list_available():
        PolicyLossRegistry.register(LOSS, siri_policy_loss)
    if ESTIMATOR not in AdvantageEstimatorRegistry.list_available():
        AdvantageEstimatorRegistry.register(ESTIMATOR, siri_grpo_advantage)


def siri_policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    config: Any,
    loss_mask: torch.Tensor | None = None,
    rollout_logprobs: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The clipped loss, summed; SkyRL has already divided the advantages by ``loss_reduction``.

    Args:
        log_probs: [B, L].
        old_log_probs: [B, L].
        advantages: [B, L].
        config: SkyRL's ``AlgorithmConfig``: eps_clip_low, eps_clip_high and, of
            off_policy_correction, tis_ratio_type "token" or "sequence" with its bound.
        loss_mask: [B, L], 1 at unmasked tokens; None: all.
        rollout_logprobs: [B, L], of the sampler; None: no correction.

    Returns:
        The loss, 0-d, and SkyRL's metrics as numbers: ``clip_ratio`` and ours under ``siri/``.

    Raises:
        ValueError: a rejection filter of off_policy_correction is set, naming it.
    """
    mask = torch.ones_like(log_probs) if loss_mask is None else loss_mask
    correction = None if rollout_logprobs is None else _correction(config.off_policy_correction)
    out = padded_policy_loss(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        rollout=rollout_logprobs,
        rollout_correction=correction,
        clip_low=config.eps_clip_low,
        clip_high=config.eps_clip_high,
        aggregation="token-sum-norm",
        denominator=1.0,
    )
    names = [name for name in out.metrics if name != "tokens"]
    values = torch.stack([out.metrics[name] for name in names]).tolist()  # one copy to the host
    metrics = {f"siri/{name}": value for name, value in zip(names, values, strict=True)}
    metrics["clip_ratio"] = metrics["siri/clip_frac_low"] + metrics["siri/clip_frac_high"]
    return out.loss, metrics


def _correction(options: Any) -> RolloutCorrection | None:
    for name in _UNKNOWN_CORRECTIONS:
        if getattr(options, name) is not None:
            raise ValueError(
                f"off_policy_correction.{name}: got {getattr(options, name)}; policy loss "
                f"{LOSS!r} takes tis_ratio_type alone: SkyRL's filters take tokens out of the mask"
            )
    kind = options.tis_ratio_type
    if kind is None:
        return None
    if kind not in ("token", "sequence"):
        raise ValueError(
            f"off_policy_correction.tis_ratio_type: got {kind!r}; takes 'token' or 'sequence'"
        )
    return RolloutCorrection("truncate", kind, high=getattr(options, f"{kind}_tis_ratio_clip_high"))


def siri_grpo_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: Any,
    epsilon: float = 1e-6,
    grpo_norm_by_std: bool = True,
    **unused: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """GRPO's advantages without a loop over responses; a constant group has exactly 0.

    Args:
        token_level_rewards: [B, L]; a response's reward is their sum.
        response_mask: [B, L].
        index: [B], equal for responses to the same question (``numpy`` array of strings).
        epsilon: as in SkyRL's ``grpo``.
        grpo_norm_by_std: as in SkyRL's ``grpo``.
        **unused: other arguments of SkyRL (values, gamma, lambd, config).

    Returns:
        Advantages and returns, the same [B, L] tensor. A group of one has advantage 0; SkyRL's
        ``grpo`` gives it its reward.
    """
    names: dict[Any, int] = {}
    numbers = [names.setdefault(name, len(names)) for name in index]
    ids = torch.tensor(numbers, dtype=torch.int64, device="cpu")
    advantages = group_advantages(
        token_level_rewards.sum(-1),
        ids,
        scale="group_std" if grpo_norm_by_std else "none",
        eps=epsilon,
        num_groups=len(names),
    ).advantages
    spread = advantages[:, None] * response_mask
    return spread, spread
