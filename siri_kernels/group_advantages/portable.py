"""Grouped advantages in vectorised PyTorch: no loop, one order of sums, no wait but in ``Ragged``.

Rewards are taken relative to the largest of their group before anything is summed. A constant group
is then all zeros, exactly, whatever its level, and a variance loses nothing to a large mean.
"""

from __future__ import annotations

from typing import Protocol

import torch

_NARROW = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


class Grouping(Protocol):
    """Reductions from answers to groups, and back."""

    def reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        """[B] -> [G]; ``how`` is "sum", "max" or "min"."""

    def expand(self, per_group: torch.Tensor) -> torch.Tensor:
        """[G] -> [B]."""


class Equal:
    """Consecutive groups of one size."""

    def __init__(self, size: int) -> None:
        self.size = size

    def reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        table = values.view(-1, self.size)
        if how == "sum":
            return table.sum(1)
        return table.amax(1) if how == "max" else table.amin(1)

    def expand(self, per_group: torch.Tensor) -> torch.Tensor:
        return per_group.repeat_interleave(self.size)


class Ragged:
    """Groups by id, in any order. Sorting them fixes the order of every sum."""

    def __init__(self, ids: torch.Tensor, device: torch.device) -> None:
        _, group, counts = ids.unique(return_inverse=True, return_counts=True)
        order = group.argsort(stable=True)
        self.group, self.order = group.to(device), order.to(device)
        self.offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(device)

    def reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        # unsafe: without it torch reads the offsets back to check them.
        return torch.segment_reduce(values[self.order], how, offsets=self.offsets, unsafe=True)

    def expand(self, per_group: torch.Tensor) -> torch.Tensor:
        return per_group[self.group]


def group_advantages(
    rewards: torch.Tensor,
    groups: int | torch.Tensor,
    baseline: str,
    scale: str,
    eps: float,
    correction: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    # float32 holds the narrow types exactly; differences of the others are taken in float64.
    r = rewards.to(torch.float32 if rewards.dtype in _NARROW else torch.float64)
    by: Grouping = Equal(groups) if isinstance(groups, int) else Ragged(groups, rewards.device)
    scored = ~r.isnan()
    count = by.reduce(scored.to(r.dtype), "sum")
    top = by.reduce(r.masked_fill(~scored, float("-inf")), "max").masked_fill(count == 0, 0)
    drop = (r - by.expand(top)).masked_fill(~scored, 0)  # <= 0
    mean_drop = by.reduce(drop, "sum") / count.clamp(min=1)
    degenerate = by.reduce(drop, "min") == 0
    centred = drop - by.expand(mean_drop)
    squares = by.reduce(centred.square().masked_fill(~scored, 0), "sum")
    std = _std(squares, count, correction)

    if baseline == "none":
        advantages = r
    elif baseline == "mean":
        advantages = centred
    else:  # r - (sum - r) / (n - 1) = (r - mean) * n / (n - 1)
        advantages = centred * by.expand(count / (count - 1).clamp(min=1))
    if scale != "none":
        divisor = by.expand(std) if scale == "group_std" else _batch_std(r, scored, correction)
        advantages = (advantages / (divisor + eps)).masked_fill(divisor == 0, 0)
    return advantages.masked_fill(~scored, 0), top + mean_drop, std, degenerate


def _std(squares: torch.Tensor, count: torch.Tensor, correction: int) -> torch.Tensor:
    return (squares / (count - correction).clamp(min=1)).sqrt()


def _batch_std(r: torch.Tensor, scored: torch.Tensor, correction: int) -> torch.Tensor:
    """Standard deviation of all scored rewards, 0-d."""
    count = scored.sum()
    top = r.masked_fill(~scored, float("-inf")).amax()
    drop = (r - top).masked_fill(~scored, 0)
    centred = (drop - drop.sum() / count.clamp(min=1)).masked_fill(~scored, 0)
    return _std(centred.square().sum(), count, correction)
