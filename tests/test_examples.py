"""Every loop of ``examples/`` runs on our head, trains, and is as short as it says."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from siri_kernels.linear_logprob.head import scoring

ROOT = Path(__file__).parents[1]
LOOPS = [
    "plain_pytorch",
    "transformers_trainer",
    "accelerate_loop",
]  # and lightning: make test-peers


def run(name: str, monkeypatch: pytest.MonkeyPatch, steps: int, **options: object) -> list[float]:
    """Mean rewards of ``steps`` steps; every training pass went through ``linear_logprob``."""
    calls = []
    own = scoring.linear_logprob

    def counted(*args, **kwargs):
        out = own(*args, **kwargs)
        calls.append(out.logprobs.requires_grad)
        return out

    monkeypatch.setattr(scoring, "linear_logprob", counted)
    rewards = importlib.import_module(f"examples.{name}").train(steps, **options)
    assert calls == [True] * steps * (2 if name == "plain_pytorch" else 1)
    assert len(rewards) == steps
    return rewards


def learns(rewards: list[float]) -> None:
    """It has: the last quarter against the first two steps; most is learnt in the next few."""
    part = len(rewards) // 4
    assert sum(rewards[-part:]) / part > sum(rewards[:2]) / 2 + 0.1, rewards


@pytest.mark.draw(1)
@pytest.mark.parametrize("name", LOOPS)
def test_loop_runs(name, monkeypatch):
    run(name, monkeypatch, 2)


def test_loop_runs_in_mixed_precision(monkeypatch):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # of another test's precision
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    run("accelerate_loop", monkeypatch, 2, mixed_precision="bf16")


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_loop_learns(name, monkeypatch):
    learns(run(name, monkeypatch, 20))


@pytest.mark.slow
def test_accelerate_on_two_processes_learns():
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--num_cpu_threads_per_process", "1", "--main_process_port", "0",
        "-m", "examples.accelerate_loop",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rewards = [float(line.split()[1]) for line in done.stdout.splitlines() if "reward" in line]
    assert len(rewards) == 20  # printed by the first process alone
    learns(rewards)


@pytest.mark.parametrize("name", [*LOOPS, "lightning_module"])
def test_loop_has_about_forty_lines(name):
    """The whole file, docstrings and imports too."""
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert 20 < len(text.splitlines()) <= 42
