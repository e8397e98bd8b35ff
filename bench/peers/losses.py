"""The clipped loss, token mean over the batch, as each trainer computes it from log-probs.

The contenders get what their trainer holds: TRL, verl and Liger padded rows, ours and eager packed
tokens. All give the loss and the gradient of the log-probs as their layout has it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bench.peers.base import Contender, Where
from siri_kernels import policy_loss

LOW, HIGH = 0.2, 0.28


@dataclass
class LossBatch:
    """Packed tokens [T] of B answers, and the same padded [B, L]; ``logprobs`` learn."""

    logprobs: Tensor
    old: Tensor
    advantages: Tensor
    cu_seqlens: Tensor
    padded_logprobs: Tensor
    padded_old: Tensor
    mask: Tensor

    def to(self, dtype: torch.dtype) -> LossBatch:
        """The same in another dtype."""
        return LossBatch(
            **{
                name: value.detach().to(dtype).requires_grad_(value.requires_grad)
                if value.is_floating_point()
                else value
                for name, value in vars(self).items()
            }
        )


def eager_loss(logprobs: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    """The formula and nothing else: no metrics, advantages already one a token."""
    ratio = (logprobs - old).exp()
    clipped = ratio.clamp(1 - LOW, 1 + HIGH)
    return -torch.minimum(ratio * advantages, clipped * advantages).mean()


def spread(batch: LossBatch) -> Tensor:
    """[T]: the advantage of each token's answer."""
    return batch.advantages.repeat_interleave(
        batch.cu_seqlens.diff(), output_size=len(batch.logprobs)
    )


def gradient(loss: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and its gradient."""
    return loss.detach(), torch.autograd.grad(loss, by)[0]


def ours(where: Where) -> Contender:
    """With all its metrics."""

    def call(b: LossBatch) -> Any:
        out = policy_loss(b.logprobs, b.old, b.advantages, b.cu_seqlens, clip_low=LOW,
                          clip_high=HIGH, backend=where.backend)  # fmt: skip
        return gradient(out.loss, b.logprobs)

    return Contender(call, "policy_loss, defaults, nine metrics computed with the loss")


def eager(where: Where) -> Contender:
    """Packed, without metrics."""

    def call(b: LossBatch) -> Any:
        return gradient(eager_loss(b.logprobs, b.old, spread(b)), b.logprobs)

    return Contender(call, "the formula on packed tokens, no metrics")


def compiled(where: Where) -> Contender:
    """The same under Inductor."""
    loss = torch.compile(eager_loss, dynamic=False)

    def call(b: LossBatch) -> Any:
        return gradient(loss(b.logprobs, b.old, spread(b)), b.logprobs)

    return Contender(call, "torch.compile(the formula, dynamic=False) on packed tokens, no metrics")


def trl(where: Where) -> Contender:
    """``GRPOTrainer._compute_loss`` on a stand-in for the trainer that hands it the log-probs."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer = SimpleNamespace(
        beta=0.0, epsilon_low=LOW, epsilon_high=HIGH, importance_sampling_level="token",
        off_policy_mask_threshold=None, loss_type="bnpo", aux_loss_enabled=False,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        top_entropy_quantile=1.0, use_vllm=False, vllm_importance_sampling_correction=False,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        max_completion_length=1, use_adaptive_entropy=False, entropy_coef=None,
        _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(num_processes=1, sync_gradients=False, gather=lambda x: x,
                                    reduce=lambda x, reduction: x),
    )  # fmt: skip

    def call(b: LossBatch) -> Any:
        trainer._metrics = {"train": defaultdict(list)}
        entropy = b.padded_old  # any [B, L]: only its mean is logged
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (
            b.padded_logprobs, entropy, None,
        )  # fmt: skip
        one = b.mask[:, :1].long()
        inputs = {
            "prompt_ids": one, "prompt_mask": one, "completion_ids": b.mask.long(),
            "completion_mask": b.mask.long(), "advantages": b.advantages,
            "old_per_token_logps": b.padded_old, "num_items_in_batch": None,
        }  # fmt: skip
        return gradient(GRPOTrainer._compute_loss(trainer, None, inputs), b.padded_logprobs)

    return Contender(call, 'GRPOTrainer._compute_loss, loss_type="bnpo", padded, with its metrics')


def verl(where: Where) -> Contender:
    """``compute_policy_loss_vanilla``; its dual clip is always on, 1e9 is out of reach."""
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
    from verl.workers.config import ActorConfig

    config = ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio=LOW,
        clip_ratio_low=LOW, clip_ratio_high=HIGH, clip_ratio_c=1e9,
    )  # fmt: skip

    def call(b: LossBatch) -> Any:
        loss, _ = compute_policy_loss_vanilla(
            old_log_prob=b.padded_old, log_prob=b.padded_logprobs,
            advantages=b.advantages[:, None].expand_as(b.padded_old),
            response_mask=b.mask.to(b.padded_old.dtype), loss_agg_mode="token-mean",
            config=config,
        )  # fmt: skip
        return gradient(loss, b.padded_logprobs)

    return Contender(call, 'compute_policy_loss_vanilla, "token-mean", padded, with its metrics')


def liger(where: Where) -> Contender:
    """The loss inside ``LigerFusedLinearGRPOLoss``, compiled as there, without its head."""
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

    loss = torch.compile(LigerFusedLinearGRPOFunction.ppo_loss_fn, dynamic=False)

    def call(b: LossBatch) -> Any:
        mask = b.mask.to(b.padded_old.dtype)
        out = loss(
            b.padded_logprobs, mask, b.advantages, mask, old_per_token_logps=b.padded_old,
            epsilon_low=LOW, epsilon_high=HIGH, beta=0.0, loss_type="bnpo",
        )  # fmt: skip
        return gradient(out[0], b.padded_logprobs)

    return Contender(
        call, 'LigerFusedLinearGRPOFunction.ppo_loss_fn, loss_type="bnpo", torch.compile, padded'
    )


LOSSES: dict[str, Callable[[Where], Contender]] = {
    "ours": ours,
    "eager": eager,
    "torch.compile": compiled,
    "TRL": trl,
    "verl": verl,
    "Liger": liger,
}
