"""``python -m bench`` from its command line to its files, on the GPU's rows made tiny."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.peers.base import Missing
from bench.session import Plan, Session

pytest.importorskip("pytest_benchmark", reason="pip install '.[bench]' brings pytest-benchmark")
ROOT = Path(__file__).parents[2]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "bench", *options],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.draw(1, "processes")
def test_dry_run_writes_goes_on_and_compares(tmp_path):
    command = ["--dry-run", "--out", str(tmp_path), "--only", "advantages", "--without", "TRL"]
    first = run(*command)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-2000:]
    measured = json.loads((tmp_path / "kernels.json").read_text())
    (row,) = measured["rows"].values()
    assert {"ours", "ours, ids", "eager"} <= set(row["contenders"])
    assert row["missing"]["TRL"] == "left out by --without" and "TRL" not in row["contenders"]
    assert "benchmark 'advantages" in first.stdout, "pytest-benchmark's own table"
    assert "bench: advantages" in first.stdout
    again = run(*command)
    assert again.returncode == 0 and "bench: advantages" not in again.stdout, "measured twice"
    assert json.loads((tmp_path / "kernels.json").read_text())["rows"] == measured["rows"]
    file = str(tmp_path / "kernels.json")
    assert "| number | A | B | B / A |" in run("compare", file, file).stdout


@pytest.mark.slow
def test_dry_run_of_everything(tmp_path):
    done = run("--dry-run", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    assert set(rows) == {case.name for case in Plan(kind="dry").cases()}
    for name, row in rows.items():
        assert "seconds_cold" in row["contenders"]["ours"], name


def test_rows_have_names_of_their_own_and_the_grid_is_whole():
    for kind in ("cpu", "cuda", "dry"):
        names = [case.name for case in Plan(kind=kind).cases()]
        assert len(names) == len(set(names))
    plan = Plan(kind="cuda").cases()
    shapes = {(c.tokens, c.dim, c.vocab) for c in plan if c.group == "head"}
    for tokens in (1024, 4096, 16_384, 65_536):
        for dim in (896, 1536, 3584, 4096):
            for vocab in (49_152, 128_256, 151_936):
                assert (tokens, dim, vocab) in shapes
    assert [c.priority for c in plan] == sorted(c.priority for c in plan)
    softmaxes = {str(c.softmax) for c in plan if c.group == "head"}
    assert {"0.1", "0.3", "0.5", "1.0", "3.0", "uniform", "real 0.8"} <= softmaxes
    assert {c.masked for c in plan if c.group == "head"} == {0.0, 0.3, 0.6}
    tokens = {c.tokens for c in plan if c.group == "loss"}
    assert {2**15, 2**18, 2**20} <= tokens


def test_no_gpu_is_an_error_before_anything_runs():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("--device", "cuda")
    assert done.returncode == 1 and done.stderr.startswith("bench: no GPU here")


@pytest.mark.draw(1, "processes")
def test_a_spent_budget_says_so(tmp_path):
    done = run("--dry-run", "--out", str(tmp_path), "--budget", "0", "--only", "loss")
    assert done.returncode == 0 and "run the same command again" in done.stdout


def test_a_row_without_its_inputs_is_named(tmp_path):
    class Real:
        name, priority, group = "head: real", 0, "head"

        def build(self, where, device, real):
            raise Missing("no real model here")

    threads = torch.get_num_threads()
    session = Session(Plan(kind="dry", out=tmp_path))
    try:
        assert session.row(Real()) == "no real model here"
    finally:  # a run of the bench owns its process, a test does not
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    written = json.loads((tmp_path / "kernels.json").read_text())
    assert written["not_measured"] == {"head: real": "no real model here"}
