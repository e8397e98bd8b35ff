"""The statistics of ``python -m bench recheck``, and one small run of it."""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

import pytest

from bench.workloads import recheck

SEED = random.randrange(2**32)


def test_difference_is_paired() -> None:
    after, before = [3.0, 2.0, 5.0, 4.0], [1.0, 1.0, 2.0, 2.0]  # changes 2, 1, 3, 2
    mean, half = recheck.difference(after, before)
    assert mean == 2.0 and half == pytest.approx(1.96 * math.sqrt(2 / 3) / 2)
    assert recheck.difference([4.0, 5.0, 6.0], [1.0, 2.0, 3.0]) == (3.0, 0.0)


def test_interval_covers_the_truth() -> None:
    rng = random.Random(SEED)
    hits = 0
    for _ in range(400):
        before = [rng.gauss(0, 1) for _ in range(200)]
        after = [b + rng.gauss(0.3, 0.7) for b in before]
        mean, half = recheck.difference(after, before)
        hits += abs(mean - 0.3) <= half
    assert hits > 0.88 * 400, f"seed {SEED}: {hits} of 400"


def test_turns_follow_the_extremes_by_the_lag() -> None:
    assert recheck.turns(100, 220, 20) == [0, 20, 70, 120, 170, 220]
    assert recheck.turns(100, 219, 20) == [0, 20, 70, 120, 170]
    assert recheck.turns(80, 80, 0) == [0, 40, 80]


def test_table_shows_changes_since_the_row_above() -> None:
    first = {"waits": [1.0, 3.0], "tokens": [10.0, 30.0], "right": [0.0, 1.0]}
    second = {"waits": [0.0, 1.0], "tokens": [10.0, 10.0], "right": [1.0, 1.0]}
    rows = recheck.compared([first, second], [0, 70])
    assert "waits_change" not in rows[0] and rows[1]["waits_change"][0] == -1.5
    assert rows[0]["waits_per_1k"] == 100.0 and rows[1]["waits_per_1k"] == 50.0
    text = recheck.table({"cosine-4": {"turns": rows, "entropy": (0.1, 0.25)}})
    assert "| cosine | 4 | 0 | 2.00 |  | 100.0 | 20.0 | 50.0 |  | 0.100 to 0.250 |" in text
    assert "| cosine | 4 | 70 | 0.50 | -1.50 ± 0.98 | 50.0 | 10.0 | 100.0 | +50.0 ± 98.0 |" in text


@pytest.mark.slow
def test_a_small_run_writes_both_files_and_continues(tmp_path: Path) -> None:
    size = [
        "train.steps=6", "schedule.cycle=8", "rollout.prompts=2", "rollout.group_size=4",
        "checkpoint.every=1", "checkpoint.lag=1", "eval.every=3",
        "data.eval.0.size=16", "data.train.0.size=64",
    ]  # fmt: skip
    arguments = argparse.Namespace(
        seeds=[3],
        control_seeds=None,
        lag=1,
        runs=tmp_path / "runs",
        out=tmp_path / "out",
        overrides=size,
    )
    recheck.run(arguments)
    found = json.loads((tmp_path / "out" / "recheck.json").read_text())
    assert list(found["runs"]) == ["cosine-3", "constant-3"]
    for run in found["runs"].values():
        assert [row["step"] for row in run["turns"]] == [0, 1, 5]
        assert all(0 <= row["right"] <= 1 and row["tokens"] > 1 for row in run["turns"])
    starts = [run["turns"][0] for run in found["runs"].values()]
    assert starts[0] == starts[1]  # the same start answers the same questions
    text = (tmp_path / "out" / "recheck.md").read_text()
    assert "| constant | 3 | 5 |" in text and "seed 3" in text
    recheck.run(arguments)
    assert json.loads((tmp_path / "out" / "recheck.json").read_text())["runs"] == found["runs"]
