"""A signal ends a command that has nothing to save: at once, in one line, nothing half written."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from siri_train.cli import main
from siri_train.train import train
from siri_train.trainer.interrupts import (
    SECOND_KILLS,
    STOP_ONLY,
    Interrupted,
    interrupt,
    interrupting,
)
from siri_train.trainer.signals import StopRequest, stop_request
from tests.torchrun import ROOT
from tests.train.damage import model_folder

SIGNALS = [*SECOND_KILLS, *STOP_ONLY]
PACKAGE = str(ROOT / "siri_train")
pytestmark = pytest.mark.usefixtures("usual_signals")


def content(path: Path) -> bytes:
    """A file's bytes, without the time that an evaluation took."""
    return re.sub(rb'("seconds": )[\d.e-]+', rb"\1any", path.read_bytes())


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): content(path) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.costly
@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]
)
def test_an_evaluation_in_a_process_of_its_own(tiny: Any, tmp_path: Path, signum: int) -> None:
    folder = model_folder(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(tiny("eval.samples=1024").to_yaml())  # for minutes
    before = tree(tmp_path)
    command = [sys.executable, "-m", "siri_train", "eval", str(folder)]
    with subprocess.Popen(
        [*command, "--recipe", str(tmp_path / "recipe.yaml")],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        while not (line := process.stdout.readline()).startswith("eval  "):
            assert line, process.communicate()[1]
        process.send_signal(signum)
        _, error = process.communicate(timeout=600)
    assert process.returncode == 128 + signum, error
    assert error.count("\n") == 1 and signal.Signals(signum).name in error
    assert error.startswith("siri-train eval: ended by ")
    assert tree(tmp_path) == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its recipe beside it."""
    import copy

    from siri_train.config.recipe import parse_config
    from tests.train.conftest import TINY

    folder = tmp_path_factory.mktemp("finished")
    small = ["train.steps=1", "schedule.max_len=24", "schedule.min_len=20"]
    config = parse_config(copy.deepcopy(TINY), [f"output={folder / 'run'}", *small])
    (folder / "recipe.yaml").write_text(config.to_yaml())
    return train(config).parent


COMMANDS = {
    "report": ["report", "run"],
    "export": ["export", "run", "--which", "1", "--out", "out"],
    "schedule": ["schedule", "recipe.yaml", "--svg", "plot.svg"],
    "eval": ["eval", "run/checkpoints/step_000001"],
}


class At:
    """Sends this process a signal at the n-th call of a function of siri_train's."""

    def __init__(self, moment: int | None, signum: int) -> None:
        self.calls, self.moment, self.signum = 0, moment, signum

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(PACKAGE) or name.endswith("interrupts.py"):
            return
        if signal.getsignal(signal.SIGTERM) is not interrupt:
            return  # before the work or after it
        self.calls += 1
        if self.calls == self.moment:
            os.kill(os.getpid(), self.signum)

    def run(self, arguments: list[str]) -> int:
        sys.setprofile(self)
        try:
            return main(arguments)
        finally:
            sys.setprofile(None)


@pytest.mark.costly
@pytest.mark.draw(2)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_at_a_drawn_moment_leaves_all_or_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], name: str,
) -> None:  # fmt: skip
    rng = random.Random(name)
    there = tmp_path / "there"
    monkeypatch.chdir(tmp_path)

    def anew() -> dict[str, bytes | None]:
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(finished, there)
        monkeypatch.chdir(there)
        (there / "run" / "report.html").write_text("an older one")
        return tree(there)

    before = anew()
    undisturbed = At(None, 0)
    assert undisturbed.run(COMMANDS[name]) == 0
    after = tree(there)
    capsys.readouterr()
    ended = 0
    for _ in range(6):
        assert anew() == before
        last = undisturbed.calls  # the calls before it write
        moment = rng.choice([rng.randrange(1, last + 1), last - rng.randrange(12)])
        signum = rng.choice(SIGNALS)
        capsys.readouterr()
        status = At(moment, signum).run(COMMANDS[name])
        error = capsys.readouterr().err
        assert status in (0, 128 + signum)
        if status:
            ended += 1
            said = error.splitlines()[-1]  # behind a table, where eval had come that far
            assert said.startswith(f"siri-train {COMMANDS[name][0]}: ended by ")
            assert len([line for line in error.splitlines() if "siri-train" in line]) == 1
        assert tree(there) in ((before, after) if status else (after,)), (moment, signum)
    assert ended


@pytest.mark.draw(4)
@pytest.mark.parametrize("command", ["train", "sft"])
@pytest.mark.parametrize("signum", SIGNALS)
def test_while_data_are_read(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], command: str, signum: int,
) -> None:  # fmt: skip
    """Where nothing is done yet, a run does not read to the end first."""

    def endless(*_: Any) -> None:
        os.kill(os.getpid(), signum)
        until = time.monotonic() + 600
        while time.monotonic() < until:
            time.sleep(0.01)

    for module in ("trainer.preflight", "commands.sft_batches"):
        monkeypatch.setattr(f"siri_train.{module}.read_sources", endless)
    config = tiny("sft={steps: 2, batch_size: 4}")
    (tmp_path / "recipe.yaml").write_text(config.to_yaml())
    assert main([command, str(tmp_path / "recipe.yaml")]) == 128 + signum
    said = capsys.readouterr().err
    assert said == (
        f"siri-train {command}: ended by {signal.Signals(signum).name}; no file is half written; "
        "run the same command again\n"
    )
    assert not config.run_dir.exists()


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_handlers_are_the_systems_again(signum: signal.Signals) -> None:
    before = [signal.getsignal(s) for s in SIGNALS]
    with pytest.raises(KeyboardInterrupt) as caught, interrupting():
        for _ in range(3):
            signal.raise_signal(signum)
            time.sleep(60)  # it does not last
    assert getattr(caught.value, "signum", signal.SIGINT) == signum
    assert [signal.getsignal(s) for s in SIGNALS] == before


def test_clearing_up_is_not_disturbed_but_by_a_second_sigterm() -> None:
    with pytest.raises(Interrupted), interrupting():
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            for signum in STOP_ONLY:
                signal.raise_signal(signum)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ignored_signals_stay_so() -> None:
    for signum in STOP_ONLY:
        signal.signal(signum, signal.SIG_IGN)
    with interrupting():
        for signum in STOP_ONLY:
            signal.raise_signal(signum)


def test_a_run_inside_a_command_keeps_its_request() -> None:
    """The first SIGTERM asks the run; the second ends the process, as without a command."""
    with interrupting():
        with stop_request() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.signum == signal.SIGTERM
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is interrupt
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_request_before_there_is_anything_to_save() -> None:
    for early in (True, False):
        stop = StopRequest()
        if early:
            stop.note(signal.SIGTERM)
        with pytest.raises(Interrupted) as caught, stop.at_once():
            assert not early
            stop.note(signal.SIGTERM)
        assert caught.value.signum == signal.SIGTERM
    stop = StopRequest()
    with stop.at_once():
        pass
    stop.note(signal.SIGHUP)  # there is now
    assert stop
