"""Writes the files of a run's folder besides checkpoints: logs, manifest, summary, report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from siri_train import distributed
from siri_train.checkpoint import measured, retention
from siri_train.checkpoint.manifest import write_manifest
from siri_train.checkpoint.resume import set_aside_newer
from siri_train.checkpoint.save_load import checkpoints, prune, write_json
from siri_train.config.run import RunConfig
from siri_train.distributed import on_main
from siri_train.files import append_record, replace_text
from siri_train.monitor import alarms
from siri_train.monitor.alarms.history import MOST_ROWS, READ_AGAIN, kept
from siri_train.monitor.alarms.state import AlarmState
from siri_train.monitor.backtrack import WordCounter
from siri_train.monitor.progress import say
from siri_train.monitor.question_records import FILE as QUESTIONS
from siri_train.monitor.question_records import QuestionRecord, of_questions
from siri_train.monitor.run_logs import keep_records, of_evaluation, of_metrics, reported
from siri_train.monitor.trackers import Trackers
from siri_train.report import changes, summary_table, write_report
from siri_train.rollout.batch import RolloutBatch
from siri_train.schedule import LengthSchedule
from siri_train.terminal.lines import terminal_width, words
from siri_train.trainer.alarmed import Alarmed
from siri_train.trainer.reference_model import Reference, write_record
from siri_train.trainer.run_end import RunEnd
from siri_train.trainer.samples import write_samples
from siri_train.trainer.summary import summary


class RunFolder:
    """The files of one run. Rank 0 writes; every rank must call every method.

    Args:
        config: of the run.
        schedule: of the run.
        end: the steps done and whether the run ends after them.

    Attributes:
        rows: on rank 0, of the newest records of ``metrics.jsonl``, what the alarms read; at most
            :data:`siri_train.monitor.alarms.history.MOST_ROWS` of them.
        alarms: on rank 0 the alarms that are on.
        evals: on every rank all records of ``eval.jsonl``.
    """

    def __init__(self, config: RunConfig, schedule: LengthSchedule, end: RunEnd) -> None:
        self.config, self.dir, self.start_step = config, config.run_dir, end.done
        self.end = end
        self.schedule = schedule
        self.rows: list[dict[str, Any]] = []
        self.alarms = AlarmState()
        self.evals: list[dict[str, Any]] = []
        self.trackers = Trackers([])

    def prepare(self, reference: Reference | None, begins: bool) -> None:
        """Write the configuration and remove from the logs what a resumed run writes again.

        Args:
            reference: the run's reference model, if it has one.
            begins: whether the run begins; else it continues from a checkpoint.

        Raises:
            OSError: a file cannot be written.
            ConfigError: a tracker that cannot be opened.
        """
        self.evals = on_main(self._prepare, reference, begins)
        on_main(self._open_trackers)

    def close(self) -> None:
        """Close the trackers."""
        self.trackers.close()

    def append_metrics(self, row: dict[str, Any], raised: Sequence[dict[str, Any]] = ()) -> Alarmed:
        """Append a step to ``metrics.jsonl`` and what it raises to ``alarms.jsonl``.

        Args:
            row: see :func:`siri_train.trainer.metrics.step_metrics`.
            raised: alarms that the row does not show, without their step.

        Returns:
            What it did to the alarms.
        """
        return on_main(self._append_metrics, row, raised)

    def append_evaluation(
        self, row: dict[str, Any], records: Sequence[QuestionRecord] = ()
    ) -> Alarmed:
        """Append to ``eval.jsonl``, and what it is made of to ``eval_questions.jsonl``.

        Args:
            row: the record of ``eval.jsonl``.
            records: the same evaluation question by question; the row's step becomes theirs.

        Returns:
            What it did to the alarms.
        """
        alarmed = on_main(self._append_evaluation, row, records)
        self.evals.append(row)
        return alarmed

    def evaluated(self, step: int) -> bool:
        """Whether there is an evaluation after ``step`` steps."""
        return any(row["step"] == step for row in self.evals)

    def write_samples(self, batch: RolloutBatch, words: WordCounter) -> None:
        """Write some of a step's responses to ``rollouts/step_XXXXXX.jsonl``, words marked."""
        if distributed.is_main():
            write_samples(self.dir / "rollouts", batch, self.config.monitor, words, self.end.over)

    def after_checkpoint(self, done: int) -> None:
        """Name the checkpoint in the manifest, delete old ones, write the report."""
        on_main(self._after_checkpoint, done)

    def finish(self, supervised: bool) -> None:
        """Write ``summary.json`` and the report.

        Args:
            supervised: whether the run began from its supervised stage.
        """
        on_main(self._finish, supervised)

    def phase_ends(self, done: int) -> dict[int, tuple[str, ...]]:
        """The ends of phases reached after ``done`` steps: their names by step."""
        lag = self.config.checkpoint.lag
        steps = self.end.done if self.end.over else self.config.train.steps
        return retention.ends(self.schedule, done, lag, steps)

    def end_name(self, done: int) -> str | None:
        """The name of the step in ``eval.jsonl``: of two the end's own; None if it has none."""
        return self.phase_ends(done).get(done, (None,))[0]

    def is_end(self, done: int) -> bool:
        """Whether the run or one of its schedule's phases ends after ``done`` steps."""
        return self.end.over or done in self.phase_ends(done)

    def best_step(self, done: int) -> int | None:
        """The step with the best evaluation of those that are saved, or just done."""
        return on_main(self._best_step, done)

    def is_turn(self, done: int) -> bool:
        """Whether the length turns after ``done`` steps, by the evaluations until then."""
        return any(step == done for _, _, step in on_main(self._turns, done))

    def _prepare(self, reference: Reference | None, begins: bool) -> list[dict[str, Any]]:
        self.dir.mkdir(parents=True, exist_ok=True)
        replace_text(self.dir / "config.yaml", self.config.to_yaml())
        write_record(self.dir, reference, begins=begins)
        set_aside_newer(self.config, self.start_step)
        start = self.start_step
        raised, odd = keep_records(self.dir / "alarms.jsonl", below=start)
        rows, more = keep_records(
            self.dir / "metrics.jsonl", below=start, valid=of_metrics, last=READ_AGAIN
        )
        evals, others = keep_records(self.dir / "eval.jsonl", below=start + 1, valid=of_evaluation)
        self._rename(evals)
        _, wrong = keep_records(
            self.dir / QUESTIONS,
            below=start + 1,
            valid=of_questions,
            last=0,
            of_steps={row["step"] for row in evals},
        )
        for notice in (*odd, *more, *others, *wrong):
            print(f"{self.config.name}: {notice}", flush=True)
        self.rows = [kept(row) for row in rows[-MOST_ROWS:]]
        limits = self.config.monitor.alarms
        self.alarms = AlarmState.resumed(raised, start, rows, evals, limits)
        if on := [f"{one.name} (since step {one.since})" for one in self.alarms.ongoing()]:
            print(f"{self.config.name}: alarms that are on: {', '.join(on)}", flush=True)
        return evals

    def _rename(self, evals: list[dict[str, Any]]) -> None:
        """Correct names in ``eval.jsonl``: with more steps an end of the run is none any more."""
        before = [row.get("name") for row in evals]
        for row in evals:
            if row["step"]:
                row["name"] = self.phase_ends(self.start_step).get(row["step"], (None,))[0]
        if before != [row.get("name") for row in evals]:
            text = "".join(json.dumps(row) + "\n" for row in evals)
            replace_text(self.dir / "eval.jsonl", text)

    def _open_trackers(self) -> None:
        self.trackers = Trackers.open(self.config, self.start_step)

    def _append_metrics(self, row: dict[str, Any], raised: Sequence[dict[str, Any]]) -> Alarmed:
        append_record(self.dir / "metrics.jsonl", row)
        self.trackers.log("train", row, row["step"] + 1)
        found = [{"step": row["step"], **alarm} for alarm in raised]
        found += alarms.check(row, self.rows, self.config.monitor.alarms, self.evals)
        self.rows.append(kept(row))
        del self.rows[:-MOST_ROWS]
        return self._alarmed(row["step"], found)

    def _append_evaluation(self, row: dict[str, Any], records: Sequence[QuestionRecord]) -> Alarmed:
        # First: if the run is killed before the row is there, it evaluates again, removes these
        # records, and finds the alarms as they are.
        for record in records:
            append_record(self.dir / QUESTIONS, replace(record, step=row["step"]).row())
        found = alarms.check_evaluation(row, self.evals, self.config.monitor.alarms, self.rows)
        alarmed = self._alarmed(max(0, row["step"] - 1), found, on="evaluation")
        append_record(self.dir / "eval.jsonl", row)
        self.trackers.log("eval", row, row["step"])
        return alarmed

    def _alarmed(
        self, step: int, found: Sequence[dict[str, Any]], on: Literal["step", "evaluation"] = "step"
    ) -> Alarmed:
        rows = self.alarms.update(step, found, on)
        for row in rows:
            append_record(self.dir / "alarms.jsonl", row)
        self.trackers.log_alarms(rows, self.alarms.ongoing(), step + 1)
        monitor = self.config.monitor
        halts = [a for a in found if monitor.halt_on_alarm or a["alarm"] in monitor.halt_on]
        return Alarmed(rows, halts[0] if halts else None)

    def _after_checkpoint(self, done: int) -> None:
        self._update_manifest(done)
        kept = {*self.phase_ends(done), done if self.end.over else None, self._best_step(done)}
        kept |= {step for _, _, step in self._turns(done)}
        protected = {step for step in kept if step is not None}
        prune(self.dir, self.config.checkpoint.keep_last, protected)
        write_report(self.dir)

    def _finish(self, supervised: bool) -> None:
        steps, train = self.end.done, self.config.train
        if steps < train.steps:
            print(
                f"{self.config.name}: ends after {steps} steps: {self.end.tokens} response tokens "
                f"have been sampled, train.max_tokens is {train.max_tokens}",
                flush=True,
            )
        elif self.start_step == steps:
            print(f"{self.config.name}: all {steps} steps are done", flush=True)
        self._update_manifest(steps)
        ends = self._ends(steps)
        entries = summary(self.config, self.evals, ends, done=steps, supervised=supervised)
        write_json(self.dir / "summary.json", entries)
        width = terminal_width()
        said = [line for text in changes(entries) for line in words("", text, width)]
        say(["", summary_table(entries, width), "", *said, ""])
        print(f"{self.config.name}: report {write_report(self.dir)}", flush=True)

    def _ends(self, done: int) -> list[dict[str, Any]]:
        """The cycle ends reached after ``done`` steps that have been evaluated, in order."""
        lag = self.config.checkpoint.lag
        named = [
            (step, which, step - (lag if which.endswith("lagged") else 0))
            for step, names in self.phase_ends(done).items()
            for which in names
        ]
        named += [(step, which, end) for which, end, step in self._turns(done)]
        rows = {row["step"]: row for row in self.evals}
        return [
            {
                "which": which,
                "cycle": self.schedule.cycle_index(end - 1),
                "step": step,
                "path": f"checkpoints/step_{step:06d}",
                "accuracy": reported(rows[step])["accuracy"][-1],
                "tokens": reported(rows[step])["tokens"],
            }
            for step, which, end in sorted(named, key=lambda one: one[0])
            if step in rows
        ]

    def _turns(self, done: int) -> list[tuple[str, int, int]]:
        available = {*checkpoints(self.dir), done} - {0}
        window = self.config.checkpoint.lag_window
        return measured.turns(self.schedule, self.evals, done, window, available)

    def _best(self, done: int) -> dict[str, Any] | None:
        available = {*checkpoints(self.dir), done} - {0}
        return retention.best(self.evals, self.config.checkpoint.best, available)

    def _best_step(self, done: int) -> int | None:
        row = self._best(done)
        return row["step"] if row else None

    def _update_manifest(self, done: int) -> None:
        best = self._best(done)
        write_manifest(self.dir, self._ends(done), reported(best) if best else None)
