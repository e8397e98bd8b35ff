"""NeMo-RL's advantages, restated from its description: not installable here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.peers.base import Contender, Entry, Peer, Where

if TYPE_CHECKING:
    from torch import Tensor

    from bench.inputs import GroupIds


def advantages(where: Where) -> Contender:
    """Its loop over prompts."""
    import torch

    def call(rewards: Tensor, size: int, ids: GroupIds) -> Tensor:
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


PEER = Peer(order=80, entries=(Entry("NeMo", advantages, ("advantages",), most=2**15),))
