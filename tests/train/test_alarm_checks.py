"""The alarms about gradient, mismatch, speed and text: quiet in healthy noise, loud in a fault."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor import alarms
from siri_train.monitor.alarms import gradient, mismatch, throughput, tokens
from siri_train.monitor.alarms.history import MOST_ROWS
from tests.train.alarm_series import Fault, Row, faulty, healthy, watched

MINE = [
    name
    for name, entry in alarms.ALARMS.items()
    if entry.check is not None
    and entry.check.__module__ in {m.__name__ for m in (gradient, mismatch, throughput, tokens)}
]


@pytest.mark.parametrize("seed", range(25))
def test_nothing_fires_in_a_healthy_run(seed: int) -> None:
    rows = list(healthy(seed, 420, cycle=random.Random(seed).choice([60, 120, 200])))
    assert watched(rows, MINE) == []


@pytest.mark.parametrize("seed", range(4))
def test_nothing_fires_over_cycles_of_the_papers_length(seed: int) -> None:
    rows = list(healthy(100 + seed, 900, cycle=640, longest=16384))
    assert watched(rows, MINE) == []


def times(key: str, factor: float, after: int = 1) -> Fault:
    """The value jumps by a factor (after=1), or grows to it within some steps."""

    def change(row: Row, age: int, rng: random.Random) -> None:
        if row[key] is not None:
            row[key] *= factor ** min(1.0, age / after)

    return change


def to(key: str, value: float, after: int = 1) -> Fault:
    """The value jumps to another, or moves there within some steps; with noise of a tenth."""

    def change(row: Row, age: int, rng: random.Random) -> None:
        part = min(1.0, age / after)
        if row[key] is not None:
            row[key] = (1 - part) * row[key] + part * value * rng.uniform(0.95, 1.05)

    return change


def both(*faults: Fault) -> Fault:
    """Several at once."""

    def change(row: Row, age: int, rng: random.Random) -> None:
        for fault in faults:
            fault(row, age, rng)

    return change


def still(row: Row, age: int, rng: random.Random) -> None:
    """Wait words are gone, and accuracy does not grow."""
    row["backtrack_per_1k"] *= 0.005
    row["accuracy"] = 0.35 + rng.gauss(0, 0.02)


# (alarm, what happens, steps of the fault until the alarm at the latest)
FAULTS: list[tuple[str, Fault, int]] = [
    ("grad-norm-spike", times("grad_norm", 1000.0), 1),
    ("grad-norm-creep", times("grad_norm", 30.0), 40),
    ("grad-norm-creep", times("grad_norm", 60.0, after=200), 230),
    ("grad-norm-vanishing", times("grad_norm", 1e-3), 40),
    ("grad-norm-vanishing", times("grad_norm", 1e-4, after=200), 200),
    ("non-finite-gradient", to("skipped_updates", 1.0), 1),
    ("non-finite-loss", to("loss", math.nan), 1),
    ("non-finite-loss", to("loss", math.inf), 1),
    ("clip-saturation", to("clip_frac_high", 0.5), 8),
    ("clip-saturation", to("clip_frac_low", 0.6, after=100), 100),
    ("sampler-mismatch", to("rollout_kl", 0.2), 1),
    ("sampler-mismatch", to("rollout_ratio_max", 50.0), 1),
    ("sampler-drift", to("rollout_kl", 0.045, after=150), 170),
    ("sync-probe", to("probe_logprob_diff", 0.05), 20),
    ("sync-probe", to("probe_logprob_diff", 0.05, after=150), 170),
    ("throughput-decay", times("rollout_tokens_per_s", 0.2), 40),
    ("throughput-decay", times("train_tokens_per_s", 0.2, after=200), 230),
    ("many-recomputed-tokens", to("dense_row_frac", 0.9), 15),
    ("many-recomputed-tokens", to("dense_row_frac", 0.9, after=150), 150),
    ("repetition", to("repetitive_frac", 0.5), 5),
    ("repetition", to("repetitive_frac", 0.5, after=150), 100),
    ("wrong-think-setting", to("think_mismatch_frac", 0.98), 5),
    ("wait-words-gone", still, 180),
]


@pytest.mark.parametrize(("name", "fault", "within"), FAULTS)
def test_a_fault_fires_its_alarm_in_time(name: str, fault: Fault, within: int) -> None:
    for seed in range(5):
        begins = 150 + random.Random(seed).randrange(60)
        rows = faulty(seed, begins, begins + within, fault, cycle=120)
        found = watched(rows, [name], first=begins - 20)
        assert found and all(step >= begins for step, _ in found), (seed, found)


def test_every_alarm_of_these_files_has_a_fault() -> None:
    assert {name for name, _, _ in FAULTS} == set(MINE)


@pytest.mark.parametrize("seed", range(5))
def test_a_heavy_tail_is_no_spike(seed: int) -> None:
    """Norms of many times the median come again and again; only one beyond them is a spike."""
    rng, rows = random.Random(seed), list(healthy(seed, 400))
    for row in rows:
        row["grad_norm"] = (40.0 if row["step"] % 12 == 5 else 1.0) * rng.uniform(0.8, 1.2)
    assert watched(rows, ["grad-norm-spike"], first=50) == []
    rows[399]["grad_norm"] = 200.0
    assert watched(rows, ["grad-norm-spike"], first=50) == [(399, "grad-norm-spike")]


@pytest.mark.parametrize("seed", range(5))
def test_a_moving_cap_alone_is_no_decay(seed: int) -> None:
    """Speed falls to a fifth at the longest cap, as it may with a long tail of responses."""
    rows = list(healthy(seed, 400, cycle=100))
    for row in rows:
        row["rollout_tokens_per_s"] *= 0.2 if row["cap"] > 3000 else 1.0
    assert watched(rows, ["throughput-decay"]) == []


def test_only_causes_have_braces() -> None:
    """An action is written as it is: ``{other}`` in it reached the user."""
    actions = {name: one.action for name, one in alarms.ALARMS.items()}
    assert {name: action for name, action in actions.items() if set("{}") & set(action)} == {}


@pytest.mark.parametrize("seed", range(4))
def test_a_slow_minute_is_no_decay(seed: int) -> None:
    """A demo's step takes less than a second: another program is there for many of them."""
    rng = random.Random(seed)
    start, count = rng.randrange(120, 200), rng.randrange(40, 90)
    for seconds, raised in ((0.2, False), (60.0, True)):
        rows = list(healthy(seed, 300, cycle=60))
        for row in rows:
            slow = 0.2 if start <= row["step"] < start + count else 1.0
            row["rollout_tokens_per_s"] *= slow
            row |= {"time_rollout": seconds / slow, "time_train": seconds}
        assert bool(watched(rows, ["throughput-decay"])) == raised


def test_slow_steps_after_a_resume_are_no_decay() -> None:
    for seed in range(5):
        rows = list(healthy(seed, 300, cycle=100))
        for row in rows:
            if row["step"] % 40 < 4 and row["step"] >= 40:
                row["train_tokens_per_s"] *= 0.02
        assert watched(rows, ["throughput-decay"]) == []


def test_few_mixed_groups_are_no_vanishing_gradient_and_many_no_creep() -> None:
    for seed in range(5):
        for first, last, alarm in ((0.1, 0.99, "vanishing"), (0.99, 0.1, "creep")):
            rows = list(healthy(seed, 400))
            for row in rows:
                row["groups_all_one"] = 0.0
                row["groups_all_zero"] = first if row["step"] < 150 else last
                row["grad_norm"] *= 1 - row["groups_all_zero"]
            assert watched(rows, [f"grad-norm-{alarm}"]) == []


def test_recomputed_tokens_are_none_where_all_are_on_purpose() -> None:
    rows = list(healthy(1, 100))
    for row in rows:
        row["dense_row_frac"], row["tail_mass_max"] = 1.0, 0.0
    assert watched(rows, ["many-recomputed-tokens"]) == []


def test_wait_words_may_go_where_accuracy_grows_or_there_were_none() -> None:
    rows = faulty(3, 60, 300, times("backtrack_per_1k", 0.001))
    for row in rows:
        row["accuracy"] = 0.4 if row["step"] < 60 else 0.6
    assert watched(rows, ["wait-words-gone"]) == []
    rows = faulty(3, 60, 300, still)
    for row in rows:
        row["backtrack_per_1k"] *= 0.001
    assert watched(rows, ["wait-words-gone"]) == []


@pytest.mark.parametrize("missing", ["key", "null", "text", "nan"])
def test_rows_of_another_version_or_damaged_ones_raise_nothing_wrong(missing: str) -> None:
    """Whatever a key holds, a check returns; the newest row is whole."""
    kinds: dict[str, Any] = {"null": None, "text": "x", "nan": math.nan}
    rows = list(healthy(5, 200))
    for key in rows[0].keys() - {"step"}:
        changed = [dict(row) for row in rows[:-1]]
        for row in changed:
            row.pop(key)
            if missing in kinds:
                row[key] = kinds[missing]
        for entry in map(alarms.ALARMS.__getitem__, MINE):
            entry.look(rows[-1], changed)


class Counted(list[Row]):
    """Rows that count how often one is handed out."""

    looked = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        Counted.looked += len(found) if isinstance(index, slice) else 1
        return found

    def __iter__(self) -> Any:
        for row in super().__iter__():
            Counted.looked += 1
            yield row


def looked_at(check: Callable[[], Any]) -> int:
    Counted.looked = 0
    check()
    return Counted.looked


def test_a_step_late_in_a_long_run_looks_at_few_rows() -> None:
    """All checks together; a row takes well under a microsecond a key."""
    rows = [*healthy(1, 2000), *healthy(2, 2000), *healthy(3, 1)]
    history = Counted(rows[:-1])
    assert len(history) == MOST_ROWS
    for row in (rows[-1], rows[-1] | {"phase": "expansion"}, rows[-1] | {"phase": "constant"}):
        every = looked_at(lambda row=row: alarms.check(row, history))  # type: ignore[misc]
        assert 0 < every <= 10_000
        for name in MINE:
            entry = alarms.ALARMS[name]
            one = looked_at(lambda entry=entry, row=row: entry.look(row, history))  # type: ignore[misc]
            assert one <= 1000, name


@pytest.mark.parametrize(("name", "fault", "within"), FAULTS)
def test_looser_thresholds_keep_an_alarm_quiet(name: str, fault: Fault, within: int) -> None:
    loosest = {"grad_norm_vanishing": 0.0, "throughput": 0.0, "wait_words": 0.0}
    limits = {
        key: loosest.get(key, 1.0 if getattr(AlarmsConfig(), key) <= 1 else 1e6)
        for key in alarms.ALARMS[name].limits
    }
    rows = faulty(1, 160, 160 + within, fault)
    found = watched(rows, [name], AlarmsConfig(**limits), first=150)
    assert bool(found) == (not limits)
