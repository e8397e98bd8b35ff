"""Micro-batches: padded rows for the transformer, packed response tokens for the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Sample:
    """One prompt with one response, as the update sees it.

    Args:
        prompt_ids: tokens of the question.
        response_ids: sampled tokens.
        old_logprobs: log-prob of each under the policy that sampled them.
        advantage: group-relative advantage of the whole response.
    """

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    old_logprobs: Sequence[float] = field(default=(), repr=False)
    advantage: float = 0.0

    @property
    def length(self) -> int:
        """Tokens the transformer reads."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass
class MicroBatch:
    """What one forward and backward pass works on; T response tokens of B sequences.

    Args:
        input_ids: [B, L] int64, padded at the right.
        predictors: [T] int64, index into the flattened [B * L] hidden states: the position before
            each response token, which predicts it.
        targets: [T] int64, the response tokens.
        old_logprobs: [T] float32.
        advantages: [B] float32.
        cu_seqlens: [B + 1] int32, where each response starts among the T tokens.
        order: which of the given samples each sequence is.
    """

    input_ids: Tensor
    predictors: Tensor
    targets: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    cu_seqlens: Tensor
    order: list[int]

    @property
    def tokens(self) -> int:
        """Response tokens, T."""
        return self.targets.numel()


def micro_batches(
    samples: Sequence[Sample], token_budget: int, device: torch.device, pad_token_id: int = 0
) -> list[MicroBatch]:
    """Group samples of like length into batches of at most ``token_budget`` padded tokens.

    Args:
        samples: at least one response token each.
        token_budget: rows x longest row; must hold the longest single sample.
        device: where the tensors go.
        pad_token_id: fills the right of shorter rows; no loss ever reads it.

    Returns:
        Batches, longest first, so that running out of memory shows in the first one.

    Raises:
        ValueError: a sample longer than the budget, or without response tokens.
    """
    order = sorted(range(len(samples)), key=lambda i: -samples[i].length)
    batches: list[list[int]] = []
    width = 0
    for index in order:
        sample = samples[index]
        if not sample.response_ids:
            raise ValueError(f"samples[{index}] has no response tokens")
        if sample.length > token_budget:
            raise ValueError(
                f"samples[{index}] has {sample.length} tokens, token_budget is {token_budget}"
            )
        if not batches or (len(batches[-1]) + 1) * width > token_budget:
            batches.append([])
            width = sample.length
        batches[-1].append(index)
    return [_collate(samples, chosen, device, pad_token_id) for chosen in batches]


def _collate(
    samples: Sequence[Sample], order: list[int], device: torch.device, pad_token_id: int
) -> MicroBatch:
    chosen = [samples[i] for i in order]
    width = max(s.length for s in chosen)
    input_ids = torch.full((len(chosen), width), pad_token_id, dtype=torch.long)
    predictors, targets, old = [], [], []
    lengths = [0]
    for row, sample in enumerate(chosen):
        ids = [*sample.prompt_ids, *sample.response_ids]
        input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        first = row * width + len(sample.prompt_ids) - 1  # the last prompt token predicts the first
        predictors.append(torch.arange(first, first + len(sample.response_ids)))
        targets.append(torch.tensor(list(sample.response_ids), dtype=torch.long))
        old.append(torch.tensor(list(sample.old_logprobs), dtype=torch.float32))
        lengths.append(len(sample.response_ids))
    return MicroBatch(
        input_ids=input_ids.to(device),
        predictors=torch.cat(predictors).to(device),
        targets=torch.cat(targets).to(device),
        old_logprobs=torch.cat(old).to(device),
        advantages=torch.tensor([s.advantage for s in chosen], dtype=torch.float32, device=device),
        cu_seqlens=torch.tensor(lengths).cumsum(0).to(torch.int32).to(device),
        order=order,
    )
