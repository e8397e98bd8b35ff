"""A run: everything it needs loaded, and what happens around its steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from siri_kernels.policy_loss import compile_loop
from siri_train import distributed
from siri_train.checkpoint.resume import compare_with_before, resume_from
from siri_train.checkpoint.save_load import (
    checkpoints,
    load_memory,
    load_schedule,
    load_state,
    save_checkpoint,
)
from siri_train.config.run import RunConfig
from siri_train.data.sources import QuestionSampler
from siri_train.distributed import on_main
from siri_train.files import room_needed
from siri_train.model.packing import Sample
from siri_train.model.policy import choose_device, load_policy
from siri_train.model.same_model import require_same_model
from siri_train.monitor.token_groups import Rates, TokenGroups
from siri_train.monitor.training import TrainingProgress
from siri_train.rollout.batch import RolloutBatch
from siri_train.rollout.build import build_engine
from siri_train.rollout.collect import Collector, questions_per_step
from siri_train.trainer.alarmed import Alarmed
from siri_train.trainer.evaluate import Evaluation
from siri_train.trainer.grader import Grader
from siri_train.trainer.memory_check import rehearse
from siri_train.trainer.metrics import step_metrics
from siri_train.trainer.optimizer import make_optimizer
from siri_train.trainer.prefetch import Rollouts
from siri_train.trainer.preflight import Checked, model_config, preflight
from siri_train.trainer.question_memory import QuestionMemory
from siri_train.trainer.reference_model import open_reference
from siri_train.trainer.response_form import response_form
from siri_train.trainer.run_end import RunEnd
from siri_train.trainer.run_folder import RunFolder
from siri_train.trainer.sas import METRIC, select_steps
from siri_train.trainer.signals import Stopped, StopRequest
from siri_train.trainer.sync_probe import SyncProbe
from siri_train.trainer.update import UpdateStats
from siri_train.trainer.verifier import build_verifier


class Run:
    """The state of one training run. Open it with :meth:`open`, use it as a context manager.

    Args:
        config: a validated configuration.
        resume: see :func:`siri_train.train.train`.
        stop: once set, sampling and evaluations end; None: never set.
    """

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
        with distributed.main_first():  # rank 0 alone converts a model that must be converted
            checked = preflight(config)
        if choose_device(config.device).type == "cpu":
            compile_loop()  # in the background; a run that is resumed has the same loss to the bit
        if source:
            model = model_config(config, checked.start)
            require_same_model(source, model, checked.tokenizer, config.model.path)
            self.schedule = load_schedule(source, self.schedule)
        self.memory = QuestionMemory(config.reward, self.schedule)
        self.start, self.source = checked.start, source
        self.questions = QuestionSampler(
            checked.train_questions, questions_per_step(config.rollout), config.seed
        )
        self.policy = load_policy(
            config.model,
            choose_device(config.device),
            # Checkpoints of adapters hold merged weights: these start from the base again.
            checked.start if config.model.lora else source or checked.start,
            config.distributed if distributed.active() else None,
            train=config.train,
        )
        # Before the state of the random number generators is restored.
        self.reference = open_reference(config, checked.reference, self.policy, source)
        self.optimizer = make_optimizer(self.policy.model, config.train)
        self.start_step = load_state(source, self.optimizer, self.policy.model) if source else 0
        self.end = RunEnd.resumed(config.train, source)
        wanted = config.train.rehearse
        if wanted == "always" or (wanted == "auto" and self.policy.device.type == "cuda"):
            rehearse(self.policy, self.optimizer, config, self.reference)
        self.words = TokenGroups(self.policy.tokenizer, config.monitor.token_groups)
        self.folder = RunFolder(config, self.schedule, self.end)
        with ExitStack() as opened:  # what is open is closed again if anything below fails
            self._open_sampling(checked, opened)
            self.folder.prepare(self.reference, begins=source is None)
            opened.callback(self.folder.close)
            tokens = self.end.tokens
            self.progress = TrainingProgress(config, self.schedule, self.start_step, tokens)
            opened.callback(self.progress.close)
            self.progress.recall(self.dir / "metrics.jsonl", self.folder.evals)
            self._opened = opened.pop_all()
        if self.start_step:
            print(f"{config.name}: continues from step {self.start_step} ({source})", flush=True)

    def _open_sampling(self, checked: Checked, opened: ExitStack) -> None:
        """Whatever samples or grades: engine, verifier, rollouts, evaluation, sync probe."""
        config, policy = self.config, self.policy
        self.verifier = opened.enter_context(closing(build_verifier(config.reward)))
        ahead = config.rollout.asynchronous and self.start_step + 1 < config.train.steps
        self.engine = opened.enter_context(closing(build_engine(config, policy, ahead=ahead)))
        size = config.rollout.group_size
        reward = (self.verifier, config.reward, size, self.schedule, self.memory, config.loss)
        collect = Collector(
            self.engine,
            config.rollout,
            policy.eos_ids,
            policy.decode,
            Grader(policy.tokenizer, *reward),
            lambda done, total: self.progress.status(f"sampled {done}/{total}"),
        )
        self.rollouts = Rollouts(
            config,
            collect,
            self.schedule,
            self.questions,
            self.seed,
            self.stop,
            self.end,
            self.end_if_asked,
            self.memory,
        )
        if self.source is not None:
            self.rollouts.restore(self.source, self.start_step)
            ahead_of = self.start_step + (self.rollouts.next is not None)
            self.memory.restore(load_memory(self.source), ahead_of, config.name)
        self.evaluation = Evaluation(
            config, checked.eval_questions, self.engine, policy, self.verifier, self.words
        )
        prompts = [question.prompt_ids for question in checked.train_questions]
        self.probe = SyncProbe(self.engine, policy, config, prompts)

    @classmethod
    def open(cls, config: RunConfig, resume: str = "auto", stop: StopRequest | None = None) -> Run:
        """Check, load and resume; nothing is written before every check has passed.

        Args:
            config: a validated configuration.
            resume: see :func:`siri_train.train.train`.
            stop: see :class:`Run`.

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

    def seed(self, step: int) -> int:
        """The seed of everything random in a step, the same for a resumed run."""
        return self.config.seed * 1_000_003 + step

    def steps(self) -> Iterator[int]:
        """The steps that are left, each after the one before has been recorded."""
        while not self.end.over:
            yield self.end.done

    def sync_engine(self, step: int) -> float | None:
        """Hand the weights of ``step`` to the engine and probe it.

        Returns:
            What :meth:`siri_train.trainer.sync_probe.SyncProbe.after_sync` found.
        """
        self.engine.sync()
        return self.probe.after_sync(self.seed(step))

    def select_steps(
        self, batch: RolloutBatch, samples: Sequence[Sample]
    ) -> dict[str, float | None]:
        """Take the advantage from the tokens that ``advantage.sas`` chooses.

        Args:
            batch: the responses of the step, graded.
            samples: the same responses, with their advantages.

        Returns:
            The metric of it by name; nothing where the recipe does not ask for it.
        """
        sas = self.config.advantage.sas
        if sas is None:
            return {}
        rights = [grade.right for group in batch.groups for grade in group.grades]
        phase = self.schedule.phase(batch.step)
        return {METRIC: select_steps(samples, rights, self.policy.decode, sas, phase)}

    def finish_step(
        self, batch: RolloutBatch, stats: UpdateStats, seconds: float, probed: float | None
    ) -> None:
        """Record a step, then save and evaluate where the schedule or the recipe asks for it.

        Args:
            batch: the responses of the step, graded.
            stats: of its updates.
            seconds: the updates took, with the engine's sync.
            probed: what the sync probe found.

        Raises:
            AlarmHalt: an alarm that the run stops at.
            Stopped: see :meth:`after_step`.
        """
        token_groups, backtrack = self._words(batch)
        row = step_metrics(
            step=batch.step,
            schedule=self.schedule,
            batch=batch,
            stats=stats,
            lr=self.optimizer.param_groups[0]["lr"],
            backtrack_per_1k=backtrack,
            form=response_form(batch, self.config.reward.think),
            time_train=seconds,
            token_groups=token_groups,
            probe_logprob_diff=probed,
        )
        self.end.add(batch)
        self.record(row, batch.alarms(self.config.monitor.alarms))
        self.folder.write_samples(batch, self.words.text)
        self.after_step(batch.step + 1, self.rollouts.state())

    def record(self, row: dict[str, Any], raised: Sequence[dict[str, Any]] = ()) -> None:
        """Append a record to ``metrics.jsonl``, check it for alarms, show it.

        Args:
            row: see :func:`siri_train.trainer.metrics.step_metrics`.
            raised: alarms that the row does not show, without their step.

        Raises:
            AlarmHalt: an alarm that the run stops at.
        """
        if self.schedule.kind.observe is not None:
            self.schedule.observe(on_main(dict, row))  # times differ between ranks
        alarmed = self.folder.append_metrics(row, raised)
        self.progress.step(row, self.folder.evals, alarmed.rows, self.folder.alarms.ongoing())
        alarmed.halt()

    def after_step(self, done: int, rollouts: dict[str, Any] | None = None) -> None:
        """Save and evaluate where the schedule or the recipe asks for it.

        A checkpoint that is due is written before the evaluation, which may take longer than many
        steps: whatever happens in it, those steps are saved. Only whether a step is the best one
        is known after its evaluation.

        Args:
            done: steps done, counting the one that has just been recorded.
            rollouts: see :func:`siri_train.checkpoint.save_load.save_checkpoint`.

        Raises:
            Stopped: the run was asked to end while it evaluated; a checkpoint has been written,
                and the run evaluates first when it continues.
            AlarmHalt: the evaluation raised an alarm that the run stops at.
        """
        every, saved = self.config.checkpoint.every, False
        alarmed = Alarmed()
        if self.folder.is_end(done) or (every and done % every == 0):
            saved = self._write(done, rollouts)
        if self._evaluation_due(done):
            alarmed = self._evaluate(done, self.folder.end_name(done), rollouts)
        if not saved and (self.folder.best_step(done) == done or self.folder.is_turn(done)):
            saved = self._write(done, rollouts)
        if saved:
            self.folder.after_checkpoint(done)
        alarmed.halt()

    def end_if_asked(self, step: int, rollouts: dict[str, Any] | None, where: str = "") -> None:
        """End the run before ``step`` if a signal asked for it; every rank must call it.

        Args:
            step: the next one.
            rollouts: see :func:`siri_train.checkpoint.save_load.save_checkpoint`.
            where: put behind the step in the message.

        Raises:
            Stopped: it was asked; a checkpoint holds everything done.
        """
        signum = self.stop.agreed()
        if signum is None:
            return
        saved = self._save(step, rollouts) if step > self.start_step else None
        raise Stopped(
            f"{self.config.name}: stopped before step {step}{where}"
            + (f", {saved} holds everything until then" if saved else "")
            + "; run the same command again to continue",
            signum,
        )

    def finish(self) -> None:
        """Write ``summary.json`` and the report."""
        self.folder.finish(supervised=self.start is not None)

    def _words(self, batch: RolloutBatch) -> tuple[Rates, float]:
        """Groups of words per 1000 response tokens, and those of ``backtrack_per_1k``."""
        responses = [c.token_ids for group in batch.seen for c in group.completions]
        rights = [grade.right for group in batch.seen for grade in group.grades]
        counts = self.words.counts(responses)
        return self.words.rates(counts, [len(ids) for ids in responses], rights)

    def _save(self, done: int, rollouts: dict[str, Any] | None) -> Path:
        """The checkpoint after ``done`` steps, written if it is not there yet."""
        if self._write(done, rollouts):
            self.folder.after_checkpoint(done)
        return on_main(checkpoints, self.dir)[done]

    def _write(self, done: int, rollouts: dict[str, Any] | None) -> bool:
        """Write the checkpoint if it is not there yet; returns whether it was written."""
        if done in on_main(checkpoints, self.dir):
            return False
        state = rollouts, self.schedule, self.memory.state(), self.end.tokens
        save_checkpoint(self.dir, done, self.policy, self.optimizer, *state)
        return True

    def _evaluation_due(self, done: int) -> bool:
        if done == 0:
            return self.config.eval.at_start
        every = self.config.eval.every
        return self.folder.is_end(done) or bool(every and done % every == 0)

    def _evaluate_start(self) -> None:
        """Evaluate the weights the run starts from, where that is due and has not been done.

        Raises AlarmHalt as :meth:`after_step` does.

        They are those of a run that begins, or of one that ended between a checkpoint and its
        evaluation.
        """
        start, before = self.start_step, len(self.folder.evals)
        alarmed = Alarmed()
        # Another run's checkpoint is not evaluated here: this run's names cannot point to it.
        own = start in on_main(checkpoints, self.dir)
        if self._evaluation_due(start) and (own or start == 0):
            name = self.folder.end_name(start) if start else "start"
            alarmed = self._evaluate(start, name, None)
        # The interrupted run did not get to this; otherwise the next checkpoint does it.
        if own and (len(self.folder.evals) > before or self.end.over):
            self.folder.after_checkpoint(start)
        alarmed.halt()

    def _evaluate(self, step: int, name: str | None, rollouts: dict[str, Any] | None) -> Alarmed:
        """Evaluate after ``step`` steps unless that is done; raises Stopped with all saved.

        Returns:
            What it did to the alarms; nothing where it was done before.
        """
        if self.folder.evaluated(step):
            return Alarmed()
        found = self.evaluation(cancelled=lambda: bool(self.stop))
        if found is None:
            self.end_if_asked(step, rollouts, ", in an evaluation")
            raise AssertionError("an evaluation ended without a request to stop")
        row = {"step": step, "name": name, **found.row}
        alarmed = self.folder.append_evaluation(row, found.records)
        self.progress.evaluated(row, alarmed.rows)
        return alarmed
