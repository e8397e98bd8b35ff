"""Checks of what a schedule is given; every message begins with the key."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection

from siri_train.registry import one_of

_LARGEST = 2**53  # float64, in which the formulas are, holds every whole number up to here


def whole(key: str, value: object, least: int) -> int:
    """``value`` as an int from ``least`` to 2**53.

    Args:
        key: what it was given for.
        value: an int, or a whole number of NumPy's.
        least: the smallest that is taken.

    Raises:
        TypeError: no whole number.
        ValueError: too small or too large.
    """
    accepted = f"takes a whole number of at least {least}"
    if isinstance(value, bool):  # True is an int to Python, but never a length anyone meant
        raise TypeError(f"{key}: got {value!r} (bool); {accepted}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{key}: got {value!r} ({type(value).__name__}); {accepted}") from None
    if number < least:
        raise ValueError(f"{key}: got {number}; {accepted}")
    if number > _LARGEST:
        raise ValueError(f"{key}: got {_short(number)}; takes a whole number up to 2**53")
    return number


def whole_option(name: str, value: object, least: int, most: int | None = None) -> int:
    """The value of an option of a shape, which is a whole number.

    Args:
        name: of the option.
        value: as the recipe has it.
        least: the smallest that is taken.
        most: the largest; None: 2**53.

    Raises:
        ValueError: it is none, or lies outside.
    """
    span = f"from {least} to {most}" if most is not None else f"of at least {least}"
    if type(value) is not int or not least <= value <= (_LARGEST if most is None else most):
        given = _short(value) if type(value) is int else repr(value)
        raise ValueError(f"options.{name}: got {given}; takes a whole number {span}")
    return value


def number_option(name: str, value: object, least: float, below: float) -> float:
    """The value of an option of a shape, which is a number.

    Args:
        name: of the option.
        value: as the recipe has it.
        least: the smallest that is taken.
        below: the first that is too large.

    Raises:
        ValueError: it is none, or lies outside.
    """
    if type(value) not in (int, float) or not math.isfinite(value) or not least <= value < below:  # type: ignore[arg-type,operator]
        raise ValueError(
            f"options.{name}: got {value!r}; takes a number of at least {least} and below {below}"
        )
    return float(value)  # type: ignore[arg-type]


def check_choice(key: str, value: object, accepted: Collection[str]) -> None:
    """Refuse ``value`` unless accepted, naming the accepted names and the nearest.

    Args:
        key: what it was given for.
        value: what was given.
        accepted: the names.

    Raises:
        TypeError: no text.
        ValueError: another name.
    """
    if not isinstance(value, str):
        names = ", ".join(map(repr, accepted))
        raise TypeError(f"{key}: got {value!r} ({type(value).__name__}); takes one of {names}")
    if value not in accepted:
        raise ValueError(f"{key}: got {value!r}; {one_of(accepted, value, quote=chr(39))}")


def _short(number: int) -> str:
    return str(number) if number.bit_length() < 128 else f"a number of {number.bit_length()} bits"
