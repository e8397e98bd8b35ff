"""Launches the Triton kernels."""

from __future__ import annotations

import torch
import triton

from siri_kernels.group_advantages import triton_kernels as kernels
from siri_kernels.group_advantages.portable import NARROW, sort_groups


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
    """Advantages [B], means, deviations [G] and degenerate groups [G] bool, in float32.

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
    device, total = rewards.device, len(rewards)
    # The kernels take no strides.
    rewards = rewards.contiguous()
    if isinstance(groups, torch.Tensor):
        groups = groups.contiguous()
    if rewards.dtype == torch.bool:
        rewards = rewards.view(torch.uint8)
    options = {
        "WIDE": rewards.dtype not in NARROW,
        "BASELINE": baseline,
        "SCALE": scale,
        "VERL": singleton == "verl",
    }
    scan = _scannable(groups, num_groups, total)
    if isinstance(groups, int):
        size, count = groups, total // groups
        order = offsets = rewards  # not read
    elif scan:
        assert num_groups is not None
        count, ids = num_groups, groups.to(device)
    else:
        _, order, offsets = sort_groups(groups, num_groups)
        order, offsets = order.to(device), offsets.to(device)
        # Their largest size is not known here: rows for the usual ones, more steps for others.
        size, count = 32, len(offsets) - 1

    def empty(n: int) -> torch.Tensor:
        return torch.empty(n, dtype=torch.float32, device=device)

    advantages, means, stds = empty(total), empty(count), empty(count)
    degenerate = torch.empty(count, dtype=torch.int8, device=device)
    results = advantages, means, stds, degenerate
    numbers = eps, float(correction)
    # Partials in float64: with a mean far from 0 the partial means need all digits.
    if scan:
        programs, answers = (
            triton.cdiv(count, kernels.SCAN_ROWS),
            triton.cdiv(total, kernels.SCAN_ROWS),
        )
        partials = torch.empty(3 * programs, dtype=torch.float64, device=device)
        kernels.scan_kernel[(answers + programs,)](
            rewards,
            ids,
            *results,
            partials,
            total,
            count,
            answers,
            *numbers,
            **options,
            ROWS=kernels.SCAN_ROWS,
            COLUMNS=kernels.SCAN_COLUMNS,
        )
    else:
        columns = min(triton.next_power_of_2(size), kernels.COLUMNS)
        # float64 takes two registers.
        rows = max(kernels.TILE // (2 if options["WIDE"] else 1) // columns, 1)
        tiles = triton.cdiv(count, rows)
        tiles_each = triton.cdiv(tiles, kernels.PARTIALS) if scale == "batch_std" else 1
        programs = triton.cdiv(tiles, tiles_each)
        partials = torch.empty(3 * programs, dtype=torch.float64, device=device)
        kernels.group_kernel[(programs,)](
            rewards,
            order,
            offsets,
            *results,
            partials,
            size,
            count,
            tiles_each,
            *numbers,
            **options,
            EQUAL=isinstance(groups, int),
            ONE_TILE=isinstance(groups, int) and size <= columns,
            ROWS=rows,
            COLUMNS=columns,
            num_warps=kernels.warps(columns, options["WIDE"]),
        )
    if scale == "batch_std":
        kernels.batch_kernel[(triton.cdiv(total, kernels.TILE),)](
            advantages,
            partials,
            total,
            programs,
            *numbers,
            PARTIALS=kernels.PARTIALS,
            TILE=kernels.TILE,
        )
    return advantages, means, stds, degenerate.view(torch.bool)


def _scannable(groups: int | torch.Tensor, num_groups: int | None, total: int) -> bool:
    """Whether ids are few enough to be compared in pairs, and their number of groups is known."""
    if isinstance(groups, int) or num_groups is None:
        return False
    groups_fit = num_groups <= kernels.PARTIALS * kernels.SCAN_ROWS
    return total <= kernels.SCAN_LIMIT and groups_fit
