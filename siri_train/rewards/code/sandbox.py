"""How the processes that run programs are started, and what holds for them on this machine."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from siri_train.rewards.code.isolation import LAYERS
from siri_train.rewards.code.promises import PROMISES, sentence

SandboxMode = Literal["strict", "best_effort"]

SCRIPT = str(Path(__file__).with_name("host.py"))
FLAGS = ("-S", "-s")
"""Options of the interpreter: Python's own modules and no package, whatever is installed."""
ENVIRONMENT = {"PYTHONHASHSEED": "0", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
"""No variable of this process; the same order of sets in every run."""

_PATIENCE_S = 60.0


class SandboxError(RuntimeError):
    """Programs cannot be shut in on this machine; the message says what does not hold."""


@dataclass(frozen=True)
class Sandbox:
    """The layers and promises that hold on this machine.

    Attributes:
        layers: of isolation that could be put on, see ``isolation.LAYERS``.
        promises: that held when they were tried from inside, see ``promises.PROMISES``.
    """

    layers: tuple[str, ...]
    promises: tuple[str, ...]

    def __str__(self) -> str:
        return sentence(self.layers, self.promises)


def arguments(timeout_s: float, layers: Sequence[str], needed: Sequence[str]) -> list[str]:
    """The command line of ``host.py``.

    Args:
        timeout_s: seconds of processor time for one program.
        layers: of isolation, which to put on.
        needed: promises without which it refuses to start.
    """
    return [str(timeout_s), ",".join(layers), ",".join(needed)]


@functools.cache
def look(layers: tuple[str, ...] = LAYERS) -> Sandbox:
    """Start a sandbox and try from inside what it promises.

    Args:
        layers: which to put on.

    Raises:
        SandboxError: it does not start.
    """
    if not hasattr(os, "fork"):
        raise SandboxError("programs run where processes can fork: on Linux or macOS")
    try:
        said = subprocess.run(
            [sys.executable, *FLAGS, SCRIPT, *arguments(1.0, layers, ())],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE_S,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        held = json.loads(said.stdout.split(b"\n")[0] or b"{}")
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"the sandbox does not start: {error}") from error
    if not held.get("ready"):
        last = (said.stderr.decode(errors="replace").strip().splitlines() or ["no word"])[-1]
        raise SandboxError(f"the sandbox does not start: {held.get('error', last)}")
    return Sandbox(tuple(held["layers"]), tuple(held["promises"]))


def require(mode: SandboxMode) -> tuple[str, ...]:
    """The promises that every process must keep.

    Args:
        mode: ``"strict"``: all; ``"best_effort"``: those that hold here.

    Raises:
        SandboxError: it does not start, or ``"strict"`` and a promise does not hold.
    """
    held = look()
    if mode == "best_effort":
        return held.promises
    if set(held.promises) != set(PROMISES):
        raise SandboxError(
            f"{held}; use a machine or a container that allows seccomp, or set "
            "reward.sandbox=best_effort if programs of a model may do that here"
        )
    return tuple(PROMISES)
