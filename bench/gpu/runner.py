"""Runs the parts of a call one after the other within its budget."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu import environment, plan
from bench.gpu.clock import Clock
from bench.gpu.plan import Part
from bench.gpu.process import Running, Started, wait
from bench.gpu.records import Record, Records, read

Start = Callable[[Sequence[str], Mapping[str, str], Path], Running]
MOST_LOG = 15 * 2**20
PART_LOG = 2**20
WHEELS = plan.ROOT / ".whl"


@dataclass
class Call:
    """The options of a run.

    Args:
        name: "first" or "second".
        out: folder of the results.
        after: folder of the call before, for the second.
        rehearse: tiny sizes on a CPU.
        faults: "crash:PART", "hang:PART", "missing:PACKAGE", for tests.
        only: parts to run; empty: all.
        budget: seconds; 0: the call's own.
        limits: seconds of single parts, in place of the plan's.
        wheels: folder of packages to install first.
    """

    name: str
    out: Path
    after: Path | None = None
    rehearse: bool = False
    faults: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    budget: float = 0.0
    limits: dict[str, float] = field(default_factory=dict)
    wheels: Path = WHEELS

    def command(self, part: Part, seconds: float) -> list[str]:
        """The part's process."""
        command = [
            sys.executable, "-u", "-m", "bench.gpu.child", part.name, str(self.out),
            "--call", self.name, "--seconds", f"{seconds:.1f}",
        ]  # fmt: skip
        if self.after is not None:
            command += ["--after", str(self.after)]
        if self.rehearse:
            command.append("--rehearse")
        for fault in self.faults:
            command += ["--fault", fault]
        return command


class Runner:
    """One call.

    Args:
        call: what to run.
        clock: all of the runner's time.
        start: makes a process of a command, an environment and a log file.
        say: prints a line.
    """

    def __init__(
        self,
        call: Call,
        clock: Clock | None = None,
        start: Start = Started,
        say: Callable[[str], Any] = lambda line: print(line, flush=True),
    ) -> None:
        self.call, self.clock, self.start, self.say = call, clock or Clock(), start, say
        self.began = self.clock.now()
        self.budget = (call.budget or plan.BUDGETS[call.name]) - plan.MARGIN
        self.records = Records(call.out / f"{call.name}.jsonl", {"call": call.name})
        self.log = call.out / f"{call.name}.log"
        self._scratch = tempfile.TemporaryDirectory(prefix="gpu_run_")  # goes with the runner
        self.scratch = Path(self._scratch.name)
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                x for x in (str(plan.ROOT), os.environ.get("PYTHONPATH", "")) if x
            ),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",  # where a crash was
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - (self.clock.now() - self.began)

    def at(self) -> float:
        """Seconds since the call began."""
        return round(self.clock.now() - self.began, 1)

    def run(self) -> dict[str, str]:
        """Run everything; how each part ended."""
        before = [] if self.call.after is None else list(read(self.call.after))
        before += [r for r in read(self.call.out) if r.get("call") != self.call.name]
        parts = plan.order(self.call.name, before, self.call.only)
        facts = environment.facts() | {"rehearsal": self.call.rehearse}
        self.records.write("environment", at=self.at(), budget=self.budget, **facts)
        self.say(f"{self.call.name} call, {self.budget:.0f} s: {facts.get('gpu') or 'no GPU'}, "
                 f"commit {facts['commit']}, source {facts['source']}")  # fmt: skip
        if self.call.wheels.is_dir() and any(self.call.wheels.glob("*.whl")):
            self.install()
        ended: dict[str, str] = {}
        for number, part in enumerate(parts):
            later = [] if self.call.rehearse else parts[number + 1 :]
            ended[part.name] = self.part(part, later)
        self.records.write("finished", at=self.at(), ended=ended)
        return ended

    def seconds(self, part: Part, later: Sequence[Part]) -> float:
        """The limit of this part in seconds."""
        if part.name in self.call.limits:
            return min(self.call.limits[part.name], self.left())
        if self.call.rehearse:
            return min(part.rehearsal, self.left())
        return plan.limit(part, later, self.left(), self.call.name)

    def part(self, part: Part, later: Sequence[Part]) -> str:
        """Run one part; how it ended."""
        seconds = self.seconds(part, later)
        if seconds < min(plan.LEAST, self.call.limits.get(part.name, plan.LEAST)):
            why = f"{max(0.0, self.left()):.0f} s were left"
            self.records.write("end", part=part.name, at=self.at(), status="not reached", why=why)
            self.say(f"{part.name}: not reached, {why}")
            return "not reached"
        self.records.write("start", part=part.name, at=self.at(), limit=round(seconds, 1))
        begun, log = self.clock.now(), self.scratch / f"{part.name}.log"
        try:
            process = self.start(self.call.command(part, seconds), self.environment, log)
            status, why = wait(process, seconds, self.clock)
        except OSError as error:
            status, why = "failed", f"could not be started: {error}"
        mine: list[Record] = []
        for record in read(self.call.out):
            if record.get("part") == part.name and record.get("call") == self.call.name:
                mine = [] if record["what"] == "start" else [*mine, record]
        # The process writes itself why it did nothing or failed.
        reasons = [r for r in mine if r["what"] in ("missing", "error")]
        if status == "done" and reasons and reasons[-1]["what"] == "missing":
            status = "missing"
        if reasons and status in ("missing", "failed"):
            why = str(reasons[-1]["why"])
        took = round(self.clock.now() - begun, 1)
        self.records.write(
            "end", part=part.name, at=self.at(), status=status, why=why, seconds=took
        )
        text = self.keep(part, log)
        self.say(f"{part.name}: {status} after {took:.0f} s" + (f", {why}" if why else ""))
        if status in ("failed", "killed"):
            for line in text.strip().splitlines()[-8:]:
                self.say(f"    {line[:200]}")
        return status

    def keep(self, part: Part, log: Path) -> str:
        """Append the end of a part's output to the call's log; that end."""
        if not log.exists():
            return ""
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - PART_LOG))
            text = file.read().decode("utf-8", errors="replace")
        size = self.log.stat().st_size if self.log.exists() else 0
        if size + len(text.encode()) < MOST_LOG:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"===== {part.name}\n{text}\n")
        log.unlink()
        return text

    def install(self) -> None:
        """Make the wheels importable in a folder of their own, and write a record about it."""
        target = self.scratch / "site"
        wheels = sorted(str(path) for path in self.call.wheels.glob("*.whl"))
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
            "--no-compile", "--no-cache-dir", "--target", str(target), *wheels,
        ]  # fmt: skip
        log = self.scratch / "wheels.log"
        try:
            status, why = wait(self.start(command, self.environment, log), 60, self.clock)
        except (OSError, subprocess.SubprocessError) as error:
            status, why = "failed", str(error)
        if status == "done":
            known = self.environment["PYTHONPATH"]
            self.environment["PYTHONPATH"] = known + os.pathsep + str(target)
        else:
            why += ": " + (log.read_text(errors="replace")[-500:] if log.exists() else "")
        names = [Path(name).name for name in wheels]
        self.records.write("wheels", at=self.at(), status=status, why=why, wheels=names)
        self.say(f"wheels: {status} {why}")
