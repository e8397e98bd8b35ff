"""GRPO's advantages, reward minus the group's mean over its standard deviation, as trainers do it.

Each call takes the rewards [B], the size of the groups and the group of each sample [B].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.peers.base import Contender, Where
from siri_kernels import group_advantages


def ours(where: Where) -> Contender:
    """Equal groups by their size."""
    return Contender(
        lambda r, size, ids: group_advantages(r, size, backend=where.backend).advantages,
        "group_advantages(rewards, size), defaults",
    )


def ours_ids(where: Where) -> Contender:
    """Groups by ids, in any order."""
    return Contender(
        lambda r, size, ids: group_advantages(r, ids, backend=where.backend).advantages,
        "group_advantages(rewards, ids), defaults",
    )


def eager(where: Where) -> Contender:
    """Equal groups as rows of a matrix."""

    def call(rewards: Tensor, size: int, ids: Tensor) -> Tensor:
        rows = rewards.view(-1, size)
        spread = rows.std(1, keepdim=True) + 1e-6
        return ((rows - rows.mean(1, keepdim=True)) / spread).flatten()

    return Contender(call, "rows of a matrix, mean and std, no check of anything")


def trl(where: Where) -> Contender:
    """TRL 1.16's lines of ``_generate_and_score_completions``, which no function holds."""
    from trl.trainer.utils import nanstd

    def call(rewards: Tensor, size: int, ids: Tensor) -> Tensor:
        rows = rewards.view(-1, size)
        mean = torch.nanmean(rows, dim=1).repeat_interleave(size, dim=0)
        std = nanstd(rows, dim=1).repeat_interleave(size, dim=0)
        return torch.nan_to_num((rewards - mean) / (std + 1e-4), nan=0.0)

    return Contender(call, "the formula of GRPOTrainer with its nanstd, eps 1e-4 (restated)")


def _verl(function: str, text: str) -> Contender:
    from verl.trainer.ppo import core_algos

    estimate = getattr(core_algos, function)

    def call(rewards: Tensor, size: int, ids: Any) -> Tensor:
        scores = rewards[:, None]
        return estimate(scores, torch.ones_like(scores), ids.numpy)[0][:, 0]

    return Contender(call, f"{function}, {text}")


def verl_loop(where: Where) -> Contender:
    """verl's default estimator."""
    return _verl("compute_grpo_outcome_advantage", "its default; ids as a numpy array")


def verl_vectorized(where: Where) -> Contender:
    """verl's faster one."""
    return _verl("compute_grpo_vectorized_outcome_advantage", "ids as a numpy array")


def nemo(where: Where) -> Contender:
    """NeMo-RL's per-prompt loop, restated from its description: not installable here."""

    def call(rewards: Tensor, size: int, ids: Any) -> Tensor:
        mean, std = torch.empty_like(rewards), torch.zeros_like(rewards)
        valid = torch.ones_like(rewards)
        prompts = ids.tensor[:, None]
        for prompt in torch.unique(prompts, dim=0):
            place = (prompts == prompt).all(1).nonzero()[:, 0]
            r, v = rewards[place], valid[place]
            count = v.sum()
            average, square = (r * v).sum() / count, (r * r * v).sum() / count
            variance = (square - average * average) * count / (count - 1)
            mean[place], std[place] = average, variance.sqrt().nan_to_num(0)
        return torch.where(std > 0, (rewards - mean) / (std + 1e-6), rewards - mean)

    return Contender(call, "the loop of calculate_baseline_and_std_per_prompt, mean (restated)")


ADVANTAGES: dict[str, Callable[[Where], Contender]] = {
    "ours": ours,
    "ours, ids": ours_ids,
    "eager": eager,
    "TRL": trl,
    "verl": verl_loop,
    "verl, vectorised": verl_vectorized,
    "NeMo": nemo,
}
