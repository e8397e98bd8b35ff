"""Loss and advantages as TRL and verl compute them, written out, for machines without them.

Read from trl 1.16.0 (``GRPOTrainer._compute_loss`` with ``loss_type="bnpo"``, and
``_generate_and_score_completions``) and verl 0.9.1 (``core_algos.compute_policy_loss_vanilla``,
``compute_grpo_vectorized_outcome_advantage``), both Apache-2.0, restated without their options:
what is left is what their eager code launches for the clipped loss with the metrics they log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.peers import advantages, losses
from bench.peers.base import Contender, Where
from bench.peers.losses import HIGH, LOW, LossBatch, gradient


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that count, as both write it."""
    return (values * mask).sum() / mask.sum().clamp(min=1.0)


def trl_loss(where: Where) -> Contender:
    """TRL's lines: padded, loss over tokens, entropy and the shares of clipped tokens logged."""

    def call(b: LossBatch) -> Any:
        mask = b.mask.long()
        ratio = (b.padded_logprobs - b.padded_old).exp()
        clipped = torch.clamp(ratio, 1 - LOW, 1 + HIGH)
        advantages = b.advantages.unsqueeze(1)
        per_token = -torch.min(ratio * advantages, clipped * advantages)
        loss = (per_token * mask).sum() / mask.sum().clamp(min=1.0)
        with torch.no_grad():
            masked_mean(b.padded_old, mask)  # stands for the entropy: any [B, L] does
            low = (ratio < 1 - LOW) & (advantages < 0)
            high = (ratio > 1 + HIGH) & (advantages > 0)
            shares = [masked_mean(x.float(), mask) for x in (low, high, low | high)]
            [x.nanmean() for x in shares]
        return gradient(loss, b.padded_logprobs)

    return Contender(call, "the lines of GRPOTrainer._compute_loss (restated), padded, its metrics")


def verl_loss(where: Where) -> Contender:
    """verl's lines: padded, log-ratio clamped, dual clip on (out of reach), three metrics."""

    def call(b: LossBatch) -> Any:
        mask = b.mask.to(b.padded_old.dtype)
        advantages = b.advantages[:, None].expand_as(b.padded_old)
        negative_kl = torch.clamp(b.padded_logprobs - b.padded_old, -20.0, 20.0)
        ratio = negative_kl.exp()
        kl = masked_mean(-negative_kl, mask)
        first = -advantages * ratio
        second = -advantages * torch.clamp(ratio, 1 - LOW, 1 + HIGH)
        larger = torch.maximum(first, second)
        clip = masked_mean(torch.gt(second, first).float(), mask)
        third = -advantages * 1e9
        smaller = torch.min(third, larger)
        lower = masked_mean(torch.gt(larger, third) * (advantages < 0).float(), mask)
        losses = torch.where(advantages < 0, smaller, larger)
        loss = (losses * mask).sum() / mask.sum()
        del kl, clip, lower
        return gradient(loss, b.padded_logprobs)

    return Contender(
        call, "the lines of compute_policy_loss_vanilla (restated), padded, its metrics"
    )


def trl_advantages(where: Where) -> Contender:
    """TRL's lines with its ``nanstd`` written out; eps 1e-4."""

    def call(rewards: Tensor, size: int, ids: Tensor) -> Tensor:
        rows = rewards.view(-1, size)
        mean = torch.nanmean(rows, dim=1, keepdim=True)
        variance = torch.nanmean((rows - mean) ** 2, dim=1)
        count = (~torch.isnan(rows)).sum(dim=1)
        std = (variance * (count / (count - 1))).sqrt().repeat_interleave(size, dim=0)
        return torch.nan_to_num((rewards - mean[:, 0].repeat_interleave(size, 0)) / (std + 1e-4))

    return Contender(call, "the formula of GRPOTrainer (restated), eps 1e-4")


def verl_advantages(where: Where) -> Contender:
    """verl's vectorised estimator by ids, with its wait for the number of groups."""

    def call(rewards: Tensor, size: int, ids: Tensor) -> Tensor:
        groups = int(ids.max()) + 1
        ones = torch.ones_like(rewards)
        count = rewards.new_zeros(groups).index_add_(0, ids, ones)
        mean = rewards.new_zeros(groups).index_add_(0, ids, rewards) / count.clamp(min=1)
        centred = rewards - mean[ids]
        square = rewards.new_zeros(groups).index_add_(0, ids, centred * centred)
        std = (square / (count - 1).clamp(min=1)).sqrt()
        return centred / (std[ids] + 1e-6)

    return Contender(call, "the formula of its vectorised estimator (restated), by ids")


LOSSES: dict[str, Callable[[Where], Contender]] = {
    "ours": losses.ours,
    "eager": losses.eager,
    "TRL, restated": trl_loss,
    "verl, restated": verl_loss,
}
ADVANTAGES: dict[str, Callable[[Where], Contender]] = {
    "ours": advantages.ours,
    "ours, ids": advantages.ours_ids,
    "eager": advantages.eager,
    "TRL, restated": trl_advantages,
    "verl, restated": verl_advantages,
}
