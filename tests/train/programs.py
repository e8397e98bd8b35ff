"""Programs and tests of them, and a verifier that needs no promise of the machine."""

from __future__ import annotations

import functools
import json

from siri_train.rewards.code.verifier import CodeVerifier

BestEffort = functools.partial(CodeVerifier, sandbox="best_effort")
"""Our programs here do no harm: these tests hold on machines that keep no promise, too."""
PATIENT = 10.0
"""Seconds of processor time where a test is not about time: the machine may be busy."""


def gold(*tests: str, setup: str = "", names: tuple[str, ...] = ("f",)) -> str:
    """A gold answer with these tests."""
    return json.dumps({"setup": setup, "names": names, "tests": tests})


SQUARE = gold("assert f(3) == 9")
RIGHT, WRONG, BURNS = (
    "def f(x): return x * x",
    "def f(x): return x",
    "def f(x):\n    while True: pass",
)
