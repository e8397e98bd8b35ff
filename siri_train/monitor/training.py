"""The terminal's view of a training run: its steps, evaluations and alarms."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from siri_train.config.run import RunConfig
from siri_train.monitor.figures import evaluation_parts, figures
from siri_train.monitor.progress import Progress, say
from siri_train.monitor.run_logs import is_number
from siri_train.monitor.time_left import TimeLeft
from siri_train.schedule import LengthSchedule
from siri_train.terminal.lines import joined, log_width, terminal_width, words

_NAMED = 3


class Ongoing(Protocol):
    """An alarm that stays true."""

    @property
    def name(self) -> str:
        """As ``alarms.jsonl`` has it."""

    @property
    def since(self) -> int:
        """The step that raised it, from 0."""

    @property
    def age(self) -> int:
        """Steps since then."""


class TrainingProgress(Progress):
    """The progress of a training run.

    Args:
        config: of the run.
        schedule: of the run, as it is when the run begins or continues.
        done: steps already done.
        tokens: response tokens already sampled.
    """

    def __init__(
        self, config: RunConfig, schedule: LengthSchedule, done: int = 0, tokens: int = 0
    ) -> None:
        super().__init__(config.name, config.train.steps, done, unit="step")
        self.schedule = schedule
        # The caps of a shape that observes the run are not known before.
        self.known = schedule.kind.observe is None
        caps = _caps(schedule, config.train.steps) if self.known else None
        self.left = TimeLeft(caps, config.train.steps, config.train.max_tokens, tokens)
        fixed = self.known and not schedule.constant and config.train.max_tokens is None
        self.cycles = schedule.cycle_index(config.train.steps - 1) if fixed else None
        self._raised: set[str] = set()

    def recall(self, log: Path, evaluations: Sequence[dict[str, Any]]) -> None:
        """Take up what an interrupted run has left: for the histories and the time left.

        Args:
            log: ``metrics.jsonl`` of a run that continues.
            evaluations: of ``eval.jsonl``.
        """
        if not (self.first and log.is_file()):
            return
        rows = []
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):  # a damaged line
                row = json.loads(line)
                if isinstance(row, dict) and is_number(row.get("step")):
                    rows.append(row)
        self.left.recall(rows)
        if self.tty:
            display = self._open()
            for row in rows:
                before = [one for one in evaluations if one["step"] <= row["step"]]
                display.remember(figures(row, before[-1:]))

    def step(
        self,
        row: Mapping[str, Any],
        evaluations: Sequence[dict[str, Any]],
        found: Sequence[Mapping[str, Any]] = (),
        ongoing: Iterable[Ongoing] = (),
    ) -> None:
        """Show a step that is done.

        Args:
            row: its record in ``metrics.jsonl``.
            evaluations: all records of ``eval.jsonl``.
            found: its records in ``alarms.jsonl``.
            ongoing: the alarms that are true after it.
        """
        self.alarmed(row["step"], found)
        self.left.add(row, time.monotonic())
        left = self.left.seconds(row["step"] + 1)
        notes = [self._where(row), alarm_line(ongoing, found)]
        self.update(row["step"] + 1, notes, figures(row, evaluations), left)

    def evaluated(self, row: dict[str, Any], found: Sequence[Mapping[str, Any]] = ()) -> None:
        """Print an evaluation.

        Args:
            row: of ``eval.jsonl``.
            found: the records that it has added to ``alarms.jsonl``.
        """
        lines = []
        for name, parts in evaluation_parts(row):
            named = f"{name}: " if name else ""
            head = f"{self.label}: evaluation at step {row['step']}: {named}".rstrip()
            lines += joined(head, parts, self._width(), ", ")
        say(lines)
        self.alarmed(max(0, row["step"] - 1), found)

    def alarmed(self, step: int, found: Sequence[Mapping[str, Any]]) -> None:
        """Print alarms that are new, and those that are over, whatever else is not printed.

        Args:
            step: that raised them, from 0.
            found: its records in ``alarms.jsonl``.
        """
        lines = []
        raised = {str(one["alarm"]): one for one in found if one.get("state") in (None, "raised")}
        for name, one in raised.items():
            if name in self._raised and one.get("state") is None:
                continue  # an old row has no state: it is raised anew in every step
            text = f"{one.get('cause')}; {one.get('action')}"
            lines += words(f"{self.label}: ALARM {name} at step {step + 1}:", text, self._width())
        for one in found:
            if one.get("state") == "cleared":
                age = one.get("age")
                lines.append(f"{self.label}: alarm {one['alarm']} is over after {age} steps")
        if lines:
            say(lines)
        self._raised = set(raised)

    def _where(self, row: Mapping[str, Any]) -> str:
        phase, cycle = row.get("phase"), row.get("cycle")
        if phase in (None, "constant"):
            return "constant cap" if phase else ""
        of = f" of {self.cycles}" if self.cycles is not None else ""
        return f"{phase}, cycle {cycle}{of}"

    def _width(self) -> int:
        return terminal_width() if self.tty else log_width()


def alarm_line(ongoing: Iterable[Ongoing], found: Sequence[Mapping[str, Any]] = ()) -> str:
    """The alarms that are true, the newest first, in a line; empty if there is none.

    Args:
        ongoing: with their ages.
        found: records of ``alarms.jsonl`` of the newest step; those that ``ongoing`` lacks are new.
    """
    there = sorted(ongoing, key=lambda one: one.age)
    names = {one.name for one in there}
    new = [
        str(one["alarm"])
        for one in found
        if one["alarm"] not in names and one.get("state") in (None, "raised")
    ]
    said = [f"{name} (new)" for name in dict.fromkeys(new)]
    said += [f"{one.name} ({_age(one.age)})" for one in there]
    more = f", {len(said) - _NAMED} more" if len(said) > _NAMED else ""
    return f"alarms: {', '.join(said[:_NAMED])}{more}" if said else ""


def _age(steps: int) -> str:
    return "new" if steps == 0 else "for 1 step" if steps == 1 else f"for {steps:,} steps"


def _caps(schedule: LengthSchedule, steps: int) -> list[int]:
    if not (schedule.constant or schedule.periodic):
        return [schedule(step) for step in range(steps)]
    cycle = [schedule(step) for step in range(min(schedule.cycle, steps))]
    return (cycle * (steps // len(cycle) + 1))[:steps]
