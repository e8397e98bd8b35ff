"""Grouped advantages in vectorised PyTorch: no loop, one order of sums, no wait but in ``Ragged``.

Rewards are taken relative to the largest of their group before anything is summed. A constant group
is then all zeros, exactly, whatever its level, and a variance loses nothing to a large mean.
"""

from __future__ import annotations

from typing import Protocol

import torch

NARROW = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


class Grouping(Protocol):
    """Reductions from answers to groups, and back; answers have the shape that suits them."""

    def arrange(self, rewards: torch.Tensor) -> torch.Tensor:
        """[B] -> that shape."""

    def reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        """That shape -> [G]; ``how`` is "sum", "max" or "min"."""

    def expand(self, per_group: torch.Tensor) -> torch.Tensor:
        """[G] -> one that broadcasts to that shape."""


class Equal:
    """Consecutive groups of one size."""

    def __init__(self, size: int) -> None:
        self.size = size

    def arrange(self, rewards: torch.Tensor) -> torch.Tensor:
        return rewards.reshape(-1, self.size)

    def reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        if how == "sum":
            return values.sum(1)
        return values.amax(1) if how == "max" else values.amin(1)

    def expand(self, per_group: torch.Tensor) -> torch.Tensor:
        return per_group[:, None]


class Ragged:
    """Groups by id, in any order. Sorting them fixes the order of every sum."""

    def __init__(self, ids: torch.Tensor, num_groups: int | None, device: torch.device) -> None:
        self.group, self.order, self.offsets = (t.to(device) for t in sort_groups(ids, num_groups))

    def arrange(self, rewards: torch.Tensor) -> torch.Tensor:
        return rewards

    def reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        # initial: what torch gives a group without answers. unsafe: without it torch reads the
        # offsets back to check them.
        initial = {"sum": 0.0, "max": float("-inf"), "min": float("inf")}[how]
        return torch.segment_reduce(
            values[self.order], how, offsets=self.offsets, unsafe=True, initial=initial
        )

    def expand(self, per_group: torch.Tensor) -> torch.Tensor:
        return per_group[self.group]


def sort_groups(
    ids: torch.Tensor, num_groups: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Group [B] of every answer, order [B] that sorts by group, offsets [G+1] into that order.

    Waits for a GPU if the number of groups is not given.
    """
    in_order, order = ids.sort(stable=True)
    if num_groups is None:
        starts = torch.ones_like(in_order, dtype=torch.bool)
        starts[1:] = in_order[1:] != in_order[:-1]
        group = torch.empty_like(ids)
        group[order] = starts.cumsum(0) - 1
        offsets = torch.cat([starts.nonzero()[:, 0], ids.new_tensor([len(ids)])])
        return group, order, offsets
    groups = torch.arange(num_groups + 1, device=ids.device)
    return ids, order, torch.searchsorted(in_order, groups)


def group_advantages(
    rewards: torch.Tensor,
    groups: int | torch.Tensor,
    baseline: str,
    scale: str,
    eps: float,
    correction: int,
    singleton: str,
    num_groups: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    # float32 holds the narrow types exactly; differences of the others are taken in float64.
    r = rewards.to(torch.float32 if rewards.dtype in NARROW else torch.float64)
    by: Grouping
    if isinstance(groups, int):
        by = Equal(groups)
    else:
        by = Ragged(groups, num_groups, rewards.device)
    r = by.arrange(r)
    scored = ~r.isnan()
    count = by.reduce(scored.to(r.dtype), "sum")
    top = by.reduce(r.nan_to_num(float("-inf")), "max").masked_fill(count == 0, 0)
    drop = (r - by.expand(top)).nan_to_num(0.0)  # <= 0
    mean_drop = by.reduce(drop, "sum") / count.clamp(min=1)
    degenerate = by.reduce(drop, "min") >= 0
    centred = (drop - by.expand(mean_drop)).mul_(scored)
    squares = by.reduce(centred.square(), "sum")
    std = _std(squares, count, correction)

    if baseline == "none":
        advantages = r.nan_to_num(0.0)
    elif baseline == "mean":
        advantages = centred
    else:  # r - (sum - r) / (n - 1) = (r - mean) * n / (n - 1)
        advantages = centred * by.expand(count / (count - 1).clamp(min=1))
    divisors = std
    if singleton == "verl":
        alone = count == 1
        advantages = torch.where(by.expand(alone) & scored, r, advantages)
        divisors = std.masked_fill(alone, 1)
    if scale != "none":
        divisor = by.expand(divisors) if scale == "group_std" else _batch_std(r, scored, correction)
        # Over infinity where the std is 0.
        advantages = advantages / torch.where(divisor == 0, torch.inf, divisor + eps)
    return advantages.reshape(-1), top + mean_drop, std, degenerate


def _std(squares: torch.Tensor, count: torch.Tensor, correction: int) -> torch.Tensor:
    return (squares / (count - correction).clamp(min=1)).sqrt()


def _batch_std(r: torch.Tensor, scored: torch.Tensor, correction: int) -> torch.Tensor:
    """Standard deviation of all scored rewards, 0-d."""
    count = scored.sum()
    top = r.masked_fill(~scored, float("-inf")).amax()
    drop = (r - top).masked_fill(~scored, 0)
    centred = (drop - drop.sum() / count.clamp(min=1)).masked_fill(~scored, 0)
    return _std(centred.square().sum(), count, correction)
