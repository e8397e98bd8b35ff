"""Checkpoints where the measured length turns."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from siri_train.checkpoint.manifest import export
from siri_train.checkpoint.measured import FLAT, turns
from siri_train.checkpoint.save_load import checkpoints
from siri_train.config.base import ConfigError
from siri_train.config.recipe import load_config
from siri_train.schedule import LengthSchedule
from siri_train.train import train
from siri_train.trainer.evaluate import Evaluated, Evaluation

COSINE = LengthSchedule("cosine", 52, 20, 8)


def row(step: int, tokens: float, accuracy: float = 0.5) -> dict[str, Any]:
    return {"step": step, "tokens": tokens, "accuracy": [0.1, accuracy]}


def test_the_turn_lies_behind_its_end_and_before_the_next() -> None:
    rows = [row(2, 1.0), row(4, 9.0), row(5, 8.0), row(6, 7.0), row(7, 7.5), row(8, 5.0)]
    everything = {one["step"] for one in rows}
    assert turns(COSINE, rows, 8, 3, everything) == [
        ("siri-low-measured", 4, 6), ("siri-high-measured", 8, 8),
    ]  # fmt: skip
    # As the run goes on: nothing before the end, then the shortest so far.
    assert turns(COSINE, rows, 3, 3, everything) == []
    assert turns(COSINE, rows, 5, 3, everything) == [("siri-low-measured", 4, 5)]
    # The window ends it, too.
    assert turns(COSINE, rows, 8, 1, everything)[0] == ("siri-low-measured", 4, 5)
    assert turns(COSINE, rows, 8, 0, everything) == []
    # What was deleted does not count.
    assert turns(COSINE, rows, 8, 3, {4, 7, 8})[0] == ("siri-low-measured", 4, 7)
    assert turns(COSINE, rows, 8, 3, {8}) == [("siri-high-measured", 8, 8)]
    constant = LengthSchedule("constant", 52, 20, 8)
    assert turns(constant, rows, 8, 3, everything) == []


def test_of_equal_lengths_the_most_accurate() -> None:
    low = [row(4, 100.0, 0.5), row(5, 101.9, 0.8), row(6, 102.1, 0.9), row(7, 100.5, 0.8)]
    assert turns(COSINE, low, 7, 3, {4, 5, 6, 7}) == [("siri-low-measured", 4, 7)]
    high = [row(8, 100.0, 0.5), row(9, 98.1, 0.7), row(10, 97.9, 0.9)]
    assert turns(COSINE, high, 10, 3, {8, 9, 10}) == [("siri-high-measured", 8, 9)]


def test_drawn_turns_are_flat_minima() -> None:
    seed = time.time_ns()
    rng = random.Random(seed)
    for _ in range(200):
        schedule = LengthSchedule("cosine", 52, 20, 2 * rng.randint(2, 20))
        done, window = rng.randint(1, 100), rng.randint(1, 30)
        rows = [row(s, rng.uniform(10, 30), rng.random()) for s in range(done + 1)]
        saved = set(rng.sample(range(1, done + 1), rng.randint(0, done)))
        ends = sorted([*schedule.compressed_ends(done), *schedule.expanded_ends(done)])
        found = turns(schedule, rows, done, window, saved)
        for name, end, step in found:
            later = [other for other in ends if other > end]
            last = min(end + window, later[0] - 1 if later else done)
            inside = [rows[s] for s in range(end, min(last, done) + 1) if s in saved]
            best = (min if "low" in name else max)(one["tokens"] for one in inside)
            assert step in saved and end <= step <= last, (seed, found)
            assert abs(rows[step]["tokens"] / best - 1) <= FLAT + 1e-12, (seed, found)
        behind = [*(end - 1 for end in ends[1:]), done]
        wanted = [
            end
            for end, last in zip(ends, behind, strict=False)
            if saved & set(range(end, min(end + window, last) + 1))
        ]
        assert [end for _, end, _ in found] == wanted, seed


@pytest.mark.draw(1, "runs")
def test_a_run_keeps_and_names_them(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {0: 40, 1: 39, 2: 38, 3: 30, 4: 20, 5: 15, 6: 14, 7: 16, 8: 18, 9: 25, 10: 22}
    steps = iter(range(11))

    def evaluate(*args: Any, **kwargs: Any) -> Evaluated:
        step = next(steps)
        row = {
            "budgets": [24, 56], "accuracy": [0.1, 0.5], "accuracy_interval": [[0, 1]] * 2,
            "pass_at_k": [0, 0], "tokens": lengths[step], "backtrack_per_1k": 0.0,
        }  # fmt: skip
        return Evaluated(row, [])

    monkeypatch.setattr(Evaluation, "__call__", evaluate)
    run = train(
        tiny(
            "schedule.cycle=8", "train.steps=10", "eval.every=1", "checkpoint.every=0",
            "checkpoint.lag_window=3",
        )
    )  # fmt: skip
    manifest = json.loads((run / "checkpoints" / "manifest.json").read_text())
    assert {name: end["step"] for name, end in manifest.items() if name != "cycles"} == {
        "siri-low": 4, "siri-low-measured": 6, "siri-high": 8, "siri-high-measured": 9,
    }  # fmt: skip
    assert [(end["which"], end["cycle"], end["step"]) for end in manifest["cycles"]] == [
        ("siri-low", 1, 4), ("siri-low-measured", 1, 6), ("siri-high", 1, 8),
        ("siri-high-measured", 1, 9),
    ]  # fmt: skip
    # 5 was the shortest until 6: now it is the newest that nothing protects
    assert list(checkpoints(run)) == [4, 5, 6, 8, 9, 10]
    summary = {one["name"]: one for one in json.loads((run / "summary.json").read_text())}
    assert summary["siri-low-measured"]["tokens"] == 14
    assert export(run, "siri-low-measured", str(run / "out")) == Path(run / "out")


def test_a_window_without_evaluations_is_refused() -> None:
    for every in (0, 11):
        with pytest.raises(ConfigError, match=r"lag_window \(10\).*set eval.every from 1 to 10"):
            load_config("demo.yaml", ["checkpoint.lag_window=10", f"eval.every={every}"])
    load_config("demo.yaml", ["checkpoint.lag_window=20"])
