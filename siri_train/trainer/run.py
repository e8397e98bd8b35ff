"""A run: everything it needs loaded, and what it writes into its folder."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from siri_train import distributed
from siri_train.checkpoint import retention
from siri_train.checkpoint.manifest import write_manifest
from siri_train.checkpoint.resume import compare_with_before, resume_from, set_aside_newer
from siri_train.checkpoint.save_load import (
    checkpoints,
    load_schedule,
    load_state,
    prune,
    save_checkpoint,
    write_json,
)
from siri_train.config.run import RunConfig
from siri_train.data.sources import QuestionSampler
from siri_train.distributed import on_main
from siri_train.files import append_row, replace_text, room_needed
from siri_train.model.policy import choose_device, load_policy
from siri_train.model.same_model import require_same_model
from siri_train.monitor import alarms
from siri_train.monitor.backtrack import BacktrackCounter
from siri_train.monitor.live import figures
from siri_train.monitor.progress import Progress
from siri_train.monitor.run_logs import keep_rows, of_evaluation, of_metrics
from siri_train.monitor.trackers import Trackers
from siri_train.report import write_report
from siri_train.rollout.batch import RolloutBatch
from siri_train.rollout.build import build_engine
from siri_train.rollout.collect import questions_per_step
from siri_train.trainer.evaluate import Evaluation
from siri_train.trainer.memory_check import rehearse
from siri_train.trainer.optimizer import make_optimizer
from siri_train.trainer.preflight import model_shape, preflight
from siri_train.trainer.reference_model import open_reference, write_record
from siri_train.trainer.samples import write_samples
from siri_train.trainer.signals import Stopped, StopRequest
from siri_train.trainer.summary import summary
from siri_train.trainer.sync_probe import SyncProbe
from siri_train.trainer.verifier import build_verifier

HISTORY = 50
"""Rows of ``metrics.jsonl`` kept in memory for the alarms; all others are on the disk only."""


class AlarmHalt(RuntimeError):
    """The run stopped at an alarm because ``monitor.halt_on_alarm`` is set."""


class Run:
    """The state of one training run. Open it with :meth:`open`, use it as a context manager."""

    def __init__(
        self, config: RunConfig, resume: str = "auto", stop: StopRequest | None = None
    ) -> None:
        self.config = config
        self.stop = stop if stop is not None else StopRequest()
        self.dir = config.run_dir
        self.schedule = config.schedule.build()
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)

        source = on_main(resume_from, config, resume)
        on_main(compare_with_before, config)
        with distributed.main_first():  # a model that must be converted is, once
            checked = preflight(config)
        if source:
            shape = model_shape(config, checked.start)
            require_same_model(source, shape, checked.tokenizer, config.model.path)
            self.schedule = load_schedule(source, self.schedule)
        self.start, self.source = checked.start, source
        self.sampler = QuestionSampler(
            checked.train_questions, questions_per_step(config.rollout), config.seed
        )
        self.policy = load_policy(
            config.model,
            choose_device(config.device),
            # Checkpoints of adapters hold merged weights: these start from the base again.
            checked.start if config.model.lora else source or checked.start,
            config.distributed if distributed.active() else None,
        )
        # Before the state of the random number generators is restored.
        self.reference = open_reference(config, checked.reference, self.policy, source)
        self.optimizer = make_optimizer(self.policy.model, config.train)
        self.start_step = load_state(source, self.optimizer, self.policy.model) if source else 0
        wanted = config.train.rehearse
        if wanted == "always" or (wanted == "auto" and self.policy.device.type == "cuda"):
            rehearse(self.policy, self.optimizer, config, self.reference)
        self.counter = BacktrackCounter()
        with ExitStack() as opened:  # what is open is closed again if anything below fails
            self.verifier = opened.enter_context(closing(build_verifier(config.reward)))
            ahead = config.rollout.asynchronous and self.start_step + 1 < config.train.steps
            engine = build_engine(config, self.policy, ahead=ahead)
            self.engine = opened.enter_context(closing(engine))
            self.evaluation = Evaluation(
                config,
                checked.eval_questions,
                self.engine,
                self.policy,
                self.verifier,
                self.counter,
            )
            self.probe = SyncProbe(
                self.engine,
                self.policy,
                config,
                [question.prompt_ids for question in checked.train_questions],
            )
            self.rows, self.evals = on_main(self._prepare_folder)
            self.trackers = Trackers([])
            on_main(self._open_trackers)
            opened.callback(self.trackers.close)
            self.progress = Progress(config.name, config.train.steps, self.start_step)
            opened.callback(self.progress.close)
            self._opened = opened.pop_all()
        if self.start_step:
            print(f"{config.name}: continues from step {self.start_step} ({source})", flush=True)

    @classmethod
    def open(cls, config: RunConfig, resume: str = "auto", stop: StopRequest | None = None) -> Run:
        """Check, load and resume; nothing is written before every check has passed.

        Args:
            config: a validated configuration.
            resume: see :func:`siri_train.train.train`.
            stop: once set, evaluations are given up; None: nobody asks.

        Raises:
            ConfigError: see :func:`siri_train.trainer.preflight.preflight`; a checkpoint that does
                not exist or holds another model; or a folder that already holds a run with
                ``resume="never"``.
            WriteError: a file cannot be read or written, with the reason (a full disk, ...).
            Interrupted: ``stop`` was set meanwhile.
        """
        with room_needed(config.run_dir):
            if stop is None:
                return cls(config, resume)
            with stop.at_once():
                return cls(config, resume, stop)

    def __enter__(self) -> Run:
        try:
            self.probe.after_sync(self.config.seed)
            with room_needed(self.dir):
                self._evaluate_start()
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._opened.close()
        if isinstance(error, OSError):
            with room_needed(self.dir):
                raise error

    def _prepare_folder(self) -> tuple[deque[dict[str, Any]], list[dict[str, Any]]]:
        """Write the configuration and cut the logs back to the start; their rows until then, of
        the metrics the newest."""
        self.dir.mkdir(parents=True, exist_ok=True)
        replace_text(self.dir / "config.yaml", self.config.to_yaml())
        write_record(self.dir, self.reference, begins=self.source is None)
        set_aside_newer(self.config, self.start_step)
        start = self.start_step
        _, odd = keep_rows(self.dir / "alarms.jsonl", below=start, last=0)
        rows, more = keep_rows(
            self.dir / "metrics.jsonl", below=start, valid=of_metrics, last=HISTORY
        )
        evals, others = keep_rows(self.dir / "eval.jsonl", below=start + 1, valid=of_evaluation)
        for notice in (*odd, *more, *others):
            print(f"{self.config.name}: {notice}", flush=True)
        return deque(rows, maxlen=HISTORY), evals

    def _evaluate_start(self) -> None:
        """The evaluation of the step begun from, where it is due and not there: of a run that
        begins, or of one that was ended between a checkpoint and its evaluation."""
        start, before = self.start_step, len(self.evals)
        # Another run's checkpoint is another run's to evaluate: this one's names cannot lead to it.
        own = start in on_main(checkpoints, self.dir)
        if self._evaluation_due(start) and (own or start == 0):
            self._evaluate(start, self._named(start).get(start) if start else "start", None)
        # What would have followed that evaluation; the next checkpoint sees to it otherwise.
        if own and (len(self.evals) > before or start == self.config.train.steps):
            on_main(self._after_checkpoint, start)

    def _open_trackers(self) -> None:
        self.trackers = Trackers.open(self.config, self.start_step)

    def seed(self, step: int) -> int:
        """Of everything random in a step: a resumed run draws what this one would have."""
        return self.config.seed * 1_000_003 + step

    def backtracking(self, batch: RolloutBatch) -> float:
        """Backtracking words ("wait", "hold on") per 1000 response tokens."""
        texts = [text for group in batch.seen for text in group.texts]
        lengths = [len(c.token_ids) for group in batch.seen for c in group.completions]
        return self.counter.per_1k(texts, lengths)["backtrack_per_1k"]

    def record(self, row: dict[str, Any], raised: Sequence[dict[str, Any]] = ()) -> None:
        """Append a row to ``metrics.jsonl``, check it for alarms, show it.

        Args:
            row: see :func:`siri_train.trainer.metrics.step_metrics`.
            raised: alarms that the row does not show, without their step.
        """
        if self.schedule.kind.observe is not None:
            self.schedule.observe(on_main(dict, row))  # times differ between ranks
        raised = on_main(self._append_row, row, raised)
        names = ", ".join(alarm["alarm"] for alarm in raised)
        self.progress.update(
            row["step"] + 1, f"ALARM {names}" if names else "", figures(row, self.evals)
        )
        if raised and self.config.monitor.halt_on_alarm:
            first = raised[0]
            raise AlarmHalt(f"{first['alarm']}: {first['cause']}; {first['action']}")

    def _append_row(
        self, row: dict[str, Any], more: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        append_row(self.dir / "metrics.jsonl", row)
        self.trackers.log("train", row, row["step"] + 1)
        raised = [{"step": row["step"], **alarm} for alarm in more]
        raised += alarms.check(row, list(self.rows))
        self.rows.append(row)
        for alarm in raised:
            append_row(self.dir / "alarms.jsonl", alarm)
        return raised

    def dump_rollouts(self, batch: RolloutBatch) -> None:
        """Write some of a step's responses to ``rollouts/step_XXXXXX.jsonl``."""
        last = batch.step + 1 == self.config.train.steps
        if distributed.is_main():
            write_samples(self.dir / "rollouts", batch, self.config.monitor, last)

    def after_step(self, done: int, rollouts: dict[str, Any] | None = None) -> None:
        """Save and evaluate where the schedule or the recipe asks for it.

        What is saved anyway is saved first: nothing that happens in an evaluation, which may take
        longer than many steps, costs the steps before it. Only whether a step is the best one is
        known behind its evaluation.

        Args:
            done: steps done, counting the one that has just been recorded.
            rollouts: see :func:`siri_train.checkpoint.save_load.save_checkpoint`.

        Raises:
            Stopped: the run was asked to end while it evaluated; a checkpoint has been written,
                and the run evaluates first when it continues.
        """
        every, saved = self.config.checkpoint.every, False
        if self._is_end(done) or (every and done % every == 0):
            saved = self._write(done, rollouts)
        if self._evaluation_due(done):
            self._evaluate(done, self._named(done).get(done), rollouts)
        if not saved and on_main(self._best_step, done) == done:
            saved = self._write(done, rollouts)
        if saved:
            on_main(self._after_checkpoint, done)

    def save(self, done: int, rollouts: dict[str, Any] | None) -> Path:
        """The checkpoint after ``done`` steps, written if it is not there yet.

        Args:
            rollouts: see :func:`siri_train.checkpoint.save_load.save_checkpoint`.
        """
        if self._write(done, rollouts):
            on_main(self._after_checkpoint, done)
        return on_main(checkpoints, self.dir)[done]

    def _write(self, done: int, rollouts: dict[str, Any] | None) -> bool:
        """Write the checkpoint if it is not there yet; whether it was not."""
        if done in on_main(checkpoints, self.dir):
            return False
        save_checkpoint(self.dir, done, self.policy, self.optimizer, rollouts, self.schedule)
        return True

    def _is_end(self, done: int) -> bool:
        """Whether the run or one of its schedule's phases ends after ``done`` steps."""
        return done == self.config.train.steps or done in self._named(done)

    def _evaluation_due(self, done: int) -> bool:
        if done == 0:
            return self.config.eval.at_start
        every = self.config.eval.every
        return self._is_end(done) or bool(every and done % every == 0)

    def _after_checkpoint(self, done: int) -> None:
        self._update_manifest(done)
        prune(self.dir, self.config.checkpoint.keep_last, self._kept(done))
        write_report(self.dir)

    def finish(self) -> None:
        """Write ``summary.json`` and the report."""
        on_main(self._finish)

    def _finish(self) -> None:
        if self.start_step == self.config.train.steps:
            print(f"{self.config.name}: all {self.start_step} steps are done", flush=True)
        self._update_manifest(self.config.train.steps)
        ends, supervised = self._ends(self.config.train.steps), self.start is not None
        write_json(
            self.dir / "summary.json", summary(self.config, self.evals, ends, supervised=supervised)
        )
        print(f"{self.config.name}: report {write_report(self.dir)}", flush=True)

    def _evaluate(self, step: int, name: str | None, rollouts: dict[str, Any] | None) -> None:
        """Evaluate after ``step`` steps unless that is done; raises Stopped with all saved."""
        if any(row["step"] == step for row in self.evals):
            return
        self.progress.interrupt()
        found = self.evaluation(cancelled=lambda: bool(self.stop))
        if found is None:
            self._end_in_evaluation(step, rollouts)
            return
        row = {"step": step, "name": name, **found}
        on_main(self._append_evaluation, row)
        self.evals.append(row)
        print(
            f"{self.config.name}: evaluation at step {step}: "
            + ", ".join(
                f"{accuracy:.1%} within {budget} tokens"
                for accuracy, budget in zip(row["accuracy"], row["budgets"], strict=True)
            )
            + f", mean length {row['tokens']:.1f}",
            flush=True,
        )

    def _end_in_evaluation(self, step: int, rollouts: dict[str, Any] | None) -> None:
        signum = self.stop.agreed()
        if signum is None:
            raise AssertionError("an evaluation ended without a request to stop")
        saved = self.save(step, rollouts) if step > self.start_step else None
        raise Stopped(
            f"{self.config.name}: stopped before step {step}, in an evaluation"
            + (f", {saved} holds everything until then" if saved else "")
            + "; run the same command again to continue",
            signum,
        )

    def _append_evaluation(self, row: dict[str, Any]) -> None:
        append_row(self.dir / "eval.jsonl", row)
        self.trackers.log("eval", row, row["step"])

    def _ends(self, done: int) -> list[dict[str, Any]]:
        """The cycle ends reached after ``done`` steps that have been evaluated, in order."""
        rows = {row["step"]: row for row in self.evals}
        return [
            {
                "which": which,
                "cycle": self.schedule.cycle_index(
                    step - 1 - (self.config.checkpoint.lag if which.endswith("lagged") else 0)
                ),
                "step": step,
                "path": f"checkpoints/step_{step:06d}",
                "accuracy": rows[step]["accuracy"][-1],
                "tokens": rows[step]["tokens"],
            }
            for step, which in sorted(self._named(done).items())
            if step in rows
        ]

    def _named(self, done: int) -> dict[int, str]:
        return retention.ends(self.schedule, done, self.config.checkpoint.lag)

    def _best(self, done: int) -> dict[str, Any] | None:
        """The best evaluation of what is saved, or, after ``done`` steps, could be now."""
        available = {*checkpoints(self.dir), done} - {0}
        return retention.best(self.evals, self.config.checkpoint.best, available)

    def _best_step(self, done: int) -> int | None:
        row = self._best(done)
        return row["step"] if row else None

    def _update_manifest(self, done: int) -> None:
        write_manifest(self.dir, self._ends(done), self._best(done))

    def _kept(self, done: int) -> set[int]:
        kept = {*self._named(done), self.config.train.steps, self._best_step(done)}
        return {step for step in kept if step is not None}
