"""Argument checks shared by all operations.

An error names the operation, the argument, what it got and what it takes. Checks that read tensor
values would wait for the GPU, so they run on CPU tensors, and on others only when the environment
says ``SIRI_KERNELS_CHECK=1``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from numbers import Real

import torch

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def may_read(tensor: torch.Tensor) -> bool:
    """Whether reading values of ``tensor`` is allowed here (see the module's docstring)."""
    return tensor.device.type == "cpu" or (
        tensor.device.type != "meta" and os.environ.get("SIRI_KERNELS_CHECK") == "1"
    )


def describe(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def tensor(op: str, name: str, value: object) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    return value


def dtype(op: str, name: str, value: torch.Tensor, allowed: Sequence[torch.dtype] = FLOATS) -> None:
    if value.dtype not in allowed:
        names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
        raise TypeError(f"{op}: {name} must have dtype {names}; got {describe(value)}")


def shape(op: str, name: str, value: torch.Tensor, expected: Sequence[int], meaning: str) -> None:
    if tuple(value.shape) != tuple(expected):
        raise ValueError(
            f"{op}: {name} must have shape {meaning} = {list(expected)}; got {describe(value)}"
        )


def device(op: str, name: str, value: torch.Tensor, other: str, expected: torch.device) -> None:
    if value.device != expected:
        raise ValueError(
            f"{op}: {name} must be on the device of {other}, {expected}; got {describe(value)}"
        )


def number(
    op: str,
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> float:
    """A finite Python number within bounds, as a float; NaN and infinity are refused."""
    takes = "a finite number"
    if above is not None:
        takes += f" > {above:g}"
    if at_least is not None:
        takes += f" >= {at_least:g}"
    if at_most is not None:
        takes += f" and <= {at_most:g}"
    if isinstance(value, bool) or not isinstance(value, Real):  # Real: NumPy's scalars too
        raise TypeError(f"{op}: {name} must be {takes}; got {value!r} ({type(value).__name__})")
    value = float(value)
    if (
        not math.isfinite(value)
        or (above is not None and value <= above)
        or (at_least is not None and value < at_least)
        or (at_most is not None and value > at_most)
    ):
        raise ValueError(f"{op}: {name} must be {takes}; got {value!r}")
    return value


def choice(op: str, name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(
            f"{op}: {name} must be one of {', '.join(map(repr, allowed))}; got {value!r}"
        )
