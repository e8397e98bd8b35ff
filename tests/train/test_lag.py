"""``checkpoint.lag``: late checkpoints behind the ends of a schedule, by any number of steps."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from siri_train.checkpoint.manifest import export
from siri_train.checkpoint.save_load import checkpoints
from siri_train.train import train


@pytest.mark.draw(2, "runs")
def test_lagged_checkpoints(tiny: Any) -> None:
    run = train(
        tiny("schedule.cycle=8", "train.steps=10", "checkpoint.lag=2", "checkpoint.every=0")
    )
    manifest = json.loads((run / "checkpoints" / "manifest.json").read_text())
    assert {k: v["step"] for k, v in manifest.items() if k != "cycles"} == {
        "siri-low": 4, "siri-low-lagged": 6, "siri-high": 8, "siri-high-lagged": 10,
    }  # fmt: skip
    assert [end["cycle"] for end in manifest["cycles"]] == [1, 1, 1, 1]
    assert list(checkpoints(run)) == [4, 6, 8, 10]


@pytest.mark.draw(2, "runs")
def test_a_lag_of_half_a_cycle_gives_a_step_two_names(tiny: Any) -> None:
    run = train(tiny("train.steps=6", "checkpoint.lag=2", "checkpoint.every=0"))
    manifest = json.loads((run / "checkpoints" / "manifest.json").read_text())
    assert {k: v["step"] for k, v in manifest.items() if k != "cycles"} == {
        "siri-low": 6, "siri-high": 4, "siri-low-lagged": 4, "siri-high-lagged": 6,
    }  # fmt: skip
    assert [(end["which"], end["cycle"], end["step"]) for end in manifest["cycles"]] == [
        ("siri-low", 1, 2), ("siri-high", 1, 4), ("siri-low-lagged", 1, 4), ("siri-low", 2, 6),
        ("siri-high-lagged", 1, 6),
    ]  # fmt: skip
    names = [json.loads(line)["name"] for line in (run / "eval.jsonl").read_text().splitlines()]
    assert names[-3:] == ["siri-low", "siri-high", "siri-low"]  # of two names the end's own
    assert list(checkpoints(run)) == [2, 4, 6]
    assert (export(run, "siri-low-lagged") / "model.safetensors").read_bytes() == (
        run / "checkpoints" / "step_000004" / "model.safetensors"
    ).read_bytes()


@pytest.mark.costly
@pytest.mark.draw(2, "runs")
def test_any_lag_runs(tiny: Any) -> None:
    """Up to beyond a cycle: the late checkpoint of each end, by name, cycle and step."""
    draw = random.Random(seed := time.time_ns())
    cycle, steps = draw.choice([2, 4, 6]), draw.randint(7, 9)
    lag = draw.randint(1, steps + 1)
    keys = f"schedule.cycle={cycle}", f"train.steps={steps}", f"checkpoint.lag={lag}"
    run = train(tiny(*keys, "checkpoint.every=0"))
    manifest = json.loads((run / "checkpoints" / "manifest.json").read_text())
    ends = {
        (which, number + 1, end + late)
        for name, first in (("siri-low", cycle // 2), ("siri-high", cycle))
        for number, end in enumerate(range(first, steps + 1, cycle))
        for which, late in ((name, 0), (f"{name}-lagged", lag))
        if end + late <= steps
    }
    found = [(end["which"], end["cycle"], end["step"]) for end in manifest["cycles"]]
    assert sorted(found) == sorted(ends), f"seed {seed}: {keys}"
    assert list(checkpoints(run)) == sorted({steps, *(step for _, _, step in ends)}), f"seed {seed}"
    for which in {which for which, _, _ in ends}:
        newest = max(step for name, _, step in ends if name == which)
        assert manifest[which]["step"] == newest, f"seed {seed}: {which}"
