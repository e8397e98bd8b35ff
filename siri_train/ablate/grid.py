"""The grid of an ablation as it is written on the command line."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from siri_train.config.base import ConfigError
from siri_train.config.values import SEED_MAX

_CLOSES = {"[": "]", "{": "}"}
MOST_SEEDS = 1000


def split_values(text: str) -> list[str]:
    """The values of a list with commas; those inside of brackets, braces and quotes are not split.

    ``[0.9,0.95],[0.9,0.99]`` has two values.

    Raises:
        ValueError: a bracket, a brace or a quote without its other end, or an empty value.
    """
    values, start = [], 0
    open_: list[str] = []
    quote = ""
    for place, char in enumerate(text):
        before = text[start:place].rstrip()[-1:]
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and before in ("", "[", "{", ",", ":"):  # else an apostrophe
            quote = char
        elif char in _CLOSES:
            open_.append(_CLOSES[char])
        elif char in _CLOSES.values():
            if not open_ or open_.pop() != char:
                raise ValueError(f"{char} closes nothing")
        elif char == "," and not open_:
            values.append(text[start:place])
            start = place + 1
    if quote or open_:
        raise ValueError(f"{open_[-1] if open_ else quote} is missing at its end")
    values.append(text[start:])
    found = [value.strip() for value in values]
    if "" in found:
        raise ValueError("a value between two commas is empty" if len(found) > 1 else "got nothing")
    return found


def read_vary(given: Sequence[str]) -> list[tuple[str, list[str]]]:
    """``KEY=V1,V2`` as the key and its values, each once.

    Args:
        given: one for each ``--vary``.

    Raises:
        ConfigError: no ``=``, no value, or a key twice.
    """
    found: dict[str, list[str]] = {}
    for text in given:
        key, sign, values = text.partition("=")
        key = ".".join(part.strip() for part in key.split("."))
        if not sign or not key:
            raise ConfigError(f"--vary: got {text!r}; takes KEY=VALUE,VALUE, as schedule.cycle=4,8")
        if key in found:
            raise ConfigError(f"--vary: got {key} twice; give all its values in one --vary")
        try:
            found[key] = split_values(values)
        except ValueError as error:
            raise ConfigError(
                f"--vary {key}: got {values!r}; {error}; takes VALUE,VALUE, where [], {{}} and "
                "quotes hold commas"
            ) from error
        if len(set(found[key])) < len(found[key]):
            raise ConfigError(f"--vary {key}: got {values!r}; a value stands there twice")
    return list(found.items())


def cells(vary: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[tuple[str, str], ...]]:
    """Every combination of the values: of each (key, value) pairs in the order given."""
    columns = [[(key, value) for value in values] for key, values in vary]
    return list(itertools.product(*columns))


def read_seeds(text: str, first: int) -> list[int]:
    """The seeds of ``--seeds``: a number of them, or a list with commas.

    Args:
        text: ``3`` gives three seeds from ``first``; ``5,`` and ``0,7`` are the seeds themselves.
        first: the recipe's.

    Raises:
        ConfigError: neither, a seed twice, or one that is too large.
    """
    parts = [part.strip() for part in text.split(",")]
    listed = len(parts) > 1
    if listed and not parts[-1]:
        parts.pop()
    whole = all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts)
    numbers = [int(part) for part in parts] if whole else []
    if not listed and numbers and 1 <= numbers[0] <= MOST_SEEDS:
        numbers = list(range(first, first + numbers[0]))
    elif not listed:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers) or max(numbers) > SEED_MAX:
        raise ConfigError(
            f"--seeds: got {text!r}; takes how many (1 to {MOST_SEEDS}, counted from the recipe's "
            f"seed, {first}), or seeds with commas between, each once, as 0,1,2 or 5,"
        )
    return numbers
