"""One bad input, how it is run in a forked process, and what is wrong with the answer."""

from __future__ import annotations

import copy
import faulthandler
import importlib
import io
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.train.conftest import TINY

RECIPE = "tiny.yaml"
LIMIT = 300.0
"""Seconds after which an input has not been answered."""

# Not what is wrong alone ("is missing", "holds"), nor a word that is also a path's ("run").
_REMEDY = re.compile(
    r"\b(takes?|give|use|set|must|expected|see|did you mean|remove|lower|raise|make|add|keep|drop|"
    r"write|save|correct|at most|at least|accepts?|install|choose|invalid choice|start|fix|needs?|"
    r"should|copy|convert|download|fetch|less than|greater than|put|change|try|name it|unpack|"
    r"(is|are|arguments) required|give one|accepted here|pip install)(?![\w./-])|"
    r"\brun (`|(siri-train|the|it|again)\b)"
)


@dataclass(frozen=True)
class Bad:
    """A command line that must be refused.

    Args:
        family: what kind of input is bad.
        name: of this input, unique in its family.
        argv: arguments of ``siri-train``.
        names: words of which each must stand in the one line: the key, the file, the option.
        prepare: makes the input's files in the folder given; the recipe is there already.
        environment: variables of the process.
        encoding: of its stdout and stderr.
    """

    family: str
    name: str
    argv: tuple[str, ...]
    names: tuple[str, ...]
    prepare: Callable[[Path], None] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Answer:
    """What the command did: exit status (negative: the signal it died of), stderr, changes."""

    status: int
    stderr: str
    changed: list[str]


def write_recipe(home: Path, **sections: Any) -> None:
    """The tiny recipe, its run in ``run``, with some sections replaced."""
    recipe = {**copy.deepcopy(TINY), "output": "run", **sections}
    (home / RECIPE).write_text(yaml.safe_dump(recipe), encoding="utf-8")


def answer(bad: Bad, limit: float = LIMIT) -> Answer:
    """Run one input in a forked process, in a folder of its own."""
    home = Path(tempfile.mkdtemp(prefix="bad_input_"))
    try:
        work = home / "work"
        work.mkdir()
        write_recipe(work)
        if bad.prepare is not None:
            bad.prepare(work)
        before = _tree(work)
        status = _forked(bad, work, home, limit)
        after = _tree(work)
        changed = sorted(p for p in {*before, *after} if before.get(p) != after.get(p))
        said = (home / "stderr").read_text(encoding=bad.encoding, errors="replace")
        return Answer(status, said, changed)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def faults(bad: Bad, got: Answer, remedy: bool = False) -> list[str]:
    """What is wrong with the answer; nothing if it is right.

    Args:
        bad: the input.
        got: what the command did.
        remedy: the line must also hold a word that says what to do or what is accepted.
    """
    lines = got.stderr.splitlines()
    wrong = []
    if got.status == 0:
        wrong.append("accepted: exit status 0")
    elif got.status < 0:
        wrong.append(f"died of signal {-got.status}" + (" (too slow)" if got.status == -9 else ""))
    if "Traceback" in got.stderr:
        wrong.append(f"traceback: {lines[-1][:200]}")
    elif len(lines) != 1 and got.status != 0:
        wrong.append(f"{len(lines)} lines on stderr: {lines[:3]}")
    elif got.status != 0:
        (line,) = lines
        missing = [word for word in bad.names if word not in line]
        if missing:
            wrong.append(f"does not name {missing}: {line[:300]}")
        if not line.startswith("siri-train"):
            wrong.append(f"does not begin with the command: {line[:100]}")
        if not line.isprintable():
            wrong.append(f"holds control characters: {line[:200]!r}")
        if remedy and not _REMEDY.search(line.partition(": ")[2]):
            wrong.append(f"names no remedy: {line[:300]}")
    if got.changed:
        wrong.append(f"wrote {got.changed[:4]}")
    return wrong


def _tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below; folders only by name: a lock may have been held there."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root, name)
            state = path.lstat()
            kept = (0, 0) if path.is_dir() else (state.st_size, state.st_mtime_ns)
            found[str(path.relative_to(folder))] = kept
    return found


def _forked(bad: Bad, work: Path, home: Path, limit: float) -> int:
    """Exit status of the command. Forking saves the imports, and a crash ends one input only."""
    main = _preloaded()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = _child(bad, work, home, main)
        finally:
            os._exit(status)
    until = time.monotonic() + limit
    while True:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(code)
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def _preloaded() -> Callable[[list[str]], int]:
    """``siri_train.cli.main``, with what the commands import when they are called."""
    import siri_train.cli

    commands = ("commands.demo", "commands.dry_run", "commands.eval", "commands.sft")
    for name in (*commands, "config.recipe", "model.gguf", "report.schedule_plot", "train"):
        importlib.import_module(f"siri_train.{name}")
    importlib.import_module("transformers.models.qwen2.modeling_qwen2")
    return siri_train.cli.main


def _child(bad: Bad, work: Path, home: Path, main: Callable[[list[str]], int]) -> int:
    import huggingface_hub.constants
    import torch

    huggingface_hub.constants.HF_HUB_OFFLINE = True  # read when it was imported
    faulthandler.disable()  # a crash is seen by its signal
    torch.set_num_threads(1)  # threads of the parent do not live here
    os.chdir(work)
    # A home of its own has no compiled loss: each case would start the compiler.
    own = {"HOME": str(home), "HF_HUB_OFFLINE": "1", "SIRI_KERNELS_COMPILED_LOSS": "0"}
    os.environ.update({**own, **bad.environment})
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, str(home / "stdout"), os.O_WRONLY | os.O_CREAT),
        (2, str(home / "stderr"), os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(path, flags, 0o600), descriptor)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding=bad.encoding)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding=bad.encoding)
    # As Python itself opens it.
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False),
        encoding=bad.encoding,
        errors="backslashreplace",
        line_buffering=True,
    )
    status = 98
    try:
        status = main(list(bad.argv)) or 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return status
