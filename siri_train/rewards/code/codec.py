"""Values as JSON and back: the only thing that passes between a program and its tests.

Decoding makes plain built-in values and nothing else, so that an object of the program, with an
``__eq__`` that always says yes, can never be compared with an expected answer. Functions and
iterators stay where they are: a number stands for them, and the other side calls back.
"""

from __future__ import annotations

import datetime
import functools
import types
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

DEEPEST = 64
"""Containers within containers; cyclic ones are deeper."""

_TYPES: dict[str, Any] = {
    each.__name__: each
    for each in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict)
}
_FUNCTIONS = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType),
    *(types.MethodDescriptorType, functools.partial),
)
_EMPTY: dict[Any, Any] = {}
_ITEMS = type(_EMPTY.items())
_CONTAINERS: tuple[Any, ...] = (
    *(tuple, set, frozenset, deque),
    *(type(_EMPTY.keys()), type(_EMPTY.values())),
)
_MANY: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "values": lambda items: dict(enumerate(items)).values(),
}


class Unpassable(TypeError):
    """A value that is no plain data."""


class Handles:
    """Functions and iterators of this side that the other may call, and those of the other side.

    Args:
        call: asks the other side: (number, ``"call"`` or ``"next"``, arguments, keyword arguments).
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self._mine: list[Any] = []

    def give(self, value: Any) -> int:
        """The number under which the other side may call ``value``."""
        self._mine.append(value)
        return len(self._mine) - 1

    def mine(self, number: Any) -> Any:
        """The value that this side gave that number to.

        Raises:
            Unpassable: it gave that number to none.
        """
        if type(number) is not int or not 0 <= number < len(self._mine):
            raise Unpassable("a number that stands for nothing")
        return self._mine[number]

    def function(self, number: int) -> Callable[..., Any]:
        """A function of the other side."""

        def remote(*args: Any, **kwargs: Any) -> Any:
            return self._call(number, "call", args, kwargs)

        return remote

    def iterator(self, number: int) -> Iterator[Any]:
        """An iterator of the other side."""
        return _Remote(self._call, number)


class _Remote:
    def __init__(self, call: Callable[..., Any], number: int) -> None:
        self._call, self._number = call, number

    def __iter__(self) -> _Remote:
        return self

    def __next__(self) -> Any:
        return self._call(self._number, "next", (), {})


def encode(value: Any, handles: Handles, depth: int = 0) -> Any:
    """A value as JSON.

    Args:
        value: plain data, a function or an iterator; an instance of a subclass of a built-in type
            counts as that type.
        handles: of this side.
        depth: of containers around it.

    Raises:
        Unpassable: anything else, or containers nested too deeply.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__index__(value)
        return number if -(2**62) < number < 2**62 else {"int": hex(number)}
    if isinstance(value, float):
        return {"float": float.hex(value)}
    if depth > DEEPEST:
        raise Unpassable(f"containers nested more than {DEEPEST} deep")

    def many(items: Any) -> list[Any]:
        return [encode(item, handles, depth + 1) for item in items]

    if isinstance(value, list):
        return many(list.__iter__(value))
    if isinstance(value, dict):
        items = dict.items(value)
        return {"dict": [many(pair) for pair in items]}
    for kind in _CONTAINERS:
        if isinstance(value, kind):
            return {kind.__name__.removeprefix("dict_"): many(kind.__iter__(value))}
    if isinstance(value, _ITEMS):
        pairs: list[Any] = list(value)
        return {"items": [many(pair) for pair in pairs]}
    return _scalar(value, handles)


def _scalar(value: Any, handles: Handles) -> dict[str, Any]:
    if isinstance(value, complex):
        return {"complex": [float.hex(value.real), float.hex(value.imag)]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes" if isinstance(value, bytes) else "bytearray": value.hex()}
    if isinstance(value, range):
        return {"range": [hex(n) for n in (value.start, value.stop, value.step)]}
    if isinstance(value, Decimal):
        return {"decimal": str(value)}
    if isinstance(value, Fraction):
        return {"fraction": [hex(value.numerator), hex(value.denominator)]}
    if isinstance(value, (datetime.datetime, datetime.date)):
        kind = "datetime" if isinstance(value, datetime.datetime) else "date"
        return {kind: value.isoformat()}
    if isinstance(value, datetime.timedelta):
        return {"timedelta": [value.days, value.seconds, value.microseconds]}
    for name, kind in _TYPES.items():
        if value is kind:
            return {"type": name}
    if isinstance(value, _FUNCTIONS):
        return {"function": handles.give(value)}
    if hasattr(type(value), "__next__"):
        return {"iterator": handles.give(value)}
    raise Unpassable(f"an object of class {type(value).__name__}")


def decode(value: Any, handles: Handles, depth: int = 0) -> Any:
    """The value that ``encode`` wrote.

    Args:
        value: JSON, from the other side: nothing about it is trusted.
        handles: of this side.
        depth: of containers around it.

    Raises:
        Unpassable: not what ``encode`` writes.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if depth > DEEPEST + 1:
        raise Unpassable("containers nested too deeply")

    def many(items: Any) -> list[Any]:
        if type(items) is not list:
            raise Unpassable("a container without a list")
        return [decode(item, handles, depth + 1) for item in items]

    if type(value) is list:
        return many(value)
    if type(value) is not dict or len(value) != 1:
        raise Unpassable("an unknown form")
    ((kind, body),) = value.items()
    try:
        if kind in _MANY:
            return _MANY[kind](many(body))
        if kind in ("dict", "items"):
            pairs = dict(many(pair) for pair in body)
            return pairs if kind == "dict" else pairs.items()
        return _plain(kind, body, handles)
    except (TypeError, ValueError, KeyError, OverflowError, ArithmeticError) as error:
        raise Unpassable(f"not a {kind!r:.20}") from error


def _plain(kind: str, body: Any, handles: Handles) -> Any:
    if kind == "int":
        return int(body, 16)
    if kind == "float":
        return float.fromhex(body)
    if kind == "complex":
        return complex(*map(float.fromhex, body))
    if kind == "bytes":
        return bytes.fromhex(body)
    if kind == "bytearray":
        return bytearray.fromhex(body)
    if kind == "range":
        return range(*(int(n, 16) for n in body))
    if kind == "decimal":
        return Decimal(body)
    if kind == "fraction":
        return Fraction(*(int(n, 16) for n in body))
    if kind == "datetime":
        return datetime.datetime.fromisoformat(body)
    if kind == "date":
        return datetime.date.fromisoformat(body)
    if kind == "timedelta":
        return datetime.timedelta(*body)
    if kind == "type":
        return _TYPES[body]
    if type(body) is int and kind == "function":
        return handles.function(body)
    if type(body) is int and kind == "iterator":
        return handles.iterator(body)
    raise ValueError(kind)
