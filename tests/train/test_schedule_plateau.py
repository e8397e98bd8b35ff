from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_train.plan.rates import Rates, expected_hours
from siri_train.plan.text import describe_time
from siri_train.schedule import LengthSchedule
from tests.train.schedules import drawn_of_all, row_of


def plateau(**options):
    steps = {"fall": 4, "window": 2, "patience": 2, "least": 4, "most": 12, **options}
    return LengthSchedule("plateau", 16, 8, 640, options=steps)


def observed(schedule, lengths, accuracies):
    """The caps and phases of a run: each asked when it is sampled and again when it is recorded."""
    seen = []
    for step, (length, accuracy) in enumerate(zip(lengths, accuracies, strict=True)):
        asked = schedule(step), schedule.phase(step), schedule(step + 1), schedule.phase(step + 1)
        if seen:
            assert seen[-1][2:] == asked[:2]  # sampled ahead, and not: the same
        seen.append(asked)
        schedule.observe(row_of(step, length, accuracy))
    return [phase for _, phase, _, _ in seen], [cap for cap, _, _, _ in seen]


def test_plateau_turns_when_nothing_moves():
    # Lengths count from step 4 on, where the cap is at min_len. Means of two: 90 (step 5) is the
    # best, 80 better, then 79.5 and 79.5 are within 2 %: decided at step 8, from step 10 on.
    lengths = [100, 100, 100, 100, 95, 85, 75, 84, 75, 99] + [99] * 12
    # In expansion from step 10: means 0.2 (11), 0.4 (12), 0.4, 0.404 (14): turn from step 16 on.
    accuracies = [0.0] * 10 + [0.1, 0.3, 0.5, 0.3, 0.508, 0.9] + [0.9] * 6
    schedule = plateau()
    phases, caps = observed(schedule, lengths, accuracies)
    assert phases == ["compression"] * 10 + ["expansion"] * 6 + ["compression"] * 6
    assert caps[:11] == [16, 15, 12, 9, 8, 8, 8, 8, 8, 8, 16] and caps[15:20] == [16, 16, 15, 12, 9]
    assert schedule.compressed_ends(20) == [10] and schedule.expanded_ends(20) == [16]
    assert schedule.state == {"turns": [10, 16], "recent": [99.0, 99.0], "best": 99.0, "since": 0}
    assert schedule.phases(22)[2] == (16, 22, "compression")


def test_plateau_turns_at_the_latest_and_not_before_the_least():
    falling, rising = [100 * 0.9**t for t in range(60)], [t / 60 for t in range(60)]
    phases, _ = observed(plateau(), falling, rising)  # always moving: every phase has `most` steps
    assert [phases.index("expansion"), phases.index("compression", 12)] == [12, 24]
    phases, _ = observed(plateau(least=9), [50] * 60, [0.5] * 60)  # never moving
    assert phases[:19] == ["compression"] * 9 + ["expansion"] * 9 + ["compression"]
    schedule = plateau()
    for step in range(40):  # a step in which no response could be graded
        schedule.observe({"step": step, "response_len_mean": 50.0, "accuracy": None})
    assert schedule.state["turns"][1] == schedule.state["turns"][0] + 12
    # joined by a run of another shape: the turns that its plan had are kept
    late = plateau()
    plan = [late(t) for t in range(31)]
    late.observe(row_of(29, 5.0, 0.5))
    assert [late(t) for t in range(31)] == plan and late.state["turns"] == [12, 24]


@given(drawn_of_all(shapes=("plateau",)), st.integers(0, 2**32))
def test_plateau_goes_on_from_json_to_the_bit(schedule, seed):
    state = json.loads(json.dumps(schedule.state))
    resumed = dataclasses.replace(schedule, state=state)
    chance, begin = random.Random(seed), 0 if state is None else state["turns"][-1:] or [0]
    begin = max(begin) if begin else 0
    for step in range(begin, begin + 60):
        row = row_of(step, chance.uniform(1, 99), chance.random())
        for each in (schedule, resumed):
            each.observe(row)
        assert resumed.state == schedule.state and len(resumed.state["recent"]) <= 900
        assert [resumed(t) for t in range(step, step + 9)] == [
            schedule(t) for t in range(step, step + 9)
        ]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"fall": 0}, "options.fall: got 0; takes a whole number of at least 1"),
        ({"window": 2.5}, "options.window: got 2.5"),
        ({"most": 5}, r"options.most: got 5; takes at least options.least \(4\) and 2 more than"),
        ({"least": 13}, "options.most: got 12"),
        (
            {"length_tolerance": 1.0},
            "options.length_tolerance: got 1.0; takes a number",
        ),
        ({"accuracy_tolerance": -0.1}, "options.accuracy_tolerance: got -0.1"),
    ],
)
def test_plateaus_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        plateau(**options)


def test_a_plan_says_that_turns_are_the_latest(tiny):
    overrides = ("schedule.shape=plateau", "schedule.cycle=8", "train.steps=20")
    rates = Rates(1e-3, 1e-3, 0.5, 9, Path("run"))
    lines = describe_time(tiny(*overrides), rates, 16)
    assert any("the run decides when the cap turns" in line for line in lines)
    assert not any("the run decides" in line for line in describe_time(tiny(), rates, 16))
    # ends at 8 and 16 and the run's: with the start 4 evaluations of 16 questions, half of 56
    hours = expected_hours(tiny(*overrides, "eval.at_start=true", "eval.samples=1"), rates, 16)
    assert hours[2] == pytest.approx(4 * 16 * 28 * 1e-3 / 3600)
    late = tiny(*overrides, "eval.at_start=true", "eval.samples=1", "checkpoint.lag=3")
    assert expected_hours(late, rates, 16)[2] == pytest.approx(6 * 16 * 28 * 1e-3 / 3600)
