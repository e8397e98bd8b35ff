"""verl (0.9.1): policy loss ``siri`` and advantage estimator ``siri_grpo``.

Entry point in the group ``verl.plugins``: verl imports this module in every process, drivers and
Ray workers alike, and importing it registers both. A run that names neither does not change.
``verl_head`` replaces verl's own head by ``linear_logprob``, so it is a module of its own.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import numpy as np
import torch

from siri_kernels.group_advantages import group_advantages
from siri_kernels.policy_loss import policy_loss

LOSS, ESTIMATOR = "siri", "siri_grpo"

_log = logging.getLogger(__name__)

# Parameters of a policy loss in 0.9.1, and possible keys of ``config.global_batch_info``.
_LOSS_PARAMETERS = (
    "old_log_prob", "log_prob", "advantages", "response_mask", "loss_agg_mode", "config",
    "rollout_is_weights",
)  # fmt: skip
_AGGREGATION_PARAMETERS = (
    "loss_mat", "loss_mask", "loss_agg_mode", "dp_size", "batch_num_tokens", "global_batch_size",
    "loss_scale_factor",
)  # fmt: skip


def siri_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss ``vanilla`` of verl by :func:`siri_kernels.policy_loss`.

    ``policy_loss.loss_mode=siri`` selects it. Value and gradient are equal to those of ``vanilla``
    (docs/losses.md has verl's conventions). verl adds its own KL and entropy terms.

    Args:
        old_log_prob: [B, L] padded.
        log_prob: [B, L] padded.
        advantages: [B, L] padded.
        response_mask: [B, L], 1 at unmasked tokens. Values at masked tokens have no influence.
        loss_agg_mode: verl's name, one of its five.
        config: verl's ``ActorConfig``: ``clip_ratio_low`` and ``clip_ratio_high`` (``clip_ratio``
            where they are None), ``clip_ratio_c`` of the dual clip, which is always on as in
            ``vanilla`` (from exp(20) = 4.9e8 on it never acts), and ``global_batch_info`` with the
            counts of the whole mini-batch.
        rollout_is_weights: [B, L] >= 0 or None, the weights of verl's rollout correction.

    Returns:
        The loss, 0-d, and metrics: verl's own three (tokens of weight 0 are not clipped tokens)
        and ``actor/siri_clip_frac_low``, ``_high``, ``_ratio_mean`` and ``_approx_kl``, which show
        whose loss it is. It waits once for the GPU.

    Raises:
        ValueError: an unknown aggregation; ``seq-mean-token-sum-norm`` without
            ``loss_scale_factor``, where verl divides by the longest response of the micro-batch;
            data parallelism without the count; as ``policy_loss``.
    """
    if config is None:
        raise ValueError("siri: config must be verl's ActorConfig; got None")
    rows, length = log_prob.shape
    mask = response_mask.bool()
    aggregation, denominator = _aggregation(loss_agg_mode, mask, **config.global_batch_info)
    low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    ceiling = config.get("clip_ratio_c", 3.0)
    if rollout_is_weights is not None:
        # A weight >= 0 is a factor of the advantage: no minimum, clip or dual clip changes sides.
        advantages = advantages * rollout_is_weights
    # Padding is masked and not removed: packing would wait for the GPU.
    out = policy_loss(
        log_prob.reshape(-1),
        old_log_prob.reshape(-1),
        advantages.reshape(-1),
        torch.arange(rows + 1, dtype=torch.int32, device=mask.device) * length,
        clip_low=low,
        clip_high=high,
        dual_clip=ceiling,
        aggregation=aggregation,
        denominator=denominator,
        mask=mask.reshape(-1),
    )
    return out.loss, _metrics(out.metrics, log_prob, old_log_prob, advantages, mask, ceiling)


def _aggregation(
    mode: str,
    mask: torch.Tensor,
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: float | None = None,
) -> tuple[str, Any]:
    """Aggregation and denominator of ``agg_loss``, which multiplies by ``dp_size`` last."""
    if mode == "token-sum":
        return "token-sum-norm", 1 / dp_size
    name = "batch_num_tokens" if mode == "token-mean" else "global_batch_size"
    count = batch_num_tokens if mode == "token-mean" else global_batch_size
    if count is None and dp_size > 1:
        raise ValueError(f"siri: {name} must be given with dp_size = {dp_size}; got None")
    share = None if count is None else max(float(count), 1.0) / dp_size
    if mode in ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean"):
        return mode, share
    if mode != "seq-mean-token-sum-norm":
        raise ValueError(
            "siri: loss_agg_mode must be token-mean, token-sum, seq-mean-token-sum, "
            f"seq-mean-token-mean or seq-mean-token-sum-norm; got {mode!r}"
        )
    if loss_scale_factor is None:
        raise ValueError(
            "siri: actor.loss_scale_factor must be set with seq-mean-token-sum-norm: without it "
            "verl divides by the longest response of each micro-batch, which moves with the cap"
        )
    rows = mask.any(1).sum().clamp(min=1) if share is None else share
    return "seq-mean-token-sum", rows * loss_scale_factor


@torch.no_grad()
def _metrics(
    ours: dict[str, torch.Tensor],
    log_prob: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    ceiling: float,
) -> dict[str, float]:
    step = torch.where(mask, log_prob - old, 0).clamp(-20, 20)
    capped = mask & (advantages < 0) & (step.exp() > ceiling)
    tokens = mask.sum().clamp(min=1)
    values = {
        "actor/pg_clipfrac": ours["clip_frac_low"] + ours["clip_frac_high"],
        "actor/ppo_kl": -step.sum() / tokens,
        "actor/pg_clipfrac_lower": capped.sum() / tokens,
        "actor/siri_clip_frac_low": ours["clip_frac_low"],
        "actor/siri_clip_frac_high": ours["clip_frac_high"],
        "actor/siri_ratio_mean": ours["ratio_mean"],
        "actor/siri_approx_kl": ours["approx_kl"],
    }
    numbers = torch.stack([value.float() for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))


def siri_grpo(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: Any,
    config: Any = None,
    epsilon: float = 1e-6,
    norm_adv_by_std_in_grpo: bool | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The estimator ``grpo`` of verl by :func:`siri_kernels.group_advantages`.

    ``adv_estimator=siri_grpo`` selects it.

    Three differences: a constant group has advantage exactly 0 for every reward; a group of one has
    0, and its reward in verl; a NaN reward (could not be scored) has 0 and is left out of the
    statistics, while verl makes the group NaN.

    Args:
        token_level_rewards: [B, L]; an answer's reward is their sum.
        response_mask: [B, L].
        index: [B] prompt ids (verl's ``uid``, strings), equal for answers of one group.
        config: verl's ``algorithm`` section, for ``norm_adv_by_std_in_grpo``, which verl passes to
            its own ``grpo`` alone; None: True.
        epsilon: added to the std.
        norm_adv_by_std_in_grpo: overrides the config's.
        **_: other arguments of verl.

    Returns:
        Advantages [B, L], 0 outside the mask, twice (verl wants returns too).
    """
    if norm_adv_by_std_in_grpo is None:
        norm_adv_by_std_in_grpo = (
            True if config is None else config.get("norm_adv_by_std_in_grpo", True)
        )
    group = np.unique(np.asarray(index), return_inverse=True)[1]
    ids = torch.from_numpy(group.reshape(-1).astype(np.int64))
    scale = "group_std" if norm_adv_by_std_in_grpo else "none"
    with torch.no_grad():
        rewards = token_level_rewards.sum(-1)
        out = group_advantages(rewards, ids, scale=scale, eps=epsilon)
        advantages = out.advantages.to(rewards.dtype)[:, None] * response_mask
    return advantages, advantages


def register() -> None:
    """Put both names into verl's registries, after a check of verl's interface.

    Raises:
        RuntimeError: verl calls losses with other arguments than 0.9.1.
    """
    import verl
    from verl.trainer.ppo import core_algos

    known = {
        "compute_policy_loss_vanilla": _LOSS_PARAMETERS,
        "agg_loss": _AGGREGATION_PARAMETERS,
    }
    for name, parameters in known.items():
        found = tuple(inspect.signature(getattr(core_algos, name)).parameters)
        if found != parameters:
            version = getattr(verl, "__version__", "?")
            raise RuntimeError(
                f"verl {version}: core_algos.{name} takes {found}, known (0.9.1) is {parameters}"
            )
    core_algos.register_policy_loss(LOSS)(siri_loss)
    core_algos.register_adv_est(ESTIMATOR)(siri_grpo)


def _register_as_plugin() -> None:
    try:
        register()
    except Exception as error:
        # verl drops a plugin's exception at DEBUG level; the run would fail later, unexplained.
        _log.error("siri_kernels: policy loss and estimator are not registered: %s", error)
        raise


_register_as_plugin()
