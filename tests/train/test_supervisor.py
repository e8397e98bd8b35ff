"""A server is ended with its trainer, and one that crashes is restarted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from siri_train.config.base import ConfigError
from siri_train.rollout.engine import EngineError
from siri_train.rollout.vllm import supervisor
from siri_train.rollout.vllm.http_client import JsonClient
from siri_train.rollout.vllm.server_process import (
    ServerProcess,
    cause_of_death,
    python_version_of_vllm,
    wait_for_server,
)

# As vLLM: a leader with a child in its session, which ignores SIGTERM. Both write their numbers,
# the leader first; one that crashes waits for its child's.
SERVER = """
import os, signal, sys, time
def tell():
    with open(sys.argv[1], "a") as file:
        file.write(f"{os.getpid()}\\n")
signal.signal(signal.SIGTERM, signal.SIG_IGN)
tell()
child = os.fork()
if not child:
    tell()
if child and sys.argv[2] != "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
while child and sys.argv[2] == "crash":
    if str(child) in open(sys.argv[1]).read().split():
        os._exit(3)
    time.sleep(0.02)
time.sleep(600)
"""
# Seconds after which something has not happened; no measure of how long it takes.
LONG = 200.0


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def numbers(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def command(tmp_path: Path, behaviour: str, restarts: int = 2) -> list[str]:
    return [
        *(sys.executable, supervisor.__file__, "PARENT", str(restarts), str(tmp_path / "log")),
        *(sys.executable, "-c", SERVER, str(tmp_path / "pids"), behaviour),
    ]


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    mine = [str(os.getpid()) if a == "PARENT" else a for a in arguments]
    return subprocess.Popen(mine, start_new_session=True)


@pytest.mark.draw(2, "processes")
def test_a_server_that_crashes_is_restarted_and_then_given_up(tmp_path: Path) -> None:
    process = start(command(tmp_path, "crash"))
    assert process.wait(LONG) == 1
    pids = numbers(tmp_path / "pids")
    assert len(pids) == 6  # three starts of two processes
    until(lambda: not any(map(alive, pids)))
    log = (tmp_path / "log").read_text()
    assert log.count("start:") == 3 and log.count("status 3") == 3
    assert "gives up after 2 restarts" in log


@pytest.mark.costly
@pytest.mark.draw(2, "processes")
@pytest.mark.parametrize("behaviour", ["serve", "stubborn"])
def test_stopped(tmp_path: Path, behaviour: str) -> None:
    process = start(command(tmp_path, behaviour))
    until(lambda: len(numbers(tmp_path / "pids")) == 2)
    process.terminate()
    assert process.wait(LONG) == 0
    until(lambda: not any(map(alive, numbers(tmp_path / "pids"))))


@pytest.mark.draw(2, "processes")
def test_a_killed_leader_takes_its_children_along(tmp_path: Path) -> None:
    process = start(command(tmp_path, "serve"))
    until(lambda: len(numbers(tmp_path / "pids")) == 2)
    first = numbers(tmp_path / "pids")
    os.kill(first[0], signal.SIGKILL)
    until(lambda: len(numbers(tmp_path / "pids")) == 4)
    until(lambda: not any(map(alive, first)))
    process.terminate()
    process.wait(LONG)
    until(lambda: not any(map(alive, numbers(tmp_path / "pids"))))


@pytest.mark.draw(2, "processes")
def test_a_killed_trainer_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys\n"
        "mine = [str(os.getpid()) if a == 'PARENT' else a for a in sys.argv[1:]]\n"
        "subprocess.Popen(mine, start_new_session=True).wait()"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code, *command(tmp_path, "serve")])
    until(lambda: len(numbers(tmp_path / "pids")) == 2)
    trainer.kill()
    trainer.wait()
    until(lambda: not any(map(alive, numbers(tmp_path / "pids"))))


def test_a_server_process_that_cannot_start_says_why(tmp_path: Path) -> None:
    """At once: a wrong flag would fail as often as it is tried."""
    log = tmp_path / "run" / "server.log"
    log.parent.mkdir()
    log.write_text("supervisor: the server ended, status 1\n")  # of an earlier run
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\nwhile [ ! -e {tmp_path}/go ]; do sleep 0.05; done\necho no such flag\nexit 2\n"
    )
    python.chmod(0o755)
    process = ServerProcess(tmp_path, ["--no-such-flag"], log, python=str(python), restarts=100)
    assert process.gave_up is None
    (tmp_path / "go").touch()
    until(lambda: process.gave_up is not None)
    with pytest.raises(EngineError) as caught:
        wait_for_server(JsonClient(process.url), LONG, process)
    said = str(caught.value)
    assert f"come back: no such flag (status 2) (all it said is in {log}); nothing" in said
    assert len(said.splitlines()) == 1
    process.close()


CAUSES = [
    "ValueError: Free memory on device (3.1/79.2 GiB) is less than desired",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "OSError: [Errno 98] Address already in use", "KeyError: 'qwen9'", "AssertionError: tp > 0",
    "api_server.py: error: unrecognized arguments: --no-such-flag",
    "error: invalid value", "Segmentation fault (core dumped)",
    "huggingface_hub.errors.HFValidationError: Repo id must be a text",
]  # fmt: skip
NOISE = [
    "Loading weights: 100%|####| 2/2", "WARNING: NumExpr detected 48 cores", "",
    '  File "/x/core.py", line 708, in run', "    raise ValueError(", "Traceback (most recent):",
    "The above exception was the direct cause of the following exception:", "\x1b[31mred\x1b[0m",
]  # fmt: skip
AFTER = [
    "RuntimeError: Engine core initialization failed. See root cause above. Failed: {}",
    "RuntimeError: Worker failed with error, please check the stack trace above for the root cause",
    " - leaked type", "nanobind: leaked 64 types!", "See https://nanobind.readthedocs.io",
]  # fmt: skip
FRONTS = [
    "", "(APIServer pid=123) ", "(EngineCore_DP0 pid=77) ",
    "(EngineCore_DP0 pid=7) ERROR 11-27 01:02:03 [core.py:708] ", "ERROR 01-02 03:04:05 [a.py:1] ",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_the_cause_is_found_in_a_log(seed: int) -> None:
    rng = random.Random(seed)
    cause, status = rng.choice(CAUSES), rng.choice(["1", "-9", "127"])
    lines = ["supervisor: start: python -m vllm --api-key secret"]
    if rng.random() < 0.3:  # of a start before, mended meanwhile
        lines += ["RuntimeError: another time", "supervisor: the server ended, status 3"]
    lines += rng.choices(NOISE, k=rng.randrange(40)) + [cause]
    lines += rng.choices(NOISE[:5] + AFTER, k=rng.randrange(10))
    front = rng.choice(FRONTS)
    log = [line if line.startswith("supervisor") else front + line for line in lines]
    log += [f"supervisor: the server ended, status {status}", "supervisor: gives up"]
    assert cause_of_death("\n".join(log) + "\n") == f"{cause} (status {status})"


def test_what_a_log_without_an_error_says() -> None:
    ended = "supervisor: the server ended, status -9\n"
    assert cause_of_death("") == "it said nothing (no status)"
    assert cause_of_death(f"supervisor: start: x\n{ended}") == "it said nothing (status -9)"
    assert cause_of_death(f"one\nlast words\n - leak\n{ended}") == "last words (status -9)"
    long = cause_of_death(f"ValueError: \x1b{'x' * 9999}y\n{ended}")
    assert len(long) < 420 and long.isprintable() and long.endswith("xy (status -9)")
    told = cause_of_death(f"x: error: unrecognized arguments: --api-key hunter2\n{ended}")
    assert "hunter2" not in told and "--api-key ***" in told


def test_an_interpreter_without_vllm(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rollout.server.python: '/nowhere' cannot be run"):
        python_version_of_vllm("/nowhere")
    nothing = tmp_path / "python"
    nothing.write_text("#!/bin/sh\nexit 1\n")
    nothing.chmod(0o755)
    with pytest.raises(ConfigError, match="no vLLM in the environment"):
        python_version_of_vllm(str(nothing))
