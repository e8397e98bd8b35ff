"""Programs and tests of them: what passes between the two processes, and why a program is wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from siri_train.rewards.code.verifier import CodeVerifier, Verdict
from tests.train.programs import PATIENT, RIGHT, WRONG, BestEffort, gold


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    made = BestEffort(workers=2, timeout=PATIENT, batch_timeout=None)
    yield made
    made.close()


# Program, tests, setup of the tests; each is right.
PASSES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "state stays": (
        "n = 0\ndef f():\n    global n\n    n += 1\n    return n",
        ("assert f() == 1", "assert f() == 2"),
        "",
    ),
    "arguments change": (
        "def f(items, more):\n    items.sort()\n    more['k'] = items[0]",
        ("a, b = [3, 1], {}\nassert f(a, b) is None\nassert a == [1, 3] and b == {'k': 1}",),
        "",
    ),
    "inner arguments change": (
        "def f(rows):\n    rows[1].append(5)\n    return rows",
        ("a = [[1], [2]]\nassert f(a) is a\nassert a == [[1], [2, 5]]",),
        "",
    ),
    "a copy is no alias": (
        "def f(items): return list(items)",
        ("a = [1]\nassert f(a) == a and f(a) is not a",),
        "",
    ),
    "other containers change": (
        "def f(s, d, b):\n    s.add(1)\n    d.append(2)\n    b.extend(b'x')",
        (
            "from collections import deque\ns, d, b = set(), deque([1]), bytearray()\n"
            "f(s, d, b)\nassert (s, list(d), b) == ({1}, [1, 2], b'x')",
        ),
        "",
    ),
    "keywords": (
        "def f(a, *, b=1): return a - b",
        ("assert f(5) == 4", "assert f(5, b=3) == 2"),
        "",
    ),
    "a function of the tests": (
        "def f(function, x): return function(function(x))",
        ("assert f(lambda n: n * 3, 2) == 18", "assert f(str.upper, 'a') == 'A'"),
        "",
    ),
    "a function of the tests that raises": (
        "def f(call):\n    try:\n        call()\n    except KeyError:\n        return 'seen'",
        ("def raises():\n    raise KeyError('k')\nassert f(raises) == 'seen'",),
        "",
    ),
    "a function of the program": (
        "def f(n):\n    return lambda x: [x] * n",
        ("assert f(2)(7) == [7, 7]",),
        "",
    ),
    "functions both ways": (
        "def f(outer):\n    return lambda x: outer(lambda y: x + y)",
        ("assert f(lambda inner: inner(1) * 10)(2) == 30",),
        "",
    ),
    "an iterator without end": (
        "def f():\n    n = 0\n    while True:\n        yield n\n        n += 1",
        ("g = f()\nassert [next(g) for _ in range(3)] == [0, 1, 2]",),
        "",
    ),
    "an iterator of the tests": (
        "def f(items): return [n + 1 for n in items]",
        ("assert f(iter([1, 2])) == [2, 3]", "assert f(n for n in (5,)) == [6]"),
        "",
    ),
    "an exception by its type": (
        "class Own(ValueError): pass\ndef f(): raise Own('why so')",
        (
            "try:\n    f()\n    assert False\nexcept ValueError as error:\n"
            "    assert str(error) == 'why so'",
        ),
        "",
    ),
    "an exception of many arguments": (
        "def f(): return b'\\xff'.decode()",
        ("try:\n    f()\n    assert False\nexcept ValueError:\n    pass",),
        "",
    ),
    "large numbers": ("def f(n): return 7 ** n", ("assert f(9000) == 7 ** 9000",), ""),
    "a dataclass inside": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
        "def f(x): return P(x).x",
        ("assert f(4) == 4",),
        "",
    ),
    "the end of an iterator in a function of the tests": (
        "def f(take):\n    try:\n        while True: take()\n"
        "    except StopIteration:\n        return 'end'",
        ("items = iter([1, 2])\nassert f(lambda: next(items)) == 'end'",),
        "",
    ),
    "annotations are no text": (
        "def g(x: int): pass\ndef f(): return g.__annotations__['x'] is int",
        ("def g(x: int): pass\nassert f() and g.__annotations__['x'] is int",),
        "",
    ),
    "modules": (
        "import bisect, collections, datetime, functools, hashlib, heapq, itertools, math, re\n"
        "import statistics, string, typing\n"
        "def f(d): return datetime.datetime.strptime(d, '%Y-%m-%d').weekday()",
        ("assert f('2024-02-29') == 3",),
        "",
    ),
    "a helper of the setup": (
        RIGHT,
        ("assert near(f(1.5), 2.25)",),
        "import math\nnear = math.isclose",
    ),
    "what it prints is dropped": (
        "import sys\ndef f(x):\n    print('x' * 10000)\n    sys.stderr.write('y')\n    return x",
        ("assert f(1) == 1",),
        "",
    ),
    "input is empty": ("import sys\ndef f(): return sys.stdin.read()", ("assert f() == ''",), ""),
    "no script": (
        "ran = __name__ == '__main__'\ndef f(): return ran",
        ("assert f() is False",),
        "",
    ),
    "the same chance in every run": (
        "import random\ndef f(): return random.random()",
        ("import random\nassert f() == random.Random(0).random()",),
        "",
    ),
}


@pytest.fixture(scope="module")
def passes(verifier: CodeVerifier) -> dict[str, Verdict]:
    pairs = [(program, gold(*tests, setup=setup)) for program, tests, setup in PASSES.values()]
    return dict(zip(PASSES, verifier.judge(pairs), strict=True))


@pytest.mark.parametrize("name", PASSES)
def test_what_passes_between_program_and_tests(name: str, passes: dict[str, Verdict]) -> None:
    assert passes[name] == Verdict(True, "")


# Program, test, and the reason that is given.
FAILS: dict[str, tuple[str, str, str]] = {
    "a wrong value": (WRONG, "assert f(3) == 9, 'three'", "the tests: wrong: three"),
    "no function": ("def g(): pass", "assert f(3) == 9", "NameError: the program defines no f"),
    "an object": (
        "class A: pass\ndef f(): return [A()]",
        "f()",
        "it returned an object of class A, which is no plain data",
    ),
    "an object of the tests": (
        RIGHT,
        "class B: pass\nf(B())",
        "an object of class B cannot be passed to the program",
    ),
    "a text for the terminal": (
        "def f(): raise ValueError('a\\x1b[2J\\nb\\ud800')",
        "f()",
        "the tests: ValueError: a [2J b ",
    ),
    "a class named for the terminal": (
        "def f(): return type('A\\x1b[2J', (), {})()",
        "f()",
        "an object of class A [2J,",
    ),
    "an end": (
        "def f(): raise SystemExit",
        "try:\n    f()\nexcept:\n    pass",
        "it raised SystemExit",
    ),
    "its process ends": (
        "import os\ndef f(): os._exit(0)",
        "try:\n    f()\nexcept:\n    pass",
        "it ended before it answered",
    ),
    "an end of all loops": (
        "def f(x): raise StopIteration",
        "for got, want in zip(map(f, [2, 3]), [4, 9]):\n    assert got == want",
        "it raised StopIteration",
    ),
    "a broken test": (RIGHT, "assert f(3) == undefined", "NameError: name 'undefined'"),
    "no call": (RIGHT, "assert True", "the tests called nothing of the program"),
    "no syntax": ("def f(:", "f()", "SyntaxError"),
    "no module": ("import numpy\ndef f(): return 1", "f()", "Error"),
    "a test without an end": (RIGHT, "f(1)\nwhile True: pass", "more than 0.3 s"),
}


def test_why_a_program_is_wrong() -> None:
    pairs = [(program, gold(test)) for program, test, _ in FAILS.values()]
    verifier = BestEffort(workers=2, timeout=0.3, batch_timeout=None)
    try:
        judged = dict(zip(FAILS, verifier.judge(pairs), strict=True))
    finally:
        verifier.close()
    for name, verdict in judged.items():
        assert verdict.right is False and FAILS[name][2] in verdict.why, (name, verdict)
