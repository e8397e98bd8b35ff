"""``group_advantages`` as a ``torch.library`` operator, which ``torch.compile`` keeps in its graph.

:mod:`siri_kernels._compiled` describes the arguments of operators and when they check.
"""

from __future__ import annotations

import torch

from siri_kernels.group_advantages.compute import Results, compute


@torch.library.custom_op("siri_kernels::group_advantages", mutates_args=())
def group_advantages(
    rewards: torch.Tensor,
    ids: torch.Tensor | None,
    size: int | None,
    num_groups: int | None,
    numbers: torch.Tensor,
    correction: int,
    baseline: str,
    scale: str,
    singleton: str,
    backend: str,
) -> Results:
    """The eager call.

    Args:
        rewards: [B].
        ids: [B] int64; None: groups of ``size``.
        size: of a group, without ids.
        num_groups: with ids: G, or None.
        numbers: [1] float64 on the CPU, eps.
        correction: 0 or 1.
        baseline: "mean", "leave_one_out" or "none".
        scale: "group_std", "batch_std" or "none".
        singleton: "zero" or "verl".
        backend: empty: the fastest.
    """
    groups = size if ids is None else ids
    assert groups is not None
    eps = float(numbers)
    return compute(
        rewards,
        groups,
        baseline,
        scale,
        eps,
        correction,
        singleton,
        num_groups,
        backend or None,
    )


@group_advantages.register_fake
def _(
    rewards: torch.Tensor,
    ids: torch.Tensor | None,
    size: int | None,
    num_groups: int | None,
    numbers: torch.Tensor,
    correction: int,
    baseline: str,
    scale: str,
    singleton: str,
    backend: str,
) -> Results:
    groups: int | torch.SymInt
    if size is not None:
        groups = rewards.numel() // size
    elif num_groups is not None:
        groups = num_groups
    else:  # a size that values decide
        groups = torch.library.get_ctx().new_dynamic_size()

    def new(n: int | torch.SymInt, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return rewards.new_empty(n, dtype=dtype)

    return new(rewards.numel()), new(groups), new(groups), new(groups, torch.bool)
