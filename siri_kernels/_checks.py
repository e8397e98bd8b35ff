"""Argument checks shared by all operations.

An error names the operation, the argument, the value and the accepted values. Checks that read
tensor values would wait for the GPU, so they run on CPU tensors, and on others only under
``SIRI_KERNELS_CHECK=1`` in the environment.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from numbers import Integral, Number, Real
from typing import Any

import numpy as np
import torch

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
COMPLEX = (torch.complex64, torch.complex128)
LARGEST = torch.finfo(torch.float32).max


def may_read(tensor: torch.Tensor) -> bool:
    """Whether reading values of ``tensor`` is allowed here (see the module's docstring)."""
    return tensor.device.type == "cpu" or (
        tensor.device.type != "meta" and os.environ.get("SIRI_KERNELS_CHECK") == "1"
    )


def is_dtensor(value: torch.Tensor) -> bool:
    """Whether it is a DTensor, by its type: a traced tensor does not have the method."""
    return hasattr(type(value), "full_tensor")


def describe(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def shown(value: object) -> str:
    """``value`` as an error shows it: on one line, and not all of it."""
    if isinstance(value, torch.Tensor):
        return "a nested tensor" if value.is_nested else f"a tensor {describe(value)}"
    if isinstance(value, np.ndarray) and torch.compiler.is_compiling():
        return "a NumPy value (pass a Python number: torch.compile does not read it)"
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no int of more than 4300 digits
        text = "a very large int"
    return text if len(text) <= 80 else f"{text[:77]}..."


def tensor(op: str, name: str, value: object, *, holds_values: bool = False) -> torch.Tensor:
    """A dense tensor; ``holds_values``: not on the meta device (others are compared with it)."""
    if (  # the usual case in the fewest steps
        type(value) is torch.Tensor
        and value.layout == torch.strided
        and not (value.is_nested or value.is_quantized or value.is_meta)
    ):
        return value
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested or value.is_quantized:
        kind = "nested" if value.is_nested else "quantized" if value.is_quantized else value.layout
        raise TypeError(
            f"{op}: {name} must be a dense torch.Tensor; got one that is "
            f"{str(kind).removeprefix('torch.')}"
        )
    if is_dtensor(value):
        head = ", or call the head as a module (LogprobHead), which gathers it"
        raise TypeError(
            f"{op}: {name} must be a plain torch.Tensor; got a DTensor {describe(value)}. Pass "
            f"{name}.full_tensor()" + head * (name == "weight")
        )
    if holds_values and value.device.type == "meta":
        raise ValueError(
            f"{op}: {name} must be on a device that holds values; got {describe(value)}"
        )
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
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> float:
    """A finite Python number within bounds, as a float; NaN and infinity are refused."""
    if (  # the usual case in the fewest steps; NaN is within no bounds
        type(value) is float
        and -LARGEST <= value <= LARGEST
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (at_most is None or value <= at_most)
    ):
        return value
    takes = "a finite number"
    if above is not None:
        takes += f" > {above:g}"
    if at_least is not None:
        takes += f" >= {at_least:g}"
    if at_most is not None:
        takes += f" and <= {at_most:g}"
    if isinstance(value, bool) or not isinstance(value, Real):  # Real: NumPy's scalars too
        raise TypeError(
            f"{op}: {name} must be {takes}; got {shown(value)} ({type(value).__name__})"
        )
    given: Any = value.item() if isinstance(value, np.generic) else value  # float16 would overflow
    if given != given or -LARGEST <= given <= LARGEST:
        value = float(given)
    elif given not in (math.inf, -math.inf):  # an int or a fraction may be past any float
        raise ValueError(f"{op}: {name} must be {takes} that float32 can hold; got {shown(value)}")
    if (
        not math.isfinite(value)
        or (above is not None and value <= above)
        or (at_least is not None and value < at_least)
        or (at_most is not None and value > at_most)
    ):
        raise ValueError(f"{op}: {name} must be {takes}; got {value!r}")
    return float(value)


def integer(
    op: str, name: str, value: object, *, at_least: int = -(2**63), at_most: int = 2**63 - 1
) -> int:
    """An int (NumPy's too, no bool) within bounds, those of int64 unless said otherwise."""
    if type(value) is int and at_least <= value <= at_most:
        return value
    takes = "an int"
    if at_least > -(2**63):
        takes += f" >= {at_least}"
    if at_most < 2**63 - 1:
        takes += f"{' and' if at_least > -(2**63) else ''} <= {at_most}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"{op}: {name} must be {takes}; got {shown(value)} ({type(value).__name__})"
        )
    number = int(value)
    if not at_least <= number <= at_most:
        beyond = "" if takes != "an int" else " of 64 bits"
        raise ValueError(f"{op}: {name} must be {takes}{beyond}; got {shown(value)}")
    return number


def flag(op: str, name: str, value: object) -> bool:
    """A bool (NumPy's too)."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{op}: {name} must be a bool; got {shown(value)}")
    return bool(value)


def fill(op: str, name: str, value: Any, dtype: torch.dtype) -> Any:
    """A number that a tensor of this dtype can hold: NaN and infinity where it is floating."""
    if not isinstance(value, Number):
        raise TypeError(
            f"{op}: {name} must be a number; got {shown(value)} ({type(value).__name__})"
        )
    number: Any = value
    held = number
    try:
        if dtype.is_complex:
            held, fits = complex(number), True
        elif dtype.is_floating_point:
            held = float(number)
            fits = not math.isfinite(held) or abs(held) <= torch.finfo(dtype).max
        else:
            held = int(number)
            limits = (0, 1) if dtype == torch.bool else torch.iinfo(dtype)
            least, most = limits if isinstance(limits, tuple) else (limits.min, limits.max)
            fits = held == value and least <= held <= most
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(
            f"{op}: {name} must be a number that {str(dtype).removeprefix('torch.')} can hold; got "
            f"{shown(value)}"
        )
    return held


def choice(op: str, name: str, value: object, allowed: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(
            f"{op}: {name} must be one of {', '.join(map(repr, allowed))}; got {shown(value)}"
        )
