"""The loss and the advantages of TRL and verl, written out for machines that do not have them.

Read from trl 1.16.0 (``GRPOTrainer._compute_loss`` with ``loss_type="bnpo"``, and
``_generate_and_score_completions``) and verl 0.9.1 (``core_algos.compute_policy_loss_vanilla``,
``compute_grpo_vectorized_outcome_advantage``), both Apache-2.0, restated without their options;
the remaining lines launch the kernels of their eager code for the clipped loss and its metrics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.inputs import CLIP_HIGH, CLIP_LOW, GroupIds, LossBatch, gradient
from bench.peers.base import Contender, Entry, Peer, Where


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the unmasked tokens, in the form that both use."""
    return (values * mask).sum() / mask.sum().clamp(min=1.0)


def trl_loss(where: Where) -> Contender:
    """Lines of TRL: padded, loss over tokens, entropy and the shares of clipped tokens logged."""

    def call(b: LossBatch) -> Any:
        mask = b.mask.long()
        ratio = (b.padded_logprobs - b.padded_old).exp()
        clipped = torch.clamp(ratio, 1 - CLIP_LOW, 1 + CLIP_HIGH)
        advantages = b.advantages.unsqueeze(1)
        per_token = -torch.min(ratio * advantages, clipped * advantages)
        loss = (per_token * mask).sum() / mask.sum().clamp(min=1.0)
        with torch.no_grad():
            _masked_mean(b.padded_old, mask)  # stands for the entropy: any [B, L] does
            low = (ratio < 1 - CLIP_LOW) & (advantages < 0)
            high = (ratio > 1 + CLIP_HIGH) & (advantages > 0)
            shares = [_masked_mean(x.float(), mask) for x in (low, high, low | high)]
            [x.nanmean() for x in shares]
        return gradient(loss, b.padded_logprobs)

    return Contender(call, "the lines of GRPOTrainer._compute_loss (restated), padded, its metrics")


def verl_loss(where: Where) -> Contender:
    """Lines of verl: padded, log-ratio clamped, dual clip on (out of reach), three metrics."""

    def call(b: LossBatch) -> Any:
        mask = b.mask.to(b.padded_old.dtype)
        advantages = b.advantages[:, None].expand_as(b.padded_old)
        negative_kl = torch.clamp(b.padded_logprobs - b.padded_old, -20.0, 20.0)
        ratio = negative_kl.exp()
        kl = _masked_mean(-negative_kl, mask)
        first = -advantages * ratio
        second = -advantages * torch.clamp(ratio, 1 - CLIP_LOW, 1 + CLIP_HIGH)
        larger = torch.maximum(first, second)
        clip = _masked_mean(torch.gt(second, first).float(), mask)
        third = -advantages * 1e9
        smaller = torch.min(third, larger)
        lower = _masked_mean(torch.gt(larger, third) * (advantages < 0).float(), mask)
        losses = torch.where(advantages < 0, smaller, larger)
        loss = (losses * mask).sum() / mask.sum()
        del kl, clip, lower
        return gradient(loss, b.padded_logprobs)

    return Contender(
        call, "the lines of compute_policy_loss_vanilla (restated), padded, its metrics"
    )


def trl_advantages(where: Where) -> Contender:
    """Lines of TRL with its ``nanstd`` written out; eps 1e-4."""

    def call(rewards: Tensor, size: int, ids: GroupIds) -> Tensor:
        groups = rewards.view(-1, size)
        mean = torch.nanmean(groups, dim=1, keepdim=True)
        variance = torch.nanmean((groups - mean) ** 2, dim=1)
        count = (~torch.isnan(groups)).sum(dim=1)
        std = (variance * (count / (count - 1))).sqrt().repeat_interleave(size, dim=0)
        return torch.nan_to_num((rewards - mean[:, 0].repeat_interleave(size, 0)) / (std + 1e-4))

    return Contender(call, "the formula of GRPOTrainer (restated), eps 1e-4")


def verl_advantages(where: Where) -> Contender:
    """The vectorised estimator of verl by ids, with its wait for the number of groups."""

    def call(rewards: Tensor, size: int, ids: GroupIds) -> Tensor:
        group = ids.tensor
        groups = int(group.max()) + 1
        ones = torch.ones_like(rewards)
        count = rewards.new_zeros(groups).index_add_(0, group, ones)
        mean = rewards.new_zeros(groups).index_add_(0, group, rewards) / count.clamp(min=1)
        centred = rewards - mean[group]
        square = rewards.new_zeros(groups).index_add_(0, group, centred * centred)
        std = (square / (count - 1).clamp(min=1)).sqrt()
        return centred / (std[group] + 1e-6)

    return Contender(call, "the formula of its vectorised estimator (restated), by ids")


PEER = Peer(
    order=90,
    entries=(
        Entry("TRL, restated", trl_loss, ("loss",), bare=True, grid=False),
        Entry("verl, restated", verl_loss, ("loss",), bare=True, grid=False),
        Entry("TRL, restated", trl_advantages, ("advantages",), bare=True, grid=False,
              tolerance=1e-3),
        Entry("verl, restated", verl_advantages, ("advantages",), bare=True, grid=False),
    ),
)  # fmt: skip
