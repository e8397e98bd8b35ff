"""Checks of the arguments of ``group_advantages``."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch

from siri_kernels import _checks as check

OP = "group_advantages"
BASELINES = ("mean", "leave_one_out", "none")
SCALES = ("group_std", "batch_std", "none")
SINGLETONS = ("zero", "verl")
REWARD_DTYPES = (
    *check.FLOATS,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
)
_REWARD_DTYPES = frozenset(REWARD_DTYPES)


@dataclass(frozen=True, slots=True)
class Options:
    """Everything but the rewards and their groups, checked.

    Args:
        baseline: "mean", "leave_one_out" or "none".
        scale: "group_std", "batch_std" or "none".
        eps: added to the std.
        correction: 0 or 1.
        singleton: "zero" or "verl".
    """

    baseline: str
    scale: str
    eps: float
    correction: int
    singleton: str

    @property
    def verl(self) -> bool:
        """Whether a single scored answer has mean 0 and std 1."""
        return self.singleton == "verl"


def checked_options(
    baseline: Any, scale: Any, eps: Any, correction: Any, singleton: Any
) -> Options:
    """The options of a call, if they are right.

    Args:
        baseline: one of ``BASELINES``.
        scale: one of ``SCALES``.
        eps: a number >= 0.
        correction: 0 or 1.
        singleton: one of ``SINGLETONS``.

    Raises:
        TypeError: wrong type.
        ValueError: wrong value.
    """
    try:
        return _checked_options(baseline, scale, eps, correction, singleton)
    except TypeError:  # a number that is none, or it cannot be a key of the cache
        pass
    return _checked_options.__wrapped__(baseline, scale, eps, correction, singleton)


@functools.lru_cache(maxsize=64, typed=True)  # True is no 1 here
def _checked_options(
    baseline: Any, scale: Any, eps: Any, correction: Any, singleton: Any
) -> Options:
    check.choice(OP, "baseline", baseline, BASELINES)
    check.choice(OP, "scale", scale, SCALES)
    check.choice(OP, "singleton", singleton, SINGLETONS)
    eps = check.number(OP, "eps", eps, at_least=0)
    return Options(baseline, scale, eps, checked_correction(correction), singleton)


def checked_correction(value: Any) -> int:
    """``correction`` as an int.

    Raises:
        ValueError: not 0 or 1.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or value not in (0, 1):
        raise ValueError(f"{OP}: correction must be 0 or 1; got {check.shown(value)}")
    return int(float(value))


def checked(
    rewards: torch.Tensor, groups: int | torch.Tensor, num_groups: int | None
) -> tuple[int | torch.Tensor, int | None]:
    """Check the rewards and their groups, but for the values: :func:`check_values`.

    Args:
        rewards: [B].
        groups: the size, or ids [B].
        num_groups: with ids: G, or None.

    Returns:
        ``groups``, a size as an int, and ``num_groups``.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape or value.
    """
    if not _plain(rewards):
        check.tensor(OP, "rewards", rewards, holds_values=True)
        check.dtype(OP, "rewards", rewards, REWARD_DTYPES)
        if rewards.dim() != 1 or len(rewards) == 0:
            raise ValueError(
                f"{OP}: rewards must have shape [B] with B >= 1; got {check.describe(rewards)}"
            )
    if not isinstance(groups, torch.Tensor):
        if num_groups is not None:
            raise no_ids(num_groups)
        return group_size(groups, rewards.numel()), None
    check.tensor(OP, "groups", groups)
    check.dtype(OP, "groups", groups, (torch.int64,))
    check.shape(OP, "groups", groups, rewards.shape, "that of rewards, [B]")
    if groups.device.type != "cpu":
        check.device(OP, "groups", groups, "rewards", rewards.device)
    return groups, None if num_groups is None else number_of_groups(num_groups, 0)


def _plain(rewards: object) -> bool:
    """Whether all is well with the rewards, found in few steps; if not, they may be well too."""
    return (
        type(rewards) is torch.Tensor
        and rewards.dim() == 1
        and rewards.dtype in _REWARD_DTYPES
        and rewards.layout is torch.strided
        and not rewards.is_nested
        and not rewards.is_meta
        and rewards.numel() > 0
    )


def check_values(rewards: torch.Tensor, groups: int | torch.Tensor, num_groups: int | None) -> None:
    """Check what is in the tensors, where it may be read.

    Args:
        rewards: [B], checked otherwise.
        groups: the size, or ids [B].
        num_groups: with ids: G, or None.

    Raises:
        ValueError: an infinite reward, or an id that is out of range.
    """
    if check.may_read(rewards) and bool(rewards.isinf().any()):
        raise ValueError(f"{OP}: rewards must be finite or NaN (not scored); got an infinity")
    if not isinstance(groups, torch.Tensor) or not check.may_read(groups):
        return
    if bool((groups < 0).any()):
        raise ValueError(f"{OP}: groups must hold ids >= 0; got {int(groups.min())}")
    if num_groups is not None:
        number_of_groups(num_groups, int(groups.max()))


def no_ids(num_groups: object) -> ValueError:
    """The error for ``num_groups`` beside a group size."""
    return ValueError(f"{OP}: num_groups is for groups given as ids; got {check.shown(num_groups)}")


def group_size(groups: Any, answers: int) -> int:
    """The size of a group as an int.

    Raises:
        TypeError: not an int.
        ValueError: it does not divide the number of answers.
    """
    if type(groups) is int and groups >= 1 and answers % groups == 0:
        return groups
    if isinstance(groups, bool) or not isinstance(groups, Integral):
        what = type(groups).__name__
        if what == "ndarray" and torch.compiler.is_compiling():  # an int of NumPy's is one there
            what = check.shown(groups)
        raise TypeError(f"{OP}: groups must be an int or a [B] int64 tensor; got {what}")
    if groups < 1 or answers % groups:
        raise ValueError(
            f"{OP}: groups as an int must be >= 1 and divide the number of rewards, "
            f"{answers}; got {check.shown(groups)}"
        )
    return int(groups)


def number_of_groups(num_groups: Any, largest: int) -> int:
    """``num_groups`` as an int; ``largest`` is the largest id, 0 if ids may not be read.

    Raises:
        TypeError: not an int.
        ValueError: not larger than every id.
    """
    if isinstance(num_groups, bool) or not isinstance(num_groups, Integral):
        raise TypeError(
            f"{OP}: num_groups must be None or an int; got {check.shown(num_groups)} "
            f"({type(num_groups).__name__})"
        )
    if num_groups < 1 or largest >= num_groups:
        raise ValueError(
            f"{OP}: num_groups must be >= 1 and larger than every id; got {check.shown(num_groups)}"
        )
    # Three results have that many entries.
    return check.integer(OP, "num_groups", num_groups, at_most=2**31 - 1)
