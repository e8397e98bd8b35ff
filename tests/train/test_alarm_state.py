"""Alarms that are raised, stay on and end; a run that continues goes on where it was."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from siri_train.monitor.alarms import ALARMS, Raised, Record, check, check_evaluation, register
from siri_train.monitor.alarms.history import MOST_QUIET, MOST_ROWS, kept
from siri_train.monitor.alarms.state import STATES, AlarmState
from siri_train.registry import names as registry

QUIET = {"fast": 1, "slow": 4, "slower": 9, "held": 1, "held-slow": 2}
COVERED = {"one": 3, "other": 2, "held-one": 2, "under": 4}
"""More alarms, which cover each other or are covered."""
COVERS = {
    "one": ("other", "under"),
    "other": ("one",),
    "held-one": ("under", "one"),
    "slow": ("under",),
}


def at(name: str) -> Any:
    """A check that fires where the row says so, and whose words depend on the row."""

    def looks(row: Record, before: list[Record]) -> Raised | None:
        if name not in str(row.get("true", "")).split():
            return None
        return Raised(row["step"], step=row["step"], rows=len(before))

    return looks


@pytest.fixture(autouse=True)
def drawn_alarms() -> Iterator[None]:
    """Only alarms that the rows themselves turn on."""
    before = [(one, dict(one.data)) for one in registry._ALL]
    ALARMS.data = {}
    for name, clear_after in {**QUIET, **COVERED}.items():
        register(
            name,
            cause="at step {step} after {rows} rows",
            action="look",
            check=at(name),
            on="evaluation" if name.startswith("held") else "step",
            clear_after=clear_after,
            covers=COVERS.get(name, ()),
        )
    # Something else than a row raises these; of the second a row shows it.
    register("event", cause="{what}", action="none")
    shown = lambda row, limits: row["often"] > limits.unjudged  # noqa: E731
    register("often", cause="{what}", action="none", clear_after=5, shown=shown)
    yield
    for one, data in before:
        one.data = data


class Run:
    """Steps and evaluations as a run's folder has them; it can be killed and continued."""

    def __init__(self, seed: int, steps: int) -> None:
        rng = random.Random(seed)
        self.steps, self.every = steps, rng.choice([1, 3, 5])
        both = {**QUIET, **COVERED}
        names = [name for name in both if not name.startswith("held")]
        held = [name for name in both if name.startswith("held")]
        often = {name: rng.choice([0.05, 0.3, 0.8, 1.0]) for name in both}
        self.rows = [
            {"step": n, "true": " ".join(m for m in names if rng.random() < often[m])}
            for n in range(steps)
        ]
        self.evals = [
            {
                "step": n,
                "true": " ".join(m for m in held if rng.random() < often[m]),
            }
            for n in range(0, steps + 1, self.every)
        ]
        self.events = [rng.random() < 0.3 for _ in range(steps)]
        for row in self.rows:
            row["often"] = float(rng.random() < 0.3)

    def go(self, state: AlarmState, begin: int, end: int) -> list[dict[str, Any]]:
        """The rows of alarms.jsonl of some steps, each evaluation behind its last step."""
        written = []
        for step in range(begin, end):
            found = [ALARMS["event"].entry(Raised(1, what="x"))] if self.events[step] else []
            if self.rows[step]["often"]:
                found.append(ALARMS["often"].entry(Raised(1, what=f"{step}")))
            before = [kept(row) for row in self.rows[max(0, step - MOST_ROWS) : step]]
            found += check(self.rows[step], before)
            written += state.update(step, found)
            for number, row in enumerate(self.evals):
                if row["step"] == step + 1:
                    held = check_evaluation(row, self.evals[:number])
                    written += state.update(step, held, "evaluation")
        return written

    def continued(self, written: list[dict[str, Any]], begin: int) -> AlarmState:
        """What a run reads that continues with a step; all goes through JSON."""
        records = [json.loads(json.dumps(row)) for row in written if row["step"] < begin]
        rows = self.rows[:begin][-MOST_ROWS - MOST_QUIET :]
        evals = [row for row in self.evals if row["step"] <= begin]
        return AlarmState.resumed(records, begin, rows, evals)


@pytest.mark.parametrize("seed", range(12))
def test_a_killed_run_that_continues_writes_the_same_rows(seed: int) -> None:
    run = Run(seed, 60)
    whole = run.go(AlarmState(), 0, 60)
    assert len(whole) > 10
    for cut in range(0, 61):
        state = run.continued(whole, cut)
        again = [row for row in whole if row["step"] < cut] + run.go(state, cut, 60)
        assert again == whole, cut


@pytest.mark.parametrize("seed", range(12))
def test_states_of_an_alarm_follow_each_other(seed: int) -> None:
    written = Run(seed, 80).go(AlarmState(), 0, 80)
    for _, group in itertools.groupby(
        sorted(written, key=lambda row: row["alarm"]), key=lambda row: row["alarm"]
    ):
        before = None
        for row in group:
            assert row["state"] in STATES
            assert row["age"] == row["step"] - row["since"] >= 0
            if before is None or before["state"] == "cleared":
                assert row["state"] == "raised" and row["age"] == 0
            else:
                assert row["state"] != "raised" and row["since"] == before["since"]
            if row["state"] == "ongoing":  # at most one row each time the age doubles
                assert row["age"] >= 2
                assert row["age"].bit_length() > before["age"].bit_length()
            before = row


def test_an_alarm_that_stays_on_is_told_at_powers_of_two() -> None:
    state, found = AlarmState(), [ALARMS["event"].entry(Raised(1, what="x"))]
    written = [row for step in range(5, 1005) for row in state.update(step, found)]
    assert [row["age"] for row in written] == [0, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert [row["state"] for row in written] == ["raised"] + ["ongoing"] * 9
    (one,) = state.ongoing()
    assert (one.name, one.since, one.age, one.cause) == ("event", 5, 999, "x")
    (over,) = state.update(1005, [])
    assert (over["state"], over["age"], over["since"]) == ("cleared", 1000, 5)
    assert state.ongoing() == [] and state.update(1006, []) == []


def test_a_flickering_alarm_is_raised_once() -> None:
    run = Run(0, 300)
    run.evals, run.events = [], [False] * 300
    for row in run.rows:
        row["often"] = row["step"] % 5 == 0
        row["true"] = "fast slower" if row["step"] % 8 == 0 else ""
    written = run.go(AlarmState(), 0, 300)
    raised = [row["alarm"] for row in written if row["state"] == "raised"]
    assert [raised.count(name) for name in ("slower", "often", "fast")] == [1, 1, 38]


def test_one_alarm_tells_what_another_covers() -> None:
    """At no time are two on of which one covers the other; what nothing covers is on while true."""
    first = int(time.time())
    for seed in range(first, first + 12):
        run = Run(seed, 80)
        on: set[str] = set()
        for row in run.go(AlarmState(), 0, 80):
            name = row["alarm"]
            if row["state"] == "cleared":
                on.remove(name)
            elif row["state"] == "raised":
                assert name not in on, seed
                assert not [other for other in on if name in COVERS.get(other, ())], (seed, row)
                on.add(name)
        covered = {name for names in COVERS.values() for name in names}
        true = set(run.rows[-1]["true"].split())
        assert true - covered <= on, seed


def entry(name: str) -> dict[str, Any]:
    return ALARMS[name].entry(Raised(1, step=1, rows=1))


def states(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["alarm"], row["state"]) for row in rows]


def test_a_covering_alarm_takes_over_and_of_two_equals_the_first_tells() -> None:
    state = AlarmState()
    assert states(state.update(1, [entry("under")])) == [("under", "raised")]
    both = [entry("under"), entry("slow")]
    assert states(state.update(2, both)) == [("under", "cleared"), ("slow", "raised")]
    for step in range(3, 7):  # slow is on for four quiet steps more
        assert ("under", "raised") not in states(state.update(step, [entry("under")]))
    assert states(state.update(7, [entry("under")])) == [("under", "raised")]
    state = AlarmState()
    assert states(state.update(1, both)) == [("slow", "raised")]  # at once: one row
    state = AlarmState()
    equals = [entry("one"), entry("other")]
    assert states(state.update(1, equals[::-1])) == [("other", "raised")]
    assert states(state.update(2, equals[:1])) == []  # other is on, and quiet for a step
    assert states(state.update(3, equals[:1])) == [("other", "cleared")]
    assert states(state.update(4, equals)) == [("one", "raised")]


def test_a_step_does_not_end_an_alarm_about_evaluations_nor_the_other_way_round() -> None:
    state = AlarmState()
    held, fast = ({**ALARMS[name].entry(Raised(1, step=1, rows=1))} for name in ("held", "fast"))
    state.update(3, [held], "evaluation")
    state.update(4, [fast])
    assert state.update(4, [held], "evaluation") == []
    assert [one.name for one in state.ongoing()] == ["held", "fast"]
    assert [row["alarm"] for row in state.update(5, [])] == ["fast"]
    assert [row["alarm"] for row in state.update(5, [], "evaluation")] == ["held"]


def test_rows_of_older_versions_are_raises() -> None:
    old = [
        {"step": step, "alarm": name, "value": 1, "cause": f"c{step}", "action": "a"}
        for step, name in [(3, "fast"), (7, "fast"), (8, "fast"), (9, "fast"), (9, "slow")]
    ]
    state = AlarmState.resumed(old, 10)
    assert [(one.name, one.since, one.age) for one in state.ongoing()] == [
        ("fast", 7, 2),
        ("slow", 9, 0),
    ]
    assert AlarmState.resumed(old, 12).ongoing() == []  # of a run that stepped on without them
    (row,) = state.update(11, [ALARMS["fast"].entry(Raised(1, step=1, rows=1))])
    assert (row["state"], row["since"], row["age"]) == ("ongoing", 7, 4)


def test_lines_that_are_no_rows_of_alarms_are_left_out() -> None:
    odd: list[dict[str, Any]] = [
        {"step": 1},
        {"step": 1, "alarm": 3},
        {"step": 1, "alarm": "fast", "state": "on", "since": 1},
        {"step": 1, "alarm": "fast", "state": "raised"},
        {"step": 1, "alarm": "fast", "state": "raised", "since": True},
        {"step": 1, "alarm": "fast", "state": "raised", "since": 2},
        {"step": 1, "alarm": "gone", "state": "raised", "since": 1},
    ]
    state = AlarmState.resumed(odd, 2)
    assert [one.name for one in state.ongoing()] == ["gone"]  # of a plug-in that is not there now
    assert [row["state"] for row in state.update(2, [])] == ["cleared"]


def test_a_damaged_row_ends_no_resume() -> None:
    record = {"step": 8, "alarm": "slow", "state": "raised", "since": 8}
    state = AlarmState.resumed([record], 12, [{"step": n, "true": None} for n in range(9, 12)])
    assert [one.quiet for one in state.ongoing()] == [2]


@pytest.mark.parametrize("clear_after", [-1, -7, MOST_QUIET + 1])
def test_clear_after_has_bounds(clear_after: int) -> None:
    with pytest.raises(ValueError, match="clear_after"):
        register("x", cause="", action="", check=at("x"), clear_after=clear_after)
    with pytest.raises(ValueError, match="without check and shown 1"):
        register("x", cause="", action="", clear_after=2)


def test_an_alarm_is_over_after_twice_its_window() -> None:
    for window, on, quiet in ((1, "step", 20), (1, "evaluation", 3), (15, "step", 30),
                              (3, "evaluation", 6), (500, "step", MOST_QUIET)):  # fmt: skip
        one = register(f"x{window}{on}", cause="", action="", check=at("x"), on=on, window=window)
        assert one.clear_after == quiet
    assert register("event-x", cause="", action="", window=9).clear_after == 1
