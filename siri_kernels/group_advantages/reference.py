"""Grouped advantages as a loop over groups, in float64: the specification."""

from __future__ import annotations

import torch


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
    """Advantages [B], means, deviations [G] and degenerate groups [G] bool, in float64.

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
    r = rewards.double()
    if isinstance(groups, int):
        ids = torch.arange(len(r), dtype=torch.int64, device=r.device) // groups
    else:
        ids = groups.to(r.device)
    advantages = torch.zeros_like(r)
    means, stds, degenerate = [], [], []
    batch_std = _std(r[~r.isnan()], correction)
    for group in ids.unique() if num_groups is None else range(num_groups):
        members = ((ids == group) & ~r.isnan()).nonzero()[:, 0]
        x = r[members]
        n = len(x)
        mean = x.mean() if n else r.new_zeros(())
        std = _std(x, correction)
        constant = n == 0 or bool((x == x[0]).all())
        means.append(mean)
        stds.append(std)
        degenerate.append(constant)

        alone = n == 1 and singleton == "verl"  # mean 0, std 1
        if baseline == "none" or alone:
            a = x
        elif constant:
            a = torch.zeros_like(x)
        elif baseline == "mean":
            a = x - mean
        else:
            a = x - (x.sum() - x) / (n - 1)
        if scale != "none":
            divisor = batch_std
            if scale == "group_std":
                divisor = torch.ones_like(std) if alone else std
            a = a / (divisor + eps) if divisor > 0 else torch.zeros_like(a)
        advantages[members] = a
    return (
        advantages,
        torch.stack(means),
        torch.stack(stds),
        torch.tensor(degenerate, dtype=torch.bool, device=r.device),
    )


def _std(x: torch.Tensor, correction: int) -> torch.Tensor:
    """Standard deviation; exactly 0 where there are fewer than two values or all are equal."""
    if len(x) < 2 or bool((x == x[0]).all()):
        return x.new_zeros(())
    size = x.abs().max()
    return (x / size).std(correction=correction) * size  # the squares of huge ones overflow
