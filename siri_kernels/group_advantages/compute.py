"""``group_advantages``, eager: everything is checked, then a backend computes."""

from __future__ import annotations

import functools
from typing import Any

import torch

from siri_kernels._backend import resolve_backend
from siri_kernels._device import device_of
from siri_kernels.group_advantages import cpu, portable, reference
from siri_kernels.group_advantages.validate import OP, check_values, checked, checked_options

Results = cpu.Results


def compute(
    rewards: torch.Tensor,
    groups: int | torch.Tensor,
    baseline: str,
    scale: str,
    eps: float,
    correction: int,
    singleton: str,
    num_groups: int | None,
    backend: str | None,
) -> Results:
    """Advantages, means, deviations and degenerate groups.

    Args:
        rewards: [B].
        groups: the size, or ids [B] int64.
        baseline: "mean", "leave_one_out" or "none".
        scale: "group_std", "batch_std" or "none".
        eps: added to the std.
        correction: 0 or 1.
        singleton: "zero" or "verl".
        num_groups: with ids: G, or None.
        backend: None, "triton", "portable" or "reference".
    """
    if backend is None and num_groups is None and type(groups) is int:
        found = cpu.plain_rows(rewards, groups, baseline, scale, eps, correction, singleton)
        if found is not None:
            return found
    backend = resolve_backend(OP, backend, rewards)
    groups, num_groups = checked(rewards, groups, num_groups)
    options = checked_options(baseline, scale, eps, correction, singleton)
    if backend == "portable":
        found = cpu.group_advantages(rewards, groups, num_groups, options)
        if found is not None:
            return found
    check_values(rewards, groups, num_groups)
    arguments = (
        rewards,
        groups,
        options.baseline,
        options.scale,
        options.eps,
        options.correction,
        options.singleton,
        num_groups,
    )
    if backend == "triton":
        with device_of(rewards):
            results: Results = _launches().group_advantages(*arguments)
            return results
    implementation: Any = reference if backend == "reference" else portable
    with torch.no_grad(), device_of(rewards):
        advantages, mean, std, degenerate = implementation.group_advantages(*arguments)
    return advantages.float(), mean.float(), std.float(), degenerate


@functools.cache
def _launches() -> Any:
    """Triton may not be installed."""
    from siri_kernels.group_advantages import triton

    return triton
