"""A part's process, in a group of its own so that it is killed together with its children."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from bench.gpu.clock import Clock

PATIENCE = 10.0  # seconds for a killed process to end: the driver may still run its kernel


class Running(Protocol):
    """A process that was started."""

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""

    def kill(self) -> None:
        """End it and all of its children at once."""


class Started:
    """A real process and its children; its output is appended to a file.

    It has a group of its own, but belongs to the caller's session, so that it ends with it.

    Args:
        command: of the process.
        environment: of the process.
        log: file of its output.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                list(command), env=dict(environment), stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, preexec_fn=os.setpgrp,
            )  # fmt: skip

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End the whole process group, whose leader this process is."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def wait(process: Running, limit: float, clock: Clock, step: float = 0.05) -> tuple[str, str]:
    """Wait for a process, at most ``limit`` seconds, then kill it.

    Its children are killed in any case, because a child that still runs would hold the GPU.

    Args:
        process: that was started.
        limit: seconds.
        clock: the time.
        step: seconds between two looks.

    Returns:
        "done", "failed" or "killed", and why (empty for "done").
    """
    end = clock.now() + limit
    try:
        while (code := process.poll()) is None and clock.now() < end:
            clock.sleep(step)
    finally:  # also when the runner itself is terminated
        process.kill()
    if code is None:
        gone = clock.now() + PATIENCE
        while process.poll() is None and clock.now() < gone:
            clock.sleep(step)
        stuck = "" if process.poll() is not None else f", and did not end within {PATIENCE:.0f} s"
        return "killed", f"over its limit of {limit:.0f} s{stuck}"
    if code == 0:
        return "done", ""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return "failed", f"ended by {name}"
    return "failed", f"exit code {code}"
