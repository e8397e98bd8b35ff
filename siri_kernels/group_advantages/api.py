"""``group_advantages``: the public function."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.compiler import is_compiling

from siri_kernels import _checks as check
from siri_kernels._backend import resolve_backend
from siri_kernels._compiled import is_number, numbers_in_graph, refusal
from siri_kernels.group_advantages import custom_op
from siri_kernels.group_advantages.compute import compute
from siri_kernels.group_advantages.validate import (
    BASELINES,
    OP,
    SCALES,
    SINGLETONS,
    checked_correction,
    group_size,
    no_ids,
    number_of_groups,
)


class GroupAdvantages(NamedTuple):
    """Advantages, and statistics of the groups.

    Args:
        advantages: [B] float32.
        mean: [G] float32.
        std: [G] float32.
        degenerate: [G] bool, whether all scored rewards of the group are equal.
    """

    advantages: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    degenerate: torch.Tensor


def group_advantages(
    rewards: torch.Tensor,
    groups: int | torch.Tensor,
    *,
    baseline: str = "mean",
    scale: str = "group_std",
    eps: float = 1e-6,
    correction: int = 1,
    singleton: str = "zero",
    num_groups: int | None = None,
    backend: str | None = None,
) -> GroupAdvantages:
    """How much better than its group each answer is: ``(reward - baseline) / (std + eps)``.

    The defaults are GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2; SIRI, arXiv 2509.25176,
    section 3.2) with verl's eps; TRL adds 1e-4. ``scale="none"`` is Dr. GRPO (arXiv 2503.20783),
    ``baseline="leave_one_out"`` RLOO (arXiv 2402.14740), ``scale="batch_std"`` Lite PPO
    (arXiv 2508.08221). Example, one group [1, 1, 0, 0, 0, 0, 0, 0]: +1.6202 and -0.5401; RLOO
    without scale: +0.8571 and -0.2857.

    Args:
        rewards: [B], any float or integer dtype, finite. NaN: could not be scored; its advantage
            is 0 and no mean or std counts it.
        groups: an int: equal groups of that many consecutive answers; or [B] int64 ids >= 0, equal
            for answers of one group, in any order, gaps allowed. Ids may stay on the CPU when
            rewards are on a GPU. Ids on a GPU without ``num_groups`` are the one case that waits
            for it: their number of groups, the length of three results, has to be read.
        baseline: "mean" of the group; "leave_one_out": mean of the others; "none": 0.
        scale: "group_std", "batch_std" (of all scored rewards about their own mean) or "none".
        eps: added to the std, number >= 0.
        correction: 1: unbiased std (Bessel), as TRL and verl; 0: population std.
        singleton: a single scored answer of a group has, "zero": advantage 0 (with
            ``baseline="none"`` only under "group_std", else what every answer has there); "verl":
            its reward as advantage, over 1 + eps with "group_std", as if mean 0 and std 1 were
            known.
        num_groups: with ids: they are below it and G is num_groups, also where an id has no answer
            (mean 0, std 0, degenerate).
        backend: None (fastest there is), "triton", "portable" or "reference".

    Returns:
        GroupAdvantages: advantages [B]; mean and std [G] of the group's scored rewards (std 0 for
        fewer than two, mean 0 for none); degenerate [G]: all scored rewards equal, with
        nothing to learn. G counts the distinct groups, in order of first answer for an int and of
        ascending id otherwise. float32, without gradient.

        An advantage is exactly 0 where the reward is NaN; in a degenerate group, whatever the size
        of its rewards, unless ``baseline="none"`` or it is verl's singleton; and where the std it
        would be divided by is 0. ``torch.compile`` takes the call as one ``torch.library``
        operator.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape, device or value, no rewards, B not a multiple of the group size;
            ids out of range and infinite rewards (read on a CPU, elsewhere under
            ``SIRI_KERNELS_CHECK=1``); an unknown option.
    """
    if is_compiling() and backend != "reference":
        try:
            return _in_graph(
                rewards, groups, baseline, scale, eps, correction, singleton, num_groups, backend
            )
        except (TypeError, ValueError) as error:
            return GroupAdvantages(*[refusal(error, rewards, groups)] * 4)
    return GroupAdvantages._make(
        compute(rewards, groups, baseline, scale, eps, correction, singleton, num_groups, backend)
    )


def _in_graph(
    rewards: torch.Tensor,
    groups: int | torch.Tensor,
    baseline: str,
    scale: str,
    eps: float,
    correction: int,
    singleton: str,
    num_groups: int | None,
    backend: str | None,
) -> GroupAdvantages:
    """The call while ``torch.compile`` traces it; refuses values that no operator takes."""
    check.tensor(OP, "rewards", rewards)
    by_id = isinstance(groups, torch.Tensor)
    if by_id:
        check.tensor(OP, "groups", groups)
    elif num_groups is not None:
        raise no_ids(num_groups)
    elif not is_number(groups) or not isinstance(groups, int) or groups < 1:
        group_size(groups, rewards.numel())
    if num_groups is not None and not (
        is_number(num_groups) and isinstance(num_groups, int) and 1 <= num_groups < 2**31
    ):
        number_of_groups(num_groups, 0)
    if not all(isinstance(name, str) for name in (baseline, scale, singleton)):
        check.choice(OP, "baseline", baseline, BASELINES)
        check.choice(OP, "scale", scale, SCALES)
        check.choice(OP, "singleton", singleton, SINGLETONS)
    if not is_number(eps):
        check.number(OP, "eps", eps, at_least=0)
    if not (is_number(correction) and isinstance(correction, int)):
        correction = checked_correction(correction)
    if backend is not None and not isinstance(backend, str):
        resolve_backend(OP, backend, rewards)
    out = custom_op.group_advantages(
        rewards.detach(),
        groups if by_id else None,
        None if by_id else groups,
        num_groups,
        numbers_in_graph([eps]),
        correction,
        baseline,
        scale,
        singleton,
        "" if backend is None else backend,
    )
    return GroupAdvantages(*out)
