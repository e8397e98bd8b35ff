"""Ctrl-C and SIGTERM: a run ends between decoding steps, says how to go on, and loses nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from siri_train.checkpoint import checkpoints
from siri_train.cli import main
from siri_train.loop import train
from siri_train.rollout import TransformersEngine
from siri_train.stop import Stopped, stop_request
from tests.train.test_checkpoint import ROLLOUTS, ROOT, rows


def same_runs(one: Path, two: Path, step: int) -> None:
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert rows(one / name) == rows(two / name)
    a, b = (
        AutoModelForCausalLM.from_pretrained(run / "checkpoints" / f"step_{step:06d}").state_dict()
        for run in (one, two)
    )
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def interrupt_in(
    monkeypatch: pytest.MonkeyPatch, call: int, signum: int, decoding_steps: int = 5
) -> list[int]:
    """The process gets a signal in the given sampling call; the tokens decoded afterwards."""
    generate = TransformersEngine.generate
    calls: list[int] = []
    later: list[int] = []

    def interrupted(self: Any, prompts: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if params.n == 1:  # the evaluation, the probe
            return generate(self, prompts, params, *args, **kwargs)
        calls.append(1)
        asked = kwargs["cancelled"]
        looks = 0

        def cancelled() -> bool:
            nonlocal looks
            looks += 1
            if len(calls) == call and looks == decoding_steps:
                os.kill(os.getpid(), signum)
                time.sleep(0.05)
            if len(calls) == call and looks > decoding_steps:
                later.append(1)
            return asked()

        return generate(self, prompts, params, *args, **{**kwargs, "cancelled": cancelled})

    monkeypatch.setattr(TransformersEngine, "generate", interrupted)
    return later


@pytest.mark.parametrize("rollouts", ROLLOUTS)
def test_a_stopped_run_continues_as_if_nothing_had_happened(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rollouts: str
) -> None:
    signum = signal.SIGTERM
    options = ("train.steps=5", *ROLLOUTS[rollouts], "checkpoint.every=0", "schedule.cycle=20")
    whole = train(tiny(*options, f"output={tmp_path / 'whole'}"))
    cut = tiny(*options, f"output={tmp_path / 'cut'}")
    ahead = "ahead" in rollouts
    with monkeypatch.context() as patch:
        later = interrupt_in(patch, call=3, signum=signum)
        with pytest.raises(Stopped, match=r"same command again") as caught:
            train(cut)
    assert caught.value.signum == signum
    folder = cut.run_dir / "checkpoints" / "step_000002"
    assert f"stopped before step 2, {folder} holds everything" in str(caught.value)
    assert list(checkpoints(cut.run_dir)) == [2]
    assert (folder / "rollouts.pt").exists() == ahead
    assert bool(later) == ahead  # one ahead is sampled to its end: its weights are gone later
    train(cut)
    same_runs(whole, cut.run_dir, 5)


def test_stopped_before_the_first_step_there_is_nothing_to_save(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_in(monkeypatch, call=1, signum=signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped before step 0; run the same command again"):
        train(tiny())
    assert not (tiny().run_dir / "checkpoints").exists()
    train(tiny())


def test_the_second_signal_insists() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_request() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        assert stop and stop.agreed() == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with stop_request() as stop:
            seen.append((bool(stop), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_line_says_how_to_continue(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], signum: int, status: int
) -> None:
    """SIGINT to a process of its own, SIGTERM to this one."""
    recipe = tmp_path / "recipe.yaml"
    config = tiny("train.steps=400", "checkpoint.every=0", "eval.at_start=false")
    recipe.write_text(config.to_yaml())
    metrics = config.run_dir / "metrics.jsonl"

    def signal_later(pid: int) -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until and not (metrics.exists() and metrics.stat().st_size > 2000):
            time.sleep(0.02)
        os.kill(pid, signum)

    if signum == signal.SIGINT:
        command = [sys.executable, "-m", "siri_train", "train", str(recipe)]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        signal_later(process.pid)
        _, error = process.communicate(timeout=120)
        returned = process.returncode
    else:
        thread = threading.Thread(target=signal_later, args=(os.getpid(),))
        thread.start()
        returned = main(["train", str(recipe)])
        thread.join()
        error = capsys.readouterr().err
    assert returned == status, error
    assert "Traceback" not in error and "run the same command again to continue" in error
    step = int(re.search(r"stopped before step (\d+)", error)[1])  # type: ignore[index]
    assert step == len(metrics.read_text().splitlines()) and step in checkpoints(config.run_dir)
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [*range(step)]
