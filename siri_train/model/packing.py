"""Micro-batches: whole sequences packed into rows of a token budget, divided over the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from siri_train.model.attention import Layout

# Cost of a sequence of n tokens: n + n * n / this. A transformer layer of width D does 24 D^2
# operations a token in its matrices and 2 n D in causal attention: equal at n = 12 D, 18 432 for
# the 1.5 B Qwen.
_ATTENTION_EQUALS_MATRICES = 18_432


@dataclass
class Sample:
    """One prompt with one response, as the update sees it.

    Args:
        prompt_ids: tokens of the question.
        response_ids: sampled tokens.
        old_logprobs: log-prob of each under the policy that sampled them.
        advantage: group-relative advantage of the whole response.
        rollout_logprobs: as the sampler reported them, where ``old_logprobs`` are recomputed.
        loss_weights: weight of each token in the supervised loss.
        zeroed: tokens of the response whose advantage is 0 instead; empty: none.
        truncated: ended by the cap; ``loss.overlong_filter`` takes it out of the loss.
    """

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    old_logprobs: Sequence[float] = field(default=(), repr=False)
    advantage: float = 0.0
    rollout_logprobs: Sequence[float] = field(default=(), repr=False)
    loss_weights: Sequence[float] = field(default=(), repr=False)
    zeroed: Sequence[bool] = field(default=(), repr=False)
    truncated: bool = False

    @property
    def length(self) -> int:
        """Tokens the transformer reads."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass
class MicroBatch:
    """The input of one forward and backward pass: B sequences packed into one row, no padding.

    The row has N tokens, T of which are response tokens.

    Args:
        input_ids: [1, N] int64, the sequences one after another.
        layout: where they are, for attention and position ids.
        predictors: [T] int64, positions among the N tokens: that of the token before each response
            token, whose hidden state predicts it.
        targets: [T] int64, the response tokens.
        old_logprobs: [T] float32; [0] where the samples have none.
        advantages: [B] float32; [T] where one of the samples has ``zeroed`` tokens.
        cu_seqlens: [B + 1] int32, where each response starts among the T tokens.
        order: which of the given samples each sequence is.
        rollout_logprobs: [T] float32, the sampler's; None where the samples have none.
        loss_weights: [T] float32, of the supervised stage; None where the samples have none.
        dummy: True for a dummy micro-batch, which a rank computes because another rank has one
            more: its loss must be multiplied by 0.
    """

    input_ids: Tensor
    layout: Layout
    predictors: Tensor
    targets: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    cu_seqlens: Tensor
    order: list[int]
    rollout_logprobs: Tensor | None = None
    loss_weights: Tensor | None = None
    dummy: bool = False

    @property
    def tokens(self) -> int:
        """Response tokens, T."""
        return self.targets.numel()


def micro_batches(
    samples: Sequence[Sample],
    token_budget: int,
    device: torch.device,
    *,
    rank: int = 0,
    ranks: int = 1,
    at_least: int = 1,
) -> Iterator[MicroBatch]:
    """This rank's micro-batches of a :func:`plan`, each built when it is needed.

    Args:
        samples: the same on every rank; at least one response token each.
        token_budget: see :func:`plan`.
        device: where the tensors go.
        rank: whose micro-batches.
        ranks: see :func:`plan`.
        at_least: see :func:`plan`.

    Raises:
        ValueError: a sample longer than the budget, or without response tokens.
    """
    for index, sample in enumerate(samples):
        if len(sample.response_ids) == 0:
            raise ValueError(f"samples[{index}] has no response tokens")
        if len(sample.prompt_ids) == 0:
            raise ValueError(f"samples[{index}] has no prompt: nothing predicts its first token")
    rounds = plan([s.length for s in samples], token_budget, ranks=ranks, at_least=at_least)
    return (_rows(samples, shares[rank], device) for shares in rounds)


def plan(
    lengths: Sequence[int], token_budget: int, *, ranks: int = 1, at_least: int = 1
) -> list[list[list[int]]]:
    """Share sequences among as few micro-batches as possible, all of nearly the same cost.

    Longest first, each sequence joins the micro-batch with the smallest cost so far that still has
    room. The cost includes attention, which grows with the square of the length.

    Args:
        lengths: tokens of each sequence.
        token_budget: tokens of a micro-batch; must hold the longest sequence.
        ranks: micro-batches of one round, which run at the same time.
        at_least: rounds, even where fewer would do.

    Returns:
        ``[round][rank]``: indices into ``lengths``. The costliest round is first, so that running
        out of memory shows at once. Lists are empty where there are fewer sequences than ranks.

    Raises:
        ValueError: a sequence longer than the budget.
    """
    if not lengths:
        return []
    longest = max(range(len(lengths)), key=lambda i: lengths[i])
    if lengths[longest] > token_budget:
        raise ValueError(
            f"samples[{longest}] has {lengths[longest]} tokens, token_budget is {token_budget}"
        )
    costs = [n + n * n / _ATTENTION_EQUALS_MATRICES for n in lengths]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    rounds = max(at_least, -(-sum(lengths) // (token_budget * ranks)))
    while (rows := _fill(order, lengths, costs, token_budget, rounds * ranks)) is None:
        rounds += 1
    rows.sort(key=lambda row: -sum(costs[i] for i in row))
    shared = [rows[start : start + ranks] for start in range(0, len(rows), ranks)]
    # Every other round in reverse: no rank gets the larger micro-batch of every round.
    return [r if number % 2 == 0 else r[::-1] for number, r in enumerate(shared)]


def _fill(
    order: Sequence[int],
    lengths: Sequence[int],
    costs: Sequence[float],
    token_budget: int,
    count: int,
) -> list[list[int]] | None:
    """Deal sequences to ``count`` micro-batches; None where one does not fit."""
    rows: list[list[int]] = [[] for _ in range(count)]
    spent, used = [0.0] * count, [0] * count
    for index in order:
        room = [r for r in range(count) if used[r] + lengths[index] <= token_budget]
        if not room:
            return None
        cheapest = min(room, key=lambda r: spent[r])
        rows[cheapest].append(index)
        spent[cheapest] += costs[index]
        used[cheapest] += lengths[index]
    return rows


def _rows(samples: Sequence[Sample], order: list[int], device: torch.device) -> MicroBatch:
    dummy = not order
    if dummy:  # fewer sequences than ranks: the shortest one again
        order = [min(range(len(samples)), key=lambda i: samples[i].length)]
    chosen = [samples[i] for i in order]
    ids: list[int] = []
    predictors, targets = [], []
    for sample in chosen:
        first = len(ids) + len(sample.prompt_ids) - 1  # the last prompt token predicts the first
        predictors.append(torch.arange(first, first + len(sample.response_ids)))
        targets.append(torch.tensor(list(sample.response_ids), dtype=torch.long))
        ids += [*sample.prompt_ids, *sample.response_ids]
    lengths = torch.tensor([0, *(len(s.response_ids) for s in chosen)])
    return MicroBatch(
        input_ids=torch.tensor([ids], dtype=torch.long).to(device),
        layout=Layout.of([s.length for s in chosen], device),
        predictors=torch.cat(predictors).to(device),
        targets=torch.cat(targets).to(device),
        old_logprobs=_joined([s.old_logprobs for s in chosen], device),
        advantages=_advantages(chosen, device),
        cu_seqlens=lengths.cumsum(0).to(torch.int32).to(device),
        order=order,
        rollout_logprobs=_joined_if_all([s.rollout_logprobs for s in chosen], device),
        loss_weights=_joined_if_all([s.loss_weights for s in chosen], device),
        dummy=dummy,
    )


def _advantages(chosen: Sequence[Sample], device: torch.device) -> Tensor:
    if not any(any(s.zeroed) for s in chosen):
        return torch.tensor([s.advantage for s in chosen], dtype=torch.float32, device=device)
    return _joined(
        [
            [0.0 if zero else s.advantage for zero in s.zeroed or [False] * len(s.response_ids)]
            for s in chosen
        ],
        device,
    )


def _joined(parts: Sequence[Sequence[float]], device: torch.device) -> Tensor:
    tensors = [torch.tensor(list(part), dtype=torch.float32) for part in parts]
    return torch.cat(tensors).to(device)


def _joined_if_all(parts: Sequence[Sequence[float]], device: torch.device) -> Tensor | None:
    return _joined(parts, device) if all(map(len, parts)) else None
