"""Carries out a plan: each run in its own process, several at a time, continued if stopped."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from typing import IO, Any

from siri_train.ablate.figures import finished, tokens_of
from siri_train.ablate.plan import Plan, Run, settings
from siri_train.config.base import ConfigError
from siri_train.config.paths import folder_made
from siri_train.config.recipe import load_config
from siri_train.files import replace_text, shown
from siri_train.monitor.progress import duration
from siri_train.trainer.signals import Stopped, StopRequest

_LINES = 6
"""Lines of a log that are shown where its run fails."""


@dataclass
class _Started:
    run: Run
    process: Popen[bytes]
    log: IO[bytes]
    since: float = field(default_factory=time.monotonic)


def recipe_of(run: Run) -> Path:
    """Where the configuration of a run is kept, beside its folder."""
    return run.folder.with_name(f"{run.folder.name}.yaml")


def log_of(run: Run) -> Path:
    """Where a run's process prints to, beside its folder."""
    return run.folder.with_name(f"{run.folder.name}.log")


def check_unchanged(runs: Sequence[Run]) -> None:
    """Refuse settings that differ from those with which runs in the folder were begun.

    Args:
        runs: with a budget of tokens or without; one that is not known yet is not compared.

    Raises:
        ConfigError: the first run that differs, with every key that does.
    """
    for run in runs:
        path = recipe_of(run)
        if not path.exists():
            continue
        before, now = _flat(settings(load_config(path))), _flat(settings(run.config))
        budget = ("train.max_tokens", "train.steps") if run.waits else ()
        keys = [key for key in now if key not in budget and before.get(key) != now[key]]
        keys += [key for key in before if key not in now]  # of options and parameters
        if keys:
            told = ", ".join(
                f"{key} was {_short(before.get(key))}, is now {_short(now.get(key))}"
                for key in keys[:4]
            )
            more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
            raise ConfigError(
                f"--out: {run.label} was begun with other settings in {shown(run.folder)}: {told}"
                f"{more}; give another --out, or remove {shown(path)} and the run's folder"
            )


def carry_out(
    plan: Plan, jobs: int, stop: StopRequest, tell: Callable[[str], None] = print
) -> dict[str, str]:
    """Train every run that is not finished.

    Args:
        plan: checked.
        jobs: processes at a time.
        stop: once set, no run starts, and those that go on end with a checkpoint.
        tell: takes lines for the user.

    Returns:
        The label of each run that failed, and why, in a line.

    Raises:
        ConfigError: the budget of tokens differs from that of runs in the folder.
        Stopped: it was asked to stop; every run can be continued.
    """
    waiting = deque(plan.runs)
    failed: dict[str, str] = {}
    running: list[_Started] = []
    done = 0
    with ExitStack() as at_end:
        at_end.callback(_kill, running)
        while waiting or running:
            while waiting and len(running) < jobs and not stop:
                run = _next(plan, waiting, running, failed)
                if run is None:
                    break
                waiting.remove(run)
                if run.label in failed:
                    done += 1
                    tell(f"[{done}/{len(plan.runs)}] {run.label}: {failed[run.label]}")
                elif finished(run.folder):
                    done += 1
                    tell(f"[{done}/{len(plan.runs)}] {run.label}: is finished")
                else:
                    running.append(_start(run, jobs))
                    tell(f"{run.label}: begins or continues; log: {log_of(run)}")
            if stop:
                waiting.clear()
                for one in running:
                    _ask_to_end(one)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                _close(one)
                done += 1
                told, why = _ended(one, bool(stop))
                if why:
                    failed[one.run.label] = why
                tell(f"[{done}/{len(plan.runs)}] {one.run.label}: {told}")
            if running:
                time.sleep(0.05)
    if stop:
        raise Stopped(
            "stopped; run the same command again, and each run goes on from its newest checkpoint",
            stop.signum or 15,
        )
    return failed


def _next(
    plan: Plan, waiting: Sequence[Run], running: Sequence[_Started], failed: dict[str, str]
) -> Run | None:
    """The first run that can start: its budget of tokens is known, or never will be."""
    for run in waiting:
        if not run.waits:
            return run
        reference = plan.reference_run(run.seed)
        if reference.label in failed:
            failed[run.label] = f"has no budget of tokens: {reference.label} failed"
            return run
        ended = all(one.run is not reference for one in running)  # its report, too, is written
        if ended and finished(reference.folder):
            run.limit(tokens_of(reference.folder))
            check_unchanged([run])
            return run
    return None


def _start(run: Run, jobs: int) -> _Started:
    with folder_made(run.folder.parent, "--out"):
        replace_text(recipe_of(run), run.config.to_yaml())
    log = log_of(run).open("ab")
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    log.write(f"--- {now}: {run.label}\n".encode())
    log.flush()
    process = Popen(
        [sys.executable, "-m", "siri_train.child_run", str(recipe_of(run)), str(run.folder)],
        stdin=PIPE,
        stdout=log,
        stderr=STDOUT,
        env=_environment(run, jobs),
        start_new_session=True,  # Ctrl-C in the terminal is for this process, which asks the others
    )
    return _Started(run, process, log)


def _environment(run: Run, jobs: int) -> dict[str, str]:
    """The environment of a child: cores are shared where the recipe does not say how many."""
    own = dict(os.environ)
    if run.config.threads is None and jobs > 1:
        own.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    return own


def _ended(one: _Started, stopping: bool) -> tuple[str, str]:
    """A line about a process that has ended, and why it failed, empty if it did not."""
    seconds = duration(time.monotonic() - one.since)
    status = one.process.returncode
    if status == 0 and finished(one.run.folder):
        return f"finished in {seconds}", ""
    if stopping:
        return f"stopped after {seconds}", ""
    how = f"ended by signal {-status}" if status < 0 else f"failed with status {status}"
    lines = log_of(one.run).read_text(encoding="utf-8", errors="replace").splitlines()
    tail = [line for line in lines if line.strip()][-_LINES:]
    why = f"{how} after {seconds}; the end of {log_of(one.run)}:"
    return "\n    ".join([why, *tail]), how


def _ask_to_end(one: _Started) -> None:
    if one.process.stdin is not None and not one.process.stdin.closed:
        one.process.stdin.close()


def _close(one: _Started) -> None:
    _ask_to_end(one)
    one.log.close()


def _kill(running: Sequence[_Started]) -> None:
    """End processes at once: this one ends without waiting."""
    for one in running:
        one.process.kill()
        one.process.wait()
        _close(one)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _flat(section: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    if not isinstance(section, dict) or not section:
        return {prefix: section} if prefix else {}
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found
