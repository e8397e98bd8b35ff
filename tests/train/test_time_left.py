"""The time left is nearer to the truth than that of equally long steps."""

from __future__ import annotations

import random
from typing import Any

import pytest

from siri_train.monitor.time_left import TimeLeft
from siri_train.schedule import LengthSchedule


def run(rng: random.Random, steps: int, cycle: int) -> tuple[list[int], list[dict[str, Any]]]:
    """Caps and records of a cosine run: seconds are fixed ones and those of lagging lengths."""
    schedule = LengthSchedule("cosine", 16384, rng.choice([4096, 8192]), cycle)
    caps = [schedule(step) for step in range(steps)]
    fixed, each = rng.uniform(0, 30), rng.uniform(2e-3, 2e-2)
    length, rows = 0.8 * caps[0], []
    for step, cap in enumerate(caps):
        length += (0.7 * cap - length) / rng.uniform(2, cycle / 8)
        seconds = (fixed + each * min(length, cap)) * rng.lognormvariate(0, 0.08)
        rows.append({"step": step, "cap": cap, "time_rollout": 0.7 * seconds,
                     "time_train": 0.3 * seconds, "tokens": length * 64})  # fmt: skip
    return caps, rows


def seconds_of(row: dict[str, Any]) -> float:
    return float(row["time_rollout"] + row["time_train"])


def errors(
    caps: list[int], rows: list[dict[str, Any]], first: int, rng: random.Random
) -> tuple[float, float]:
    """Mean errors, ours and that of equally long steps, of a run that continues at ``first``."""
    times = [seconds_of(row) for row in rows]
    pauses = [20.0 if step % 40 == 39 else 0.0 for step in range(len(rows))]  # evaluations
    left = TimeLeft(caps, len(caps))
    left.recall(rows[max(first - 50, 0) : first])
    clock = ours = plain = 0.0
    counted = 0
    for step in range(first, len(rows) - 1):
        clock += times[step]
        left.add(rows[step], clock)
        found = left.seconds(step + 1)
        clock += pauses[step]
        truth = sum(times[step + 1 :]) + sum(pauses[step + 1 :])
        mean = clock / (step + 1 - first) * (len(rows) - step - 1)
        if step >= first + 2:
            assert found is not None
            ours, plain = ours + abs(found - truth), plain + abs(mean - truth)
            counted += 1
    return ours / counted, plain / counted


@pytest.mark.parametrize("resumed", [False, True])
def test_nearer_than_equally_long_steps(resumed: bool) -> None:
    rng = random.Random()
    ours, plain, better = [], [], 0
    for _ in range(20):
        cycle = rng.choice([80, 120, 160])
        caps, rows = run(rng, rng.choice([240, 300]), cycle)
        first = rng.randint(20, 180) if resumed else 0
        one, other = errors(caps, rows, first, rng)
        ours, plain, better = [*ours, one], [*plain, other], better + (one < other)
    assert sum(ours) < 0.75 * sum(plain) and better >= 13


def test_exact_without_noise_and_learned_at_once_after_a_resume() -> None:
    rng = random.Random()
    for _ in range(20):
        caps = [rng.randint(50, 500) for _ in range(200)]
        fixed, each = rng.uniform(0, 5), rng.uniform(0.001, 0.1)
        rows = [
            {"cap": cap, "time_rollout": fixed, "time_train": each * cap, "tokens": cap}
            for cap in caps
        ]
        truth = sum(map(seconds_of, rows[100:]))
        going, resumed = TimeLeft(caps, 200), TimeLeft(caps, 200)
        clock = 0.0
        for row in rows[:100]:
            clock += seconds_of(row)
            going.add(row, clock)
        resumed.recall(rows[50:100])
        assert going.seconds(100) == pytest.approx(truth, rel=0.02)
        assert resumed.seconds(100) == pytest.approx(truth, rel=0.02)


def test_a_run_that_ends_after_tokens() -> None:
    caps = [100, 50] * 50
    rows = [{"cap": c, "time_rollout": c, "time_train": 0, "tokens": 10 * c} for c in caps]
    left = TimeLeft(caps, 100, max_tokens=30_000)
    for step in range(10):
        left.add(rows[step], sum(caps[: step + 1]))
    # 7,500 tokens are sampled; 22,500 are to come: 30 steps of 75 in the mean.
    assert left.seconds(10) == pytest.approx(30 * 75, rel=0.05)
    assert TimeLeft(caps, 100, max_tokens=5, tokens=9).seconds(3) is None
    left.tokens = 30_001
    assert left.seconds(10) == 0


def test_records_without_times_and_unknown_caps() -> None:
    left = TimeLeft(None, 10)
    assert left.seconds(0) is None
    left.recall([{"cap": 5}, {}, {"cap": None, "time_rollout": 1, "time_train": 1}])
    assert left.seconds(0) is None
    left.add({"cap": 8, "time_rollout": 1.0, "time_train": 1.0, "tokens": 9}, 0.0)
    assert left.seconds(1) == pytest.approx(18)
    assert left.seconds(10) == 0
    # Evaluations between the steps: the clock goes twice as fast as the steps do.
    left.add({"cap": 8, "time_rollout": 1.0, "time_train": 1.0, "tokens": 9}, 4.0)
    assert left.seconds(2) == pytest.approx(32)
