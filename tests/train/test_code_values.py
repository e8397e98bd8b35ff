"""Values between a program and its tests: they arrive as they were, and only as plain data."""

from __future__ import annotations

import datetime
import json
import math
import random
from collections import Counter, OrderedDict, deque, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest

from siri_train.rewards.code.codec import DEEPEST, Handles, Unpassable, decode, encode

SCALARS = [
    None, True, False, 0, -1, 2**62, -(2**62), 2**200, -(10**30), 0.1, -0.0, math.inf, -math.inf,
    1e-310, 3 + 4j, complex("-0-0j"), "", "é\ud800\0", b"", b"\xff\0", bytearray(b"ab"),
    range(2, 9, 3), range(10**30), Decimal("1.10"), Fraction(1, 3), datetime.date(2024, 2, 29),
    datetime.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=datetime.timezone.utc),
    datetime.timedelta(-1, 5, 6), int, str, dict,
]  # fmt: skip
HANDLES = Handles(lambda *asked: asked)


def through(value: Any) -> Any:
    """A value as it arrives."""
    return decode(json.loads(json.dumps(encode(value, HANDLES))), HANDLES)


def same(one: Any, two: Any) -> bool:
    """Equal, of the same types all the way down, and zeros of the same sign."""
    if type(one) is not type(two):
        return False
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return same(list(one.items()), list(two.items()))
    if isinstance(one, (float, complex)):
        return repr(one) == repr(two)
    return bool(one == two)


@pytest.mark.parametrize("value", SCALARS, ids=repr)
def test_a_scalar_arrives_as_it_was(value: Any) -> None:
    assert same(through(value), value)


def test_not_a_number_stays_none() -> None:
    assert math.isnan(through(math.nan))


def test_drawn_containers_arrive_as_they_were() -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    hashable = [value for value in SCALARS if not isinstance(value, bytearray)]

    def drawn(depth: int) -> Any:
        kind = rng.choice((list, tuple, deque, dict, set, frozenset, None, None))
        if kind is None or not depth:
            return rng.choice(SCALARS)
        size = rng.randrange(5)
        if kind is dict:
            return {rng.choice(hashable): drawn(depth - 1) for _ in range(size)}
        if kind in (set, frozenset):
            return kind(rng.choice(hashable) for _ in range(size))
        return kind(drawn(depth - 1) for _ in range(size))

    for _ in range(200):
        value = drawn(5)
        assert same(through(value), value), (seed, value)


def test_instances_of_subclasses_arrive_as_the_built_in_type() -> None:
    class Liar(int):
        def __eq__(self, other: object) -> bool:
            return True

        def __index__(self) -> int:
            return 4

        __hash__ = int.__hash__

    class Word(str):
        def __str__(self) -> str:
            return "another"

    Point = namedtuple("Point", "x y")
    Colour = IntEnum("Colour", "RED")
    assert same(through(Liar(7)), 7)
    assert same(through(Word("one")), "one")
    assert same(through(Point(1, [2])), (1, [2]))
    assert same(through(Colour.RED), 1)
    assert same(through(Counter("aab")), {"a": 2, "b": 1})
    assert same(through(OrderedDict(a=1)), {"a": 1})


def test_views_of_a_dictionary_arrive_as_views() -> None:
    value = {"a": 1, "b": 2}
    assert through(value.keys()) == value.keys()
    assert list(through(value.values())) == [1, 2]
    assert through(value.items()) == value.items()


@pytest.mark.parametrize(
    "value", [object(), {1: object()}, [int.__add__], NotImplemented], ids=repr
)
def test_other_objects_are_refused_by_class(value: Any) -> None:
    with pytest.raises(Unpassable, match="an object of class"):
        encode(value, HANDLES)


def test_circles_and_depth_are_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(Unpassable, match="deep"):
        encode(circle, HANDLES)
    deep: list[Any] = []
    for _ in range(DEEPEST):
        deep = [deep]
    assert through(deep) == deep
    with pytest.raises(Unpassable, match="deep"):
        encode([deep], HANDLES)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"a": 1, "b": 2}, {"object": 1}, {"int": "x"}, {"int": 4}, {"float": "wide"},
        {"set": [[]]}, {"dict": [[1]]}, {"dict": [[[], 1]]}, {"dict": 5}, {"range": []},
        {"fraction": ["0x1", "0x0"]},
        {"type": "object"}, {"type": []}, {"function": "f"}, {"iterator": None}, {"tuple": {}}, 1.5,
        {"date": "never"}, {"decimal": "x"}, {"bytes": "q"}, {"complex": "x"}, {"keys": [[]]},
        {"timedelta": ["a"]}, {"timedelta": [10**20]}, {"deque": 1},
    ],
    ids=repr,
)  # fmt: skip
def test_what_the_other_side_made_up_is_refused(body: Any) -> None:
    with pytest.raises(Unpassable):
        decode(body, HANDLES)
    with pytest.raises(Unpassable):
        decode([[body]], HANDLES)


def test_functions_and_iterators_stay_on_their_side() -> None:
    handles = Handles(lambda *asked: asked)
    body = encode([len, iter([1])], handles)
    assert body == [{"function": 0}, {"iterator": 1}]
    assert handles.mine(0) is len
    for number in (2, -1, True, "0", None):
        with pytest.raises(Unpassable):
            handles.mine(number)
    function, iterator = decode(body, handles)
    assert function(1, a=2) == (0, "call", (1,), {"a": 2})
    assert next(iterator) == (1, "next", (), {}) and iter(iterator) is iterator
