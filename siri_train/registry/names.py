"""Tables of names that a user's package can add to: schedule shapes, rewards, verifiers, alarms.

A registry is a dictionary that takes each name once. To add to it, assign:
``SHAPES["sawtooth"] = Shape(...)``. ``plugins`` of a recipe names the modules that do.
"""

from __future__ import annotations

import re
from collections import UserDict
from collections.abc import Iterator
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
