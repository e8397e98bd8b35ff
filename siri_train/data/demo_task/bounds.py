"""Bounds of the built-in tasks' parameters, checked by name."""

from __future__ import annotations


def require_count(name: str, value: object, most: int) -> None:
    """Refuse anything but a whole number from 1 to ``most``.

    Args:
        name: of the parameter.
        value: as given.
        most: the largest that is taken.

    Raises:
        ValueError: naming the parameter, the value and what is taken.
    """
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name}: got {value!r}; takes a whole number from 1 to {most}")


def require_share(name: str, value: object) -> None:
    """Refuse anything but a number from 0 to 1.

    Raises:
        ValueError: naming the parameter, the value and what is taken.
    """
    if not _is_share(value):
        raise ValueError(f"{name}: got {value!r}; takes a number from 0 to 1")


def require_shares(name: str, values: object) -> None:
    """Refuse anything but a list of numbers from 0 to 1 that is not empty.

    Raises:
        ValueError: naming the parameter, the value and what is taken.
    """
    if not isinstance(values, (list, tuple)) or not values or not all(map(_is_share, values)):
        raise ValueError(f"{name}: got {values!r}; takes a list of numbers from 0 to 1")


def require_order(low_name: str, low: int, high_name: str, high: int) -> None:
    """Refuse a lower bound above the upper one.

    Args:
        low_name: the lower bound's name.
        low: its value.
        high_name: the upper bound's name.
        high: its value.

    Raises:
        ValueError: naming both.
    """
    if low > high:
        raise ValueError(f"{low_name} ({low}) must not exceed {high_name} ({high})")


def _is_share(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]
