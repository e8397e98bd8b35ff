"""``python -m bench`` from its command line to its files, on the GPU's cases made tiny."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bench import kernels
from bench.__main__ import COMMANDS, main, parser_for
from bench.kernels import Plan, Session
from bench.peers.base import Missing
from bench.workloads import training_step
from siri_train.config.recipe import load_config
from siri_train.trainer.update import score

ROOT = Path(__file__).parents[2]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "bench", *options],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.costly
def test_dry_run_writes_goes_on_and_compares(tmp_path):
    command = ["kernels", "--dry-run", "--out", str(tmp_path), "--only", "advantages"]
    command += ["--without", "TRL"]
    first = run(*command)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-2000:]
    measured = json.loads((tmp_path / "kernels.json").read_text())
    (row,) = measured["rows"].values()
    assert {"ours", "ours, ids", "eager"} <= set(row["contenders"])
    assert row["missing"]["TRL"] == "left out by --without" and "TRL" not in row["contenders"]
    assert "| contender | time | p20 to p80 |" in first.stdout
    assert "bench: advantages" in first.stdout
    again = run(*command)
    assert again.returncode == 0 and "bench: advantages" not in again.stdout, "measured twice"
    assert json.loads((tmp_path / "kernels.json").read_text())["rows"] == measured["rows"]
    file = str(tmp_path / "kernels.json")
    assert "| number | A | B | B / A |" in run("compare", file, file).stdout


@pytest.mark.slow
def test_dry_run_of_everything(tmp_path):
    done = run("kernels", "--dry-run", "--out", str(tmp_path))
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


@pytest.mark.costly
def test_no_gpu_is_an_error_before_anything_runs():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("kernels", "--device", "cuda")
    assert done.returncode == 1 and done.stderr.startswith("bench: no GPU here")


@pytest.mark.costly
def test_a_spent_budget_says_so(tmp_path):
    done = run("kernels", "--dry-run", "--out", str(tmp_path), "--budget", "0", "--only", "loss")
    assert done.returncode == 0 and "run the same command again" in done.stdout


@pytest.fixture
def settings_of_torch():
    """A run of the bench owns its process, a test does not."""
    threads = torch.get_num_threads()
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


def test_a_row_without_its_inputs_is_named(tmp_path, settings_of_torch):
    class Real:
        name, priority, group = "head: real", 0, "head"

        def build(self, where, device, real):
            raise Missing("no real model here")

    assert Session(Plan(kind="dry", out=tmp_path)).row(Real()) == "no real model here"
    written = json.loads((tmp_path / "kernels.json").read_text())
    assert written["not_measured"] == {"head: real": "no real model here"}


def test_a_case_that_fails_and_ours_being_wrong_are_the_exit_code(
    tmp_path, settings_of_torch, monkeypatch, capsys
):
    class Failing:
        name, priority, group = "loss: failing", 0, "loss"

        def build(self, where, device, real):
            raise ZeroDivisionError("nothing to divide")

    monkeypatch.setattr(Plan, "cases", lambda self: [Failing()])
    monkeypatch.setattr(kernels, "rates", lambda device: {})
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    command = ["kernels", "--out", str(tmp_path)]
    assert main(command) == 1
    assert "FAILED loss: failing: ZeroDivisionError: nothing to divide" in capsys.readouterr().out
    entry = {"wrong": "gradient 3e-1 from float64; not timed"}
    monkeypatch.setattr(Session, "row", lambda self, case: {"contenders": {"ours": entry}})
    monkeypatch.setattr(kernels, "row_table", lambda row, clock: [])
    assert main(command) == 1 and "ours: gradient 3e-1" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_and_its_example_is_taken(name):
    parser = parser_for(name)
    assert COMMANDS[name].summary in " ".join(parser.format_help().split())
    words = shlex.split(COMMANDS[name].example)
    assert callable(parser.parse_args([name, *words]).run)


@pytest.mark.skipif(find_spec("trl") is not None, reason="TRL is installed")
@pytest.mark.parametrize("name", ["proof", "step", "step-trl"])
def test_commands_beside_trl_say_how_to_get_it(name):
    with pytest.raises(
        SystemExit, match=f"bench {name}: TRL is not installed: sh scripts/peers.sh"
    ):
        main([name])


def test_our_side_of_the_training_step_has_gradients():
    config = load_config(str(ROOT / training_step.WORKLOADS["tiny"].recipe))
    policy, samples = training_step._samples_of(config, 4)
    recorder = training_step._Recorder(policy.model)
    score(policy, samples, 4096, 1.0)
    training_step._ours(policy, samples, 2)(recorder)
    norms = [float(g.norm()) for g in recorder.gradients.values()]
    assert len(norms) == len(recorder.named) and min(norms) > 0


def test_a_command_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["kernel"])
    assert "invalid choice: 'kernel'" in capsys.readouterr().err
