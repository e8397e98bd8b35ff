"""Launches the Triton kernels: the host's work for them, of which there is little."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton

from siri_kernels._launch import launch
from siri_kernels.group_advantages import triton_kernels as kernels
from siri_kernels.group_advantages.portable import NARROW, sort_ids


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
    total, device = rewards.numel(), rewards.device
    # The kernels take no strides.
    if not rewards.is_contiguous():
        rewards = rewards.contiguous()
    if rewards.dtype is torch.bool:
        rewards = rewards.view(torch.uint8)
    wide = rewards.dtype not in NARROW
    constants = (wide, baseline, scale, singleton == "verl")
    equal = isinstance(groups, int)
    scan = False
    order = offsets = rewards  # not read
    if isinstance(groups, int):
        size, count = groups, total // groups
    elif total <= kernels.SCAN_LIMIT and num_groups is None:
        scan = True
        ids, count = _without_gaps(groups, device)
    elif num_groups is not None and _scannable(num_groups, total):
        scan, count = True, num_groups
        ids = groups.contiguous().to(device)
    else:
        order, offsets = sort_ids(groups.contiguous(), num_groups)
        order, offsets = order.to(device), offsets.to(device)
        # Their largest size is not known here: rows for the usual ones, more steps for others.
        size, count = 32, len(offsets) - 1

    def empty(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(n, dtype=dtype, device=device)

    results = empty(total), empty(count), empty(count), empty(count, torch.bool)
    if scan:
        plan = _scan_plan(total, count)
    else:
        tile = kernels.TILE, kernels.COLUMNS, kernels.PARTIALS
        plan = _plan(total, size, count, equal, wide, scale, *tile)
    # Partials in float64: with a mean far from 0 the partial means need all digits.
    batch = scale == "batch_std"
    partials = empty(3 * plan.programs, torch.float64) if batch else results[1]  # not read
    numbers = eps, float(correction)
    # What is allocated here is aligned.
    kinds: tuple[Any, ...] = (rewards.get_device(), rewards.dtype, *constants)
    if scan:
        kinds += _address(rewards, ids)
        launch(
            kernels.scan_kernel,
            plan.grid,
            rewards,
            ids,
            *results,
            partials,
            total,
            count,
            plan.grid[0] - plan.programs,
            *numbers,
            *constants,
            *plan.constants,
            kinds=kinds,
        )
    else:
        kinds += (*plan.constants, total < 2**31, *_address(rewards, order, offsets))
        launch(
            kernels.group_kernel,
            plan.grid,
            rewards,
            order,
            offsets,
            *results,
            partials,
            size,
            count,
            plan.tiles_each,
            *numbers,
            *constants,
            *plan.constants,
            kinds=kinds,
            num_warps=plan.warps,
        )
    if batch:
        launch(
            kernels.batch_kernel,
            plan.batch_grid,
            results[0],
            partials,
            total,
            plan.programs,
            *numbers,
            kernels.PARTIALS,
            kernels.TILE,
            kinds=(rewards.get_device(), total < 2**31, kernels.PARTIALS, kernels.TILE),
        )
    return results


def _without_gaps(ids: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, int]:
    """Few ids, numbered anew in their order, and their number, for which a GPU is waited for."""
    if _on_host(ids):
        distinct, ids = ids.unique(return_inverse=True)
        return ids.to(device), len(distinct)
    ids, total = ids.contiguous(), ids.numel()
    firsts = torch.empty(total, dtype=torch.int8, device=device)
    ranks = torch.empty_like(ids)
    num_groups = torch.empty(1, dtype=torch.int32, device=device)
    grid = (triton.cdiv(total, kernels.SCAN_ROWS), 1, 1)
    constants = kernels.SCAN_ROWS, kernels.SCAN_COLUMNS
    kinds = (ids.get_device(), *_address(ids))
    launch(kernels.first_kernel, grid, ids, firsts, total, *constants, kinds=kinds)
    launch(
        kernels.rank_kernel, grid, ids, firsts, ranks, num_groups, total, *constants, kinds=kinds
    )
    return ranks, int(num_groups)


def _on_host(ids: torch.Tensor) -> bool:
    return ids.is_cpu


class Plan(NamedTuple):
    """The form of a launch.

    Args:
        grid: programs of the first launch.
        programs: those that write partials.
        batch_grid: programs of the second launch.
        tiles_each: tiles of a program.
        constants: arguments of the kernel that the options do not decide.
        warps: of a program.
    """

    grid: tuple[int, int, int]
    programs: int
    batch_grid: tuple[int, int, int]
    tiles_each: int
    constants: tuple[Any, ...]
    warps: int


@functools.lru_cache(maxsize=256)
def _plan(
    total: int,
    size: int,
    count: int,
    equal: bool,
    wide: bool,
    scale: str,
    tile: int,
    most_columns: int,
    partials: int,
) -> Plan:
    """The form of a launch of ``group_kernel``.

    Args:
        total: B.
        size: of a group, or a guess.
        count: G.
        equal: whether all groups have this size.
        wide: whether float64 is computed with.
        scale: of the options.
        tile: rewards of a tile.
        most_columns: of a tile.
        partials: programs at most, where they add up.
    """
    columns = min(triton.next_power_of_2(size), most_columns)
    # float64 takes two registers.
    rows = max(tile // (2 if wide else 1) // columns, 1)
    tiles = triton.cdiv(count, rows)
    tiles_each = triton.cdiv(tiles, partials) if scale == "batch_std" else 1
    programs = triton.cdiv(tiles, tiles_each)
    one_tile = equal and size <= columns
    # In the kernel's order EQUAL and ONE_TILE are first.
    return Plan(
        (programs, 1, 1),
        programs,
        (triton.cdiv(total, tile), 1, 1),
        tiles_each,
        (equal, one_tile, rows, columns),
        kernels.warps(columns, wide),
    )


@functools.lru_cache(maxsize=256)
def _scan_plan(total: int, count: int) -> Plan:
    """The form of a launch of ``scan_kernel``."""
    rows = kernels.SCAN_ROWS
    programs, answers = triton.cdiv(count, rows), triton.cdiv(total, rows)
    batch = triton.cdiv(total, kernels.TILE)
    constants = (rows, kernels.SCAN_COLUMNS)
    return Plan((answers + programs, 1, 1), programs, (batch, 1, 1), 1, constants, 4)


def _address(*tensors: torch.Tensor) -> tuple[bool, ...]:
    """Whether each is aligned, as Triton asks."""
    # A tensor without storage is compiled for, never launched.
    return tuple(type(t) is torch.Tensor and t.data_ptr() % 16 == 0 for t in tensors)


def _scannable(num_groups: int, total: int) -> bool:
    """Whether ids are few enough to be compared in pairs."""
    return total <= kernels.SCAN_LIMIT and num_groups <= kernels.PARTIALS * kernels.SCAN_ROWS
