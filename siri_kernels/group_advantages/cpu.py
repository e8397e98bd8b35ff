"""Grouped advantages on a CPU: a few NumPy operations in float64 for what rewards usually are.

A call on a few hundred rewards is all overhead, and NumPy's is half of PyTorch's. float64 makes
the rest simple. It holds float32 rewards, and sums of up to 2**29 equal ones, exactly: the mean of
a constant group is its reward, so that its advantages are exactly 0 whatever its level, and no
square overflows. Sums have one order, whatever the number of threads.

What is unusual is left to :mod:`.portable`: rewards without a score, huge ones, float64, large
integers, ids far apart, single answers under ``singleton="verl"``, tracing.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import from_numpy
from torch.utils._python_dispatch import _get_current_dispatch_mode

from siri_kernels.group_advantages.portable import NARROW
from siri_kernels.group_advantages.validate import Options, checked_options

try:  # einsum without its wrapper in Python, which takes as long as a call
    from numpy._core.multiarray import c_einsum as einsum
except ImportError:
    from numpy import einsum

Arrays = tuple[Any, Any, Any, Any]
Results = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
HUGE = 1e70  # sum of squares: above it float32 may not hold a std
PRODUCT = 1 << 13  # rewards up to which BLAS adds up: more would start threads of its own
BLOCK = 1 << 15  # rewards that are computed together: 256 KiB of float64 stay in the cache
SPREAD = 4  # ids are an index where the largest is below so many times the number of rewards


def plain_rows(
    rewards: torch.Tensor,
    size: int,
    baseline: str,
    scale: str,
    eps: float,
    correction: int,
    singleton: str,
) -> Results | None:
    """The most usual call, float32 and groups of one size, by the shortest way there is.

    Args:
        rewards: of any kind, not checked, as all other arguments.
        size: of a group.
        baseline: "mean", "leave_one_out" or "none".
        scale: "group_std", "batch_std" or "none".
        eps: added to the std.
        correction: 0 or 1.
        singleton: "zero" or "verl".

    Returns:
        As :func:`group_advantages`; None also where an argument is wrong, which others say.
    """
    if type(rewards) is not torch.Tensor or rewards.dtype is not torch.float32 or _seen(rewards):
        return None
    try:
        options = checked_options(baseline, scale, eps, correction, singleton)
        values = rewards.numpy()
        if values.ndim != 1 or size < 1 or not values.size or values.size % size:
            return None
        arrays = _equal(values, size, options)
    except (RuntimeError, TypeError, ValueError, FloatingPointError):
        return None
    return None if arrays is None else _tensors(*arrays)


def group_advantages(
    rewards: torch.Tensor, groups: int | torch.Tensor, num_groups: int | None, options: Options
) -> Results | None:
    """Advantages [B], means, deviations [G] and degenerate groups [G] bool, in float32.

    Args:
        rewards: [B], checked, but perhaps infinite.
        groups: the size, or ids [B] int64 whose values are not checked.
        num_groups: with ids: G, or None.
        options: checked.

    Returns:
        None where the call is left to others, as with any value that is to be refused.
    """
    if _seen(rewards):
        return None
    try:
        values = _float32(rewards)
        if values is None:
            return None
        if isinstance(groups, int):
            arrays = _equal(values, groups, options)
        else:
            arrays = _by_id(values, groups.numpy(), num_groups, options)
    except (RuntimeError, TypeError, FloatingPointError):
        # A tensor that NumPy cannot read; or a user has NumPy raise where a number is tiny.
        return None
    return None if arrays is None else _tensors(*arrays)


def _seen(rewards: torch.Tensor) -> bool:
    """Whether PyTorch's operators are needed: on another device, for a mode, or when traced."""
    return not rewards.is_cpu or _get_current_dispatch_mode() is not None or torch.jit.is_tracing()


def _tensors(advantages: Any, mean: Any, std: Any, degenerate: Any) -> Results:
    return (
        from_numpy(advantages),
        from_numpy(mean),
        from_numpy(std),
        from_numpy(degenerate),
    )


def _float32(rewards: torch.Tensor) -> Any:
    """The rewards in NumPy, None if float32 does not hold them exactly."""
    if rewards.dtype is not torch.float32:
        if rewards.dtype not in NARROW:
            return None
        rewards = rewards.to(torch.float32)
    return (rewards.detach() if rewards.requires_grad else rewards).numpy()


def _usual(rewards: Any) -> bool:
    """Whether all are finite, and not so large that float32 may not hold their std.

    Neither of the two products warns, whatever NumPy's settings, so that nothing later does.
    """
    if len(rewards) <= PRODUCT:
        return float(rewards.dot(rewards)) < HUGE
    return float(einsum("i,i->", rewards, rewards)) < HUGE


@functools.lru_cache(maxsize=64)
def _numbers(size: int, correction: int, eps: float) -> tuple[Any, Any, Any, Any]:
    """Size, degrees of freedom, eps and so many ones (``PRODUCT`` at most), as arrays.

    A ufunc is slower with a Python number.
    """
    numbers = np.array(float(size)), np.array(max(size - correction, 1.0)), np.array(eps)
    return *numbers, np.ones(min(size, PRODUCT))


def _equal(values: Any, size: int, options: Options) -> Arrays | None:
    """Consecutive groups of one size, blocks of them at a time."""
    total = len(values)
    if size == 1 and options.verl:
        return None
    if total <= BLOCK or options.scale == "batch_std":
        block = _rows(values, size, options)
        if block is None:
            return None
        advantages, mean, std, degenerate = block
        return (
            advantages.astype(np.float32),
            mean.astype(np.float32),
            std.astype(np.float32),
            degenerate,
        )
    rows = max(BLOCK // size, 1)
    advantages = np.empty(total, np.float32)
    mean, std = np.empty((2, total // size), np.float32)
    degenerate = np.empty(total // size, np.bool_)
    for row in range(0, total // size, rows):
        inside, some = slice(row * size, (row + rows) * size), slice(row, row + rows)
        block = _rows(values[inside], size, options)
        if block is None:
            return None
        advantages[inside], mean[some], std[some], degenerate[some] = block
    return advantages, mean, std, degenerate


def _rows(values: Any, size: int, options: Options) -> Arrays | None:
    """Groups as rows of a matrix; the results are in float64."""
    count, freedom, eps, ones = _numbers(size, options.correction, options.eps)
    flat = values.astype(np.float64)
    if not _usual(flat):
        return None
    rewards = flat.reshape(-1, size)
    few = len(flat) <= PRODUCT  # a product with ones takes half of einsum's time
    mean = rewards.dot(ones) if few else einsum("ij->i", rewards)
    mean /= count
    centred = rewards
    if options.baseline == "none":
        centred = rewards - mean[:, None]
    else:
        rewards -= mean[:, None]
    squares = (centred * centred).dot(ones) if few else einsum("ij,ij->i", centred, centred)
    degenerate = np.logical_not(squares)
    std = squares / freedom
    np.sqrt(std, std)
    if options.scale == "group_std":
        divisor = std + eps
        if not options.eps or options.baseline == "none":  # else 0 / eps
            divisor[degenerate] = math.inf
        rewards /= divisor[:, None]
    elif options.scale == "batch_std":
        gap = mean - einsum("i->", mean) / len(mean)
        together = float(einsum("i->", squares)) + size * float(einsum("i,i->", gap, gap))
        rewards /= _batch_divisor(together, len(flat), options)
    if options.baseline == "leave_one_out" and size > 1:
        flat *= size / (size - 1)
    return flat, mean, std, degenerate


def _batch_divisor(squares: float, count: int, options: Options) -> float:
    """Standard deviation of the batch and eps; infinity where it is 0."""
    std = math.sqrt(squares / max(count - options.correction, 1))
    return std + options.eps if std > 0 else math.inf


def _consecutive(ids: Any, num_groups: int | None) -> int:
    """The size of the groups if ids are 0, 0, ..., 1, 1, ... with as many of each; else 0."""
    total, groups = len(ids), int(ids[-1]) + 1
    if groups < 1 or total % groups or num_groups not in (None, groups):
        return 0
    size = total // groups
    if ids[0] != 0 or ids[size - 1] != 0 or ids[total - size] != groups - 1:
        return 0  # most others, after three looks
    same = ids.reshape(groups, size) == np.arange(groups)[:, None]
    return size if same.all() else 0


def _by_id(values: Any, ids: Any, num_groups: int | None, options: Options) -> Arrays | None:
    """Groups by id, in any order."""
    size = _consecutive(ids, num_groups)
    if size:
        return _equal(values, size, options)
    total = len(values)
    largest = int(ids.max())
    groups = largest + 1 if num_groups is None else num_groups
    if int(ids.min()) < 0 or largest >= groups or groups > SPREAD * total + 1024:
        return None
    count = np.bincount(ids, minlength=groups)
    if options.verl and (count == 1).any():
        return None
    rewards = values.astype(np.float64)
    if not _usual(rewards):
        return None
    at_least_one = np.maximum(count, 1)
    mean: Any = np.bincount(ids, rewards, groups)
    mean /= at_least_one
    per_answer = mean[ids]
    if options.baseline == "none":
        centred = np.subtract(rewards, per_answer)
    else:
        centred = np.subtract(rewards, per_answer, rewards)
    squares = np.bincount(ids, np.multiply(centred, centred, per_answer), groups)
    degenerate = squares == 0
    std = np.sqrt(squares / np.maximum(count - options.correction, 1))
    divisor = np.ones(groups)
    if options.scale == "group_std":
        divisor = std + options.eps
        divisor[degenerate] = math.inf
    elif options.scale == "batch_std":
        middle = float(einsum("i,i->", mean, count.astype(np.float64))) / total
        gap = mean - middle
        together = float(einsum("i->", squares)) + float(einsum("i,i,i->", gap, gap, count))
        divisor *= _batch_divisor(together, total, options)
    if options.baseline == "leave_one_out":
        divisor *= np.maximum(count - 1, 1) / at_least_one
    np.take(divisor, ids, out=per_answer, mode="clip")
    rewards /= per_answer
    if num_groups is None and not count.all():
        there = count > 0
        mean, std, degenerate = mean[there], std[there], degenerate[there]
    return (
        rewards.astype(np.float32),
        mean.astype(np.float32),
        std.astype(np.float32),
        degenerate,
    )
