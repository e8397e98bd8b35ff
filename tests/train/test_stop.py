"""Signals: a run ends between decoding steps, says how to go on, and loses nothing."""

from __future__ import annotations

import copy
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

from siri_train.checkpoint.save_load import checkpoints
from siri_train.cli import main
from siri_train.commands import eval
from siri_train.config.recipe import parse_config
from siri_train.rollout import TransformersEngine
from siri_train.train import train
from siri_train.trainer.signals import Stopped, stop_request
from tests.torchrun import ROOT
from tests.train.conftest import TINY
from tests.train.killer import untimed
from tests.train.test_checkpoint import ROLLOUTS, rows


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
                asking = signal.getsignal(signum)
                os.kill(os.getpid(), signum)
                while signal.getsignal(signum) is asking:  # noted by the main thread, which may
                    time.sleep(0.001)  # be another and busy
            if len(calls) == call and looks > decoding_steps:
                later.append(1)
            return asked()

        return generate(self, prompts, params, *args, **{**kwargs, "cancelled": cancelled})

    monkeypatch.setattr(TransformersEngine, "generate", interrupted)
    return later


@pytest.mark.draw(1, "ended")
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


@pytest.mark.costly
def test_stopped_before_the_first_step_there_is_nothing_to_save(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_in(monkeypatch, call=1, signum=signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped before step 0; run the same command again"):
        train(tiny())
    assert not (tiny().run_dir / "checkpoints").exists()
    train(tiny())


def test_the_second_signal_insists() -> None:
    own = signal.default_int_handler
    outer = signal.signal(signal.SIGINT, own)  # ignored where a shell runs this in the background
    try:
        with pytest.raises(KeyboardInterrupt), stop_request() as stop:
            assert not stop
            signal.raise_signal(signal.SIGINT)
            assert stop and stop.agreed() == signal.SIGINT
            signal.raise_signal(signal.SIGINT)
            time.sleep(60)  # it does not last
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, outer)


ASKING = [s for s in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, s)]


@pytest.mark.parametrize("name", ASKING)
def test_a_clusters_signals_ask_however_often_they_come(name: str) -> None:
    signum = getattr(signal, name)
    outer = signal.signal(signum, signal.SIG_DFL)
    own = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with stop_request() as stop:
            for _ in range(3):
                signal.raise_signal(signum)
            assert stop.signum == signum
            # The first SIGTERM after it is a request; the second one ends the process.
            signal.raise_signal(signal.SIGTERM)
            assert stop.signum == signum and signal.getsignal(signal.SIGTERM) is not None
            signal.raise_signal(signum)
        assert signal.getsignal(signum) is signal.SIG_DFL
    finally:
        signal.signal(signum, outer)
        signal.signal(signal.SIGTERM, own)


@pytest.mark.parametrize("name", ASKING)
def test_what_was_ignored_stays_so(name: str) -> None:
    """As ``nohup`` does it."""
    signum = getattr(signal, name)
    outer = signal.signal(signum, signal.SIG_IGN)
    try:
        with stop_request() as stop:
            signal.raise_signal(signum)
            assert not stop and signal.getsignal(signum) is signal.SIG_IGN
        assert signal.getsignal(signum) is signal.SIG_IGN
    finally:
        signal.signal(signum, outer)


@pytest.mark.draw(2)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", *ASKING])
def test_every_signal_saves_and_is_the_exit_status(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    signum = getattr(signal, name)
    recipe = tmp_path / "recipe.yaml"
    config = tiny("train.steps=3", "checkpoint.every=0", "schedule.cycle=20", "eval.at_start=false")
    recipe.write_text(config.to_yaml())
    outer = signal.signal(signum, signal.SIG_DFL)
    try:
        sample_then(monkeypatch, lambda call: os.kill(os.getpid(), signum) if call == 2 else None)
        assert main(["train", str(recipe)]) == 128 + signum
    finally:
        signal.signal(signum, outer)
    assert list(checkpoints(config.run_dir)) == [1]
    assert "run the same command again to continue" in capsys.readouterr().err


def sample_then(monkeypatch: pytest.MonkeyPatch, act: Any, answers: int = 4) -> list[int]:
    """At the third look for a cancellation of a call, ``act(number of the call)``; all the calls.

    Counted are the calls for so many answers a question: 1 for those of an evaluation.
    """
    generate = TransformersEngine.generate
    calls: list[int] = []

    def acting(self: Any, prompts: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        asked = kwargs.get("cancelled")
        if params.n != answers or asked is None:
            return generate(self, prompts, params, *args, **kwargs)
        calls.append(0)

        def cancelled() -> bool:
            calls[-1] += 1
            if calls[-1] == 3:
                act(len(calls))
            return asked()

        return generate(self, prompts, params, *args, **{**kwargs, "cancelled": cancelled})

    monkeypatch.setattr(TransformersEngine, "generate", acting)
    return calls


EVALUATED = ("train.steps=5", "eval.every=2", "schedule.cycle=6", "checkpoint.keep_last=1")
"""Evaluations after 0, 2, 3 (siri-low), 4 and 5 steps."""


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run that nothing ended, by its further settings."""
    done: dict[tuple[str, ...], Path] = {}

    def run(*options: str) -> Path:
        if options not in done:
            output = tmp_path_factory.mktemp("whole") / "run"
            overrides = [f"output={output}", *EVALUATED, *options]
            done[options] = train(parse_config(copy.deepcopy(TINY), overrides))
        return done[options]

    return run


KINDS = {
    "periodic": ("checkpoint.every=1",),
    "ends only": ("checkpoint.every=0",),
    "the best": ("checkpoint.every=0", "checkpoint.best=accuracy"),
    "ahead": ("checkpoint.every=2", "rollout.asynchronous=true"),
}


class Killed(BaseException):
    """Nothing of the run may handle it, as nothing handles SIGKILL."""


@pytest.mark.draw(1, "ended")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["asked", "killed"])
def test_an_evaluation_that_is_ended_costs_nothing(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, evaluated: Any, kind: str, how: str
) -> None:
    """In every one of the five evaluations; the run goes on to the same bits, logs and names."""
    config, whole = tiny(*EVALUATED, *KINDS[kind]), evaluated(*KINDS[kind])
    looks: list[int] = []

    def act(call: int) -> None:
        looks.append(call)
        if len(looks) % 2:  # the next process gets through it
            if how == "killed":
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)

    calls = sample_then(monkeypatch, act, answers=1)
    ended = []
    for _ in range(6):
        try:
            train(config)
            break
        except (Stopped, Killed):
            assert calls[-1] == 3  # no token more
            ended.append(max(checkpoints(config.run_dir), default=0))
    else:
        pytest.fail("it never ends")
    assert len(ended) == 5
    if how == "asked" or kind == "periodic":  # the steps until then are saved
        assert ended == [0, 2, 3, 4, 5]
    same_runs(whole, config.run_dir, 5)
    for name in ("checkpoints/manifest.json", "summary.json"):
        assert untimed(whole / name) == untimed(config.run_dir / name)
    if how == "killed":  # a request saves where it ends, which nobody asked for otherwise
        assert list(checkpoints(whole)) == list(checkpoints(config.run_dir))


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


@pytest.mark.draw(1)
@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_eval_ends_in_one_line_and_writes_nothing(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    checkpoint = train(tiny("train.steps=1", "eval.at_start=false")) / "checkpoints" / "step_000001"
    before = sorted(path.name for path in checkpoint.iterdir())
    signum, load = getattr(signal, name), eval.load_policy

    def load_and_signal(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signum)
        return load(*args, **options)

    monkeypatch.setattr(eval, "load_policy", load_and_signal)
    capsys.readouterr()
    assert main(["eval", str(checkpoint)]) == 128 + signum
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "; run the same command again" in err
    assert sorted(path.name for path in checkpoint.iterdir()) == before


@pytest.mark.draw(1, "ended")
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_line_says_how_to_continue(
    tiny: Any, tmp_path: Path, signum: int, status: int
) -> None:
    recipe = tmp_path / "recipe.yaml"
    config = tiny("train.steps=400", "checkpoint.every=0", "eval.at_start=false")
    recipe.write_text(config.to_yaml())
    command = [sys.executable, "-m", "siri_train", "train", str(recipe)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = config.run_dir / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size > 2000):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signum)
    _, error = process.communicate(timeout=600)
    assert process.returncode == status, error
    assert "Traceback" not in error and "run the same command again to continue" in error
    step = int(re.search(r"stopped before step (\d+)", error)[1])  # type: ignore[index]
    assert step == len(metrics.read_text().splitlines()) and step in checkpoints(config.run_dir)
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [*range(step)]
