"""Tables of names that a user's package can add to: schedule shapes, rewards, verifiers, alarms.

A registry is a dictionary that takes each name once. To add to it, assign:
``SHAPES["sawtooth"] = Shape(...)``. ``plugins`` of a recipe names the modules that do.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import UserDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ALL: list[Registry[Any]] = []


class NameTaken(ValueError):
    """A name is registered a second time."""


class Registry(UserDict[str, T]):
    """Names and what they stand for. A name can be added once and is not replaced.

    Args:
        kind: what an entry is, in words, for messages: ``"schedule shape"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__()
        _ALL.append(self)

    def __setitem__(self, name: str, value: T) -> None:
        """Add an entry. Raises NameTaken if the name has one, ValueError for an unusable name."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"{self.kind} {name!r}: takes a name of 1 to 64 letters, digits, - and _"
            )
        if name in self.data:
            raise NameTaken(f"the {self.kind} {name!r} exists already; give yours another name")
        self.data[name] = value


@contextmanager
def kept_on_error() -> Iterator[None]:
    """Every registry is as it was before, if the block raises."""
    before = [(registry, dict(registry.data)) for registry in _ALL]
    try:
        yield
    except BaseException:
        for registry, entries in before:
            registry.data = entries
        raise


def one_of(accepted: Collection[str], value: str, quote: str = "") -> str:
    """The names accepted in place of ``value``: ``takes one of a, b; did you mean b?``.

    Args:
        accepted: the names.
        value: what was given.
        quote: put around each name.
    """
    same = value.strip().lower().replace("_", "-").replace(" ", "-")
    plain = {name.lower().replace("_", "-"): name for name in accepted}
    near = difflib.get_close_matches(same, plain, n=1, cutoff=0.5)
    hint = f"; did you mean {quote}{plain[near[0]]}{quote}?" if near else ""
    return f"takes one of {', '.join(f'{quote}{name}{quote}' for name in accepted)}{hint}"


def with_defaults(
    owner: str, defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of an entry: what is given, and the defaults of the others.

    Args:
        owner: the entry, in words: ``"the reward 'length-cap'"``.
        defaults: every option with its default. A value must be of its default's kind; a whole
            number also stands for a number. An option whose default is None takes any value.
        given: what a user gives.

    Raises:
        ValueError: an unknown option, or a value of another kind; the message begins with
            ``options.NAME``.
    """
    for name, value in given.items():
        if name not in defaults:
            takes = one_of(defaults, str(name)) if defaults else "takes none"
            raise ValueError(f"options.{name}: unknown option; {owner} {takes}")
        kind = _kind(defaults[name])
        if kind is not None and not _is(value, defaults[name]):
            raise ValueError(f"options.{name}: got {value!r}; {owner} takes {kind}")
    return {**defaults, **given}


def _kind(default: Any) -> str | None:
    """The values that an option of this default takes, in words; None: anything."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    kinds |= {list: "a list", dict: "a mapping"}
    return kinds.get(type(default))


def _is(value: Any, default: Any) -> bool:
    if type(default) is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(default)
