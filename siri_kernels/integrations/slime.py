"""slime: SIRI's loss and its advantages, as functions that slime loads by path.

``--loss-type custom_loss --custom-loss-function-path siri_kernels.integrations.slime.siri_loss
--calculate-per-token-loss`` and ``--custom-reward-post-process-path
siri_kernels.integrations.slime.group_rewards``. Read against slime at 624b824 (2026-08-21),
``slime/backends/megatron_utils/loss.py`` and ``slime/ray/rollout.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from siri_kernels.group_advantages import group_advantages
from siri_kernels.policy_loss import RolloutCorrection, policy_loss

_REFUSED = {
    "use_opsm": "its mask needs whole sequences on each rank",
    "get_mismatch_metrics": "those metrics lie in slime's loss",
    "custom_tis_function_path": "use_tis truncates per token here",
    "custom_pg_loss_reducer_function_path": "the loss is a sum over tokens",
}


def siri_loss(
    args: Any,
    batch: dict[str, Any],
    logits: torch.Tensor,
    sum_of_sample_mean: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The clipped loss, summed over this rank's tokens; slime divides by the step's tokens.

    Log-probs come from slime's own vocabulary-parallel softmax over Megatron's logits, because the
    head is inside Megatron's model, where a loss function cannot replace it.

    Args:
        args: slime's arguments: eps_clip, eps_clip_high, eps_clip_c, use_kl_loss with kl_loss_coef
            and kl_loss_type, entropy_coef, use_tis with tis_clip and tis_clip_low.
        batch: advantages, log_probs, rollout_log_probs, ref_log_probs, loss_masks: lists of [T_i].
        logits: [1, T, V] float32.
        sum_of_sample_mean: not used.

    Returns:
        Loss 0-d, and sums over tokens under slime's names: loss, pg_clipfrac, ppo_kl, entropy_loss.

    Raises:
        ValueError: without ``--calculate-per-token-loss``; context parallelism; an option that
            ``policy_loss`` would compute otherwise, naming it.
    """
    from slime.backends.megatron_utils.loss import (
        get_log_probs_and_entropy,
        get_rollout_top_p_logprob_kwargs,
    )

    _refuse(args)
    _, found = get_log_probs_and_entropy(
        logits,
        args=args,
        unconcat_tokens=batch["unconcat_tokens"],
        total_lengths=batch["total_lengths"],
        response_lengths=batch["response_lengths"],
        with_entropy=True,
        **get_rollout_top_p_logprob_kwargs(args, batch),
    )
    logprobs, entropy = torch.cat(found["log_probs"]), torch.cat(found["entropy"])
    masks = torch.cat(list(batch["loss_masks"]))
    if len(masks) != len(logprobs):
        raise ValueError(
            f"context_parallel_size: siri_loss takes 1; got {len(logprobs)} of {len(masks)} tokens "
            "on this rank"
        )
    lengths = [len(part) for part in found["log_probs"]]
    ends = torch.tensor([0, *lengths], dtype=torch.int64, device="cpu").cumsum(0)
    ends = ends.to(device=logprobs.device, dtype=torch.int32)

    def whole(name: str) -> torch.Tensor | None:
        parts = batch.get(name)
        return torch.cat(list(parts)) if parts else None

    old = whole("rollout_log_probs") if args.use_rollout_logprobs else whole("log_probs")
    old = logprobs.detach() if old is None else old
    correction = None
    if args.use_tis:
        correction = RolloutCorrection("truncate", "token", args.tis_clip, args.tis_clip_low)
    out = policy_loss(
        logprobs,
        old,
        torch.cat(list(batch["advantages"])),
        ends,
        mask=masks > 0,
        clip_low=args.eps_clip,
        clip_high=args.eps_clip_high,
        dual_clip=args.eps_clip_c,
        aggregation="token-sum-norm",
        denominator=1.0,
        rollout_logprobs=whole("rollout_log_probs") if correction else None,
        rollout_correction=correction,
        ref_logprobs=whole("ref_log_probs") if args.use_kl_loss else None,
        kl_coef=args.kl_loss_coef if args.use_kl_loss else 0.0,
        kl_estimator={"low_var_kl": "k3"}.get(args.kl_loss_type, args.kl_loss_type),
        kl_limit=10.0 if args.kl_loss_type == "low_var_kl" else None,
        kl_unbiased=args.use_kl_loss and args.use_unbiased_kl,
        entropy=entropy,
        entropy_coef=args.entropy_coef,
    )
    loss = out.loss if len(logprobs) else out.loss + 0 * logits.sum()
    found_metrics, tokens = out.metrics, out.metrics["tokens"]
    clipped = found_metrics["clip_frac_low"] + found_metrics["clip_frac_high"]
    with torch.no_grad():
        moved = (old - logprobs)[masks > 0].sum()
    return loss, {
        "loss": out.loss.detach(),
        "pg_clipfrac": clipped * tokens,
        "ppo_kl": moved,
        "entropy_loss": found_metrics["entropy"] * tokens,
    }


def _refuse(args: Any) -> None:
    if not args.calculate_per_token_loss:
        raise ValueError(
            "calculate_per_token_loss: siri_loss takes True (--calculate-per-token-loss): SIRI "
            "divides by the tokens of the step"
        )
    for name, why in _REFUSED.items():
        if getattr(args, name, None):
            raise ValueError(f"{name}: got {getattr(args, name)!r}; siri_loss takes none: {why}")
    if args.use_unbiased_kl and args.kl_loss_type == "low_var_kl":
        raise ValueError(
            "use_unbiased_kl: got True with kl_loss_type=low_var_kl; takes k1, k2 or k3: "
            "slime clamps after the ratio, siri_loss before"
        )
    if args.use_tis and args.use_rollout_logprobs:
        raise ValueError("use_tis: got True with use_rollout_logprobs; takes one of the two")


def group_rewards(args: Any, samples: Sequence[Any]) -> tuple[list[float], list[float]]:
    """Rewards and their GRPO advantages, in groups by ``sample.group_index``.

    slime's own code normalises over the whole batch if groups have unequal sizes, for instance
    after a filtered or aborted sample. Here each group is normalised alone, and a constant one has
    exactly 0.

    Args:
        args: ``grpo_std_normalization`` as in slime.
        samples: slime's ``Sample``, or lists of them (flattened).

    Returns:
        Raw rewards and advantages, one a sample.

    Raises:
        ValueError: a sample without ``group_index``.
    """
    flat = [s for one in samples for s in (one if isinstance(one, list) else [one])]
    groups = [sample.group_index for sample in flat]
    if None in groups:
        raise ValueError(f"group_index: got None for sample {groups.index(None)}; takes an integer")
    raw = [float(sample.get_reward_value(args)) for sample in flat]
    scale = "group_std" if args.grpo_std_normalization else "none"
    rewards = torch.tensor(raw, dtype=torch.float32, device="cpu")
    ids = torch.tensor(groups, dtype=torch.int64, device="cpu")
    advantages = group_advantages(rewards, ids, scale=scale).advantages
    return raw, advantages.tolist()
