"""Grouped advantages in vectorised PyTorch: no loop, one order of sums, no wait but in ``Ragged``.

Rewards are taken relative to the largest of their group before anything is summed. A constant group
is then all zeros, exactly, whatever its level, and a variance loses nothing to a large mean. Huge
rewards are scaled by a power of two first.
"""

from __future__ import annotations

from typing import Protocol

import torch

from siri_kernels._device import has_float64

NARROW = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
# Above the first number a square may overflow; times the second it does not, nor is one lost.
HUGE = {torch.float32: (2.0**60, 2.0**-80), torch.float64: (2.0**400, 2.0**-640)}


class Grouping(Protocol):
    """Reductions from answers to groups and back, with answers in a shape of its own."""

    def arrange(self, rewards: torch.Tensor) -> torch.Tensor:
        """[B] -> that shape."""

    def reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        """From that shape to [G]; ``how`` is "sum", "max" or "min"."""

    def expand(self, per_group: torch.Tensor) -> torch.Tensor:
        """From [G] to a tensor that broadcasts to that shape."""


class Equal:
    """Consecutive groups of one size."""

    def __init__(self, size: int) -> None:
        self.size = size

    def arrange(self, rewards: torch.Tensor) -> torch.Tensor:
        """[B] -> [G, size]."""
        return rewards.reshape(-1, self.size)

    def reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        """[G, size] -> [G]."""
        if how == "sum":
            return values.sum(1)
        return values.amax(1) if how == "max" else values.amin(1)

    def expand(self, per_group: torch.Tensor) -> torch.Tensor:
        """[G] -> [G, 1]."""
        return per_group[:, None]


class Ragged:
    """Groups by id, in any order. Sorting them fixes the order of every sum.

    Args:
        ids: [B] int64.
        num_groups: G, or None.
        device: of the rewards.
    """

    def __init__(self, ids: torch.Tensor, num_groups: int | None, device: torch.device) -> None:
        self.group, self.order, self.offsets = (t.to(device) for t in _sort_groups(ids, num_groups))

    def arrange(self, rewards: torch.Tensor) -> torch.Tensor:
        """[B], unchanged."""
        return rewards

    def reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        """[B] -> [G]."""
        # initial: the result of a group without answers. unsafe: without it torch reads the
        # offsets back to check them.
        initial = {"sum": 0.0, "max": float("-inf"), "min": float("inf")}[how]
        return torch.segment_reduce(
            values[self.order], how, offsets=self.offsets, unsafe=True, initial=initial
        )

    def expand(self, per_group: torch.Tensor) -> torch.Tensor:
        """[G] -> [B]."""
        return per_group[self.group]


def sort_ids(ids: torch.Tensor, num_groups: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Order [B] that sorts answers by group, offsets [G+1] into that order.

    Waits for a GPU if the number of groups is not given.
    """
    in_order, order = ids.sort(stable=True)
    if num_groups is not None:
        groups = torch.arange(num_groups + 1, dtype=torch.int64, device=ids.device)
        return order, torch.searchsorted(in_order, groups)
    # Where a group begins, and after the last one.
    begins = torch.ones(len(ids) + 1, dtype=torch.bool, device=ids.device)
    torch.ne(in_order[1:], in_order[:-1], out=begins[1:-1])
    return order, begins.nonzero().view(-1)


def _sort_groups(
    ids: torch.Tensor, num_groups: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Group [B] of every answer, then what :func:`sort_ids` gives."""
    order, offsets = sort_ids(ids, num_groups)
    if num_groups is not None:
        return ids, order, offsets
    numbers = torch.arange(len(offsets) - 1, dtype=torch.int64, device=ids.device)
    group = torch.empty_like(ids)
    group[order] = numbers.repeat_interleave(offsets.diff(), output_size=len(ids))
    return group, order, offsets


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
    """Advantages [B], means, deviations [G] and degenerate groups [G] bool.

    Args:
        rewards: [B], checked.
        groups: the size, or ids [B] int64.
        baseline: "mean", "leave_one_out" or "none".
        scale: "group_std", "batch_std" or "none".
        eps: added to the std.
        correction: 0 or 1.
        singleton: "zero" or "verl".
        num_groups: with ids: G, or None.
    """
    raw, r, level = _read(rewards)
    by: Grouping
    if isinstance(groups, int):
        by = Equal(groups)
    else:
        by = Ragged(groups, num_groups, rewards.device)
    raw, r = by.arrange(raw), by.arrange(r)
    scored = ~r.isnan()
    count = by.reduce(scored.to(r.dtype), "sum")
    top = by.reduce(r.nan_to_num(float("-inf")), "max").masked_fill(count == 0, 0)
    # From here on in units of each group's own, 1 for all but huge rewards.
    unit = _unit(by.reduce(r.abs().nan_to_num_(0.0), "max"))
    units = by.expand(unit)
    drop = (r * units - by.expand(top * unit)).nan_to_num(0.0)  # <= 0
    mean_drop = by.reduce(drop, "sum") / count.clamp(min=1)
    degenerate = by.reduce(drop, "min") >= 0
    centred = (drop - by.expand(mean_drop)).mul_(scored)
    squares = by.reduce(centred.square(), "sum")
    std = _std(squares, count, correction)

    if baseline == "none":
        advantages = raw.nan_to_num(0.0) * units
    elif baseline == "mean":
        advantages = centred
    else:  # r - (sum - r) / (n - 1) = (r - mean) * n / (n - 1)
        advantages = centred * by.expand(count / (count - 1).clamp(min=1))
    divisors = std
    if singleton == "verl":
        alone = count == 1
        advantages = torch.where(by.expand(alone) & scored, raw * units, advantages)
        divisors = torch.where(alone, unit, std)
    if scale == "none":
        advantages = advantages / units
    else:
        if scale == "group_std":
            divisor = by.expand(divisors)
        else:
            batch, batch_unit = _batch_std(r, scored, correction)
            divisor = batch * (units / batch_unit)
        # Over infinity where the std is 0.
        divisor = (divisor + eps * units).masked_fill(divisor == 0, torch.inf)
        advantages = advantages / divisor
    return advantages.reshape(-1), level + top + mean_drop / unit, std / unit, degenerate


def _read(rewards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]:
    """Rewards in floating point; less a level that they have in common; and that level."""
    if rewards.dtype in NARROW:  # float32 holds them exactly
        r = rewards.to(torch.float32)
        return r, r, 0.0
    if rewards.dtype == torch.float64 or has_float64(rewards.device):
        r = rewards.to(torch.float64)  # for the differences
        return r, r, 0.0
    top = rewards.amax()  # integers, whose differences are exact without float64 too
    return rewards.to(torch.float32), (rewards - top).to(torch.float32), top.to(torch.float32)


def _unit(size: torch.Tensor) -> torch.Tensor:
    """The power of two by which rewards of this size are multiplied.

    Their differences and the squares of these do not overflow then.
    """
    huge, unit = HUGE[size.dtype]
    return torch.ones_like(size).masked_fill_(size > huge, unit)


def _std(squares: torch.Tensor, count: torch.Tensor, correction: int) -> torch.Tensor:
    return (squares / (count - correction).clamp(min=1)).sqrt()


def _batch_std(
    r: torch.Tensor, scored: torch.Tensor, correction: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Standard deviation of all scored rewards, and the unit it is in, 0-d."""
    count = scored.sum().to(r.dtype)
    top = r.masked_fill(~scored, float("-inf")).amax()
    unit = _unit(r.masked_fill(~scored, 0).abs().amax())
    drop = (r * unit - top * unit).masked_fill(~scored, 0)
    centred = (drop - drop.sum() / count.clamp(min=1)).masked_fill(~scored, 0)
    return _std(centred.square().sum(), count, correction), unit
