"""Alarms against runs of our own, recorded: nothing on healthy ones, the truth on others.

tests/train/recorded/README.md says how they were made.
"""

from __future__ import annotations

import random

import pytest

from siri_train.monitor.alarms.state import AlarmState
from tests.conftest import DRAW
from tests.train.alarm_runs import LIMITS, Row, recorded, replayed

RUNS = recorded()
HEALTHY = [name for name in RUNS if not name.endswith(".ill")]
ILL = {
    # Compression and an entropy bonus of 0.05 end these two: accuracy falls by half, entropy
    # triples.
    "recheck-cosine-2.ill": {"entropy-blowup", "length-hacking"},
    "recheck-long.ill": {"entropy-blowup", "accuracy-not-recovered"},
}


def test_they_are_as_many_as_promised() -> None:
    assert len(HEALTHY) >= 10 and set(ILL) == set(RUNS) - set(HEALTHY)
    shapes = {len({row["cap"] for row in RUNS[name][0]}) > 1 for name in HEALTHY}
    assert shapes == {True, False}  # with a schedule, and constant controls
    assert all(len(rows) >= 100 and len(evals) >= 6 for rows, evals in RUNS.values())


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_raised_on_a_healthy_run(name: str) -> None:
    assert replayed(RUNS[name]) == []


@pytest.mark.parametrize("name", ILL)
def test_what_is_true_of_a_run_is_raised_once(name: str) -> None:
    rows = replayed(RUNS[name])
    assert {row["alarm"] for row in rows} >= ILL[name]
    on: dict[str, Row] = {}
    for row in rows:
        if row["state"] == "raised":
            assert row["alarm"] not in on
            on[row["alarm"]] = row
        else:
            assert row["since"] == on[row["alarm"]]["step"] and row["age"] >= 1
        if row["state"] == "cleared":
            del on[row["alarm"]]


@pytest.mark.parametrize("name", ILL)
def test_a_resumed_run_writes_the_same_alarms(name: str) -> None:
    run = RUNS[name]
    whole = replayed(run)
    start = random.Random(DRAW + name).randrange(2, len(run[0]))
    rows, evals = run[0][:start], [row for row in run[1] if row["step"] <= start]
    before = replayed((rows, evals))
    state = AlarmState.resumed(before, start, rows, evals, LIMITS)
    rest = replayed(run, state=state, start=start)
    assert before + rest == whole
