"""Runs a recipe in forked processes, kills them at random moments, and lets the last one finish.

Forking saves the imports of every attempt. Each child tells the parent over a pipe where it is; the
parent picks a phase in turn (rollout, update, checkpoint), waits for the child to enter it and a
random time more, and sends SIGKILL. A run that finishes before its kill starts anew in an empty
folder. Goes on until every phase has had a quarter of the kills, however often the phase was over
when the kill came.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import siri_train.train
import siri_train.trainer.run
from siri_train.config.run import RunConfig
from siri_train.rollout import TransformersEngine

PHASES = ("rollout", "update", "checkpoint")
ENDS = "ruc"  # what the child writes at the end of each; at its beginning, the phase's number
LONGEST = {"rollout": 0.1, "update": 0.04, "checkpoint": 0.03}  # seconds after the phase began


def child(config: RunConfig, pipe: int) -> None:
    def announced(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            os.write(pipe, b"%d" % PHASES.index(name))
            try:
                return function(*args, **kwargs)
            finally:
                os.write(pipe, ENDS[PHASES.index(name)].encode())

        return call

    TransformersEngine.generate = announced("rollout", TransformersEngine.generate)  # type: ignore[method-assign]
    siri_train.train.update = announced("update", siri_train.train.update)
    siri_train.trainer.run.save_checkpoint = announced(
        "checkpoint", siri_train.trainer.run.save_checkpoint
    )
    torch.set_num_threads(1)  # threads of the parent do not live here
    siri_train.train.train(config)


def attempt(config: RunConfig, target: str | None, draw: random.Random) -> str | None:
    """One process; returns the phase it was killed in, None if it was not killed in one."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        status = 1
        try:
            sys.stdout = open(os.devnull, "w")
            child(config, writer)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    wanted, phase, told = draw.randint(1, 3), b"-", b""
    while target is not None and (phase := os.read(reader, 1)):
        told += phase
        if phase == b"%d" % PHASES.index(target):
            wanted -= 1
            if wanted == 0:
                break
    if target is not None and phase:
        time.sleep(draw.uniform(0, LONGEST[target]))
        os.kill(pid, signal.SIGKILL)
    elif target is None:
        while os.read(reader, 4096):
            pass
    told += os.read(reader, 4096) if phase else b""
    os.close(reader)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        # A batch may be sampled beside the update: several phases at a time.
        text = told.decode()
        here = [
            name
            for number, name in enumerate(PHASES)
            if text.rfind(str(number)) > text.rfind(ENDS[number])
        ]
        return target if target in here or not here else here[0]
    assert os.WEXITSTATUS(status) == 0, f"an attempt failed (to be killed in {target})"
    return None


def killed_and_finished(config: RunConfig, kills: int) -> dict[str, int]:
    """Kill the run so often, let it finish; the kills in each phase."""
    draw = random.Random(20261124)
    hit = dict.fromkeys(PHASES, 0)
    attempts = 0
    while sum(hit.values()) < kills or min(hit.values()) < kills // 4:
        attempts += 1
        assert attempts <= 10 * kills, hit
        phase = attempt(config, min(hit, key=lambda name: hit[name]), draw)
        if phase is not None:
            hit[phase] += 1
        else:  # finished: start anew
            shutil.rmtree(Path(config.run_dir))
    attempt(config, None, draw)
    return hit


def untimed(path: Path) -> str:
    """A JSON file of a run without what a clock measured."""
    return re.sub(r'"train_seconds": [-0-9.e]+', '"train_seconds": 0', path.read_text())
