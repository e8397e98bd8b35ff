"""Checks of the options of reward functions; each message begins with ``options.NAME``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from siri_train.registry import one_of

Options = Mapping[str, Any]

_MOST_TOKENS = 10**7


def tokens(options: Options, name: str) -> int:
    """The option ``name``, which must be given: a whole number of tokens.

    Raises:
        ValueError: it is missing, no whole number, or out of bounds.
    """
    value = options[name]
    if type(value) is not int or not 1 <= value <= _MOST_TOKENS:
        got = "missing" if value is None else f"got {value!r}"
        raise ValueError(
            f"options.{name}: {got}; takes a whole number of tokens from 1 to {_MOST_TOKENS}"
        )
    return value


def number(options: Options, name: str, low: float, high: float, *, above: bool = True) -> float:
    """The option ``name`` as a float.

    Args:
        options: complete.
        name: of an option whose default is a number.
        low: least value.
        high: largest value.
        above: the value must be above ``low``.

    Raises:
        ValueError: it is out of bounds.
    """
    value = float(options[name])
    if not low <= value <= high or (above and value == low):
        bound = f"above {low:g}, at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise ValueError(f"options.{name}: got {options[name]!r}; takes a number {bound}")
    return value


def choice(options: Options, name: str, accepted: Collection[str]) -> str:
    """The option ``name``, which must be one of ``accepted``.

    Args:
        options: complete.
        name: of an option whose default is text.
        accepted: the texts.

    Raises:
        ValueError: it is another text.
    """
    value = str(options[name])
    if value not in accepted:
        raise ValueError(f"options.{name}: got {value!r}; {one_of(accepted, value)}")
    return value


def at_most(options: Options, name: str, most: int, which: str) -> None:
    """Refuse a number of tokens beyond a cap of the schedule.

    Args:
        options: complete.
        name: of the option.
        most: the cap in tokens.
        which: the cap in words, with its key.

    Raises:
        ValueError: the option is larger.
    """
    if options[name] > most:
        raise ValueError(
            f"options.{name}: got {options[name]}; takes at most {most}, {which}, "
            "or raise the schedule"
        )
