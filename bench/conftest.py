"""pytest-benchmark drives the bench: a test a row and contender, times taken in turns.

A row's contenders are timed in turns by :mod:`bench.measure`, which pytest-benchmark cannot; their
times are then given to its fixture by a clock that replays them, so that its table, its JSON and
its comparisons work.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.session import Plan, Session


def pytest_addoption(parser: Any) -> None:
    """Options of ``python -m bench``, see there."""
    group = parser.getgroup("bench")
    group.addoption("--bench-plan", default="cpu", choices=["cpu", "cuda", "dry"])
    group.addoption("--bench-out", default="bench/results/cpu", type=Path)
    group.addoption("--bench-budget", default=float("inf"), type=float)
    group.addoption("--bench-seconds", default=12.0, type=float)
    group.addoption("--bench-threads", default=1, type=int)
    group.addoption("--bench-only", default="")
    group.addoption("--bench-real", default=None)
    group.addoption("--bench-without", default=[], action="append")


def plan_of(config: Any) -> Plan:
    """The run that the options ask for."""
    option = config.getoption
    return Plan(
        kind=option("--bench-plan"), out=option("--bench-out"), budget=option("--bench-budget"),
        seconds=option("--bench-seconds"), threads=option("--bench-threads"),
        only=option("--bench-only"), real=option("--bench-real"),
        without=frozenset(option("--bench-without")),
    )  # fmt: skip


def pytest_generate_tests(metafunc: Any) -> None:
    """A test for each contender of each row, rows one after the other."""
    if {"case", "contender"} <= set(metafunc.fixturenames):
        pairs = [(c, n) for c in plan_of(metafunc.config).cases() for n in c.contenders]
        names = [f"{case.name}-{name}" for case, name in pairs]
        metafunc.parametrize("case, contender", pairs, ids=names)


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> Session:
    """The one run."""
    return Session(plan_of(request.config))


class Replay:
    """A clock on which the next calls last as long as they did when they were measured."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps: Iterator[float] = iter(())

    def load(self, seconds: list[float]) -> None:
        """Each call is one reading before it and one after."""
        self.steps = iter([step for value in seconds for step in (0.0, value)])

    def __call__(self) -> float:
        self.now += next(self.steps, 0.0)
        return self.now


CLOCK = Replay()


@pytest.fixture
def replayed() -> Replay:
    """The clock of ``@pytest.mark.benchmark(timer=CLOCK)``."""
    return CLOCK
