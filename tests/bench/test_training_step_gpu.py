"""The GPU's training-step bench at a tiny size on a CPU: it runs, goes on, and counts right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.__main__ import main
from bench.workloads import training_step_gpu as bench


def call(out: Path, *options: str) -> int:
    command = ["step-gpu", "--shape", "tiny", "--device", "cpu", "--rounds", "1", "--out", str(out)]
    return main([*command, *options])


@pytest.mark.costly
def test_it_runs_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(tmp_path, "--context", "128") == 0
    file = tmp_path / "training_step_tiny.json"
    (row,) = json.loads(file.read_text())["cases"]
    assert row["tokens"] == 256 and row["attention"] == "sdpa" and row["liger"] is False
    assert row["tokens_per_s"] == pytest.approx(256 / row["seconds"])
    assert row["head_share"] > 0 and row["estimated_gib"] > 0  # of two clocks: load may pass 1

    asked = []

    def case(arguments: Any, context: int, liger: bool) -> dict[str, Any]:
        asked.append(context)
        if context == 256:
            return {"context": context, "liger": liger, "error": "out of memory"}
        return {**row, "context": context}

    monkeypatch.setattr(bench, "in_own_process", case)
    assert call(tmp_path, "--context", "128", "64", "256") == 1
    assert asked == [64, 256]  # 128 is there already
    assert [r["context"] for r in json.loads(file.read_text())["cases"]] == [64, 128, 256]
    assert "| 256 | off | out of memory |" in (tmp_path / "training_step_tiny.md").read_text()
    assert call(tmp_path, "--context", "128", "256", "--limit", "0") == 3
    assert call(tmp_path, "--context", "128", "256") == 1 and asked[2:] == [256]
    assert call(tmp_path, "--context", "128", "--again") == 0 and asked[3:] == [128]

    # What was measured in another way is no part of it.
    result = json.loads(file.read_text())
    commit = result["commit"].removesuffix("-dirty")
    for name in (commit, f"{commit}-dirty"):
        file.write_text(json.dumps(result | {"commit": name}))
        assert call(tmp_path, "--context", "128") == 0 and asked[4:] == []
    file.write_text(json.dumps(result | {"torch": "1.0"}))
    assert call(tmp_path, "--context", "128") == 0 and asked[4:] == [128]


@pytest.mark.costly
def test_a_case_that_fails_is_named() -> None:
    arguments = bench.argparse.Namespace(
        shape="tiny", device="cuda:99", rounds=1, entropy=0.7, limit=800.0
    )
    row = bench.in_own_process(arguments, 64, False)
    assert row.keys() == {"context", "liger", "error"} and row["error"]


def test_useful_operations_are_those_of_the_model() -> None:
    """All but attention, counted by PyTorch on a forward pass; backward is twice as much."""
    policy = bench.build("tiny", torch.device("cpu"), liger=False)
    policy.model.set_attn_implementation("eager")
    ids = torch.randint(0, 8192, (1, 64))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        policy.model(input_ids=ids)
    counted = counter.get_flop_counts()["Global"]
    linear = sum(n for op, n in counted.items() if "bmm" not in str(op))
    attention = sum(n for op, n in counted.items() if "bmm" in str(op))
    # Eager attention computes all pairs; half of them are useful.
    want = 3 * (linear + attention / 2)
    assert bench.flops("tiny", [64]) == pytest.approx(want, rel=2e-3)
