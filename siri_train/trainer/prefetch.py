"""The batches of a run's steps, in order. The next one may be sampled while this one trains."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from siri_train.checkpoint.save_load import load_rollouts
from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig
from siri_train.data.sources import QuestionSampler
from siri_train.rewards import REWARDS
from siri_train.rewards.functions import DEFAULT
from siri_train.rollout.batch import RolloutBatch, fingerprint, from_state, to_state
from siri_train.rollout.collect import Collector
from siri_train.schedule import LengthSchedule
from siri_train.trainer.question_memory import QuestionMemory
from siri_train.trainer.run_end import RunEnd
from siri_train.trainer.signals import StopRequest


class Rollouts:
    """A call gives a step's batch. Use it as a context manager.

    With ``rollout.asynchronous`` the batch of step t + 1 is sampled in a thread while step t is
    trained on: from the weights before that update, with the cap of step t + 1. Batch 0, and the
    first after a change of settings, come from the weights they are trained on.

    Args:
        config: the recipe.
        collect: samples one step's responses.
        schedule: the cap of each step.
        questions: the questions of each step.
        seed: the seed of each step.
        stop: once set, sampling ends.
        run_end: when the run ends; nothing is sampled ahead beyond it.
        end: called with (step, :meth:`state`) before every step and where sampling was ended;
            raises Stopped if the run was asked to stop.
        memory: what the reward function knows of questions; every batch that is graded adds to it.
    """

    def __init__(
        self,
        config: RunConfig,
        collect: Collector,
        schedule: LengthSchedule,
        questions: QuestionSampler,
        seed: Callable[[int], int],
        stop: StopRequest,
        run_end: RunEnd,
        end: Callable[[int, dict[str, Any] | None], None],
        memory: QuestionMemory,
    ) -> None:
        self.config, self.collect, self.questions = config, collect, questions
        self.schedule, self.seed = schedule, seed
        self.stop, self.run_end, self.end, self.memory = stop, run_end, end, memory
        self.next: RolloutBatch | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._closing = False

    def __enter__(self) -> Rollouts:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        if self._thread is not None:
            self._thread.join()

    def __call__(self, step: int) -> RolloutBatch:
        """The responses of ``step``. Afterwards the engine sleeps, or begins the next batch.

        Args:
            step: from 0, one after the other.

        Raises:
            Stopped: the run was asked to end; a checkpoint of what is done has been written.
            EngineError: see :class:`Collector`.
        """
        self.end(step, self.state())
        batch, self.next = self.next, None
        if batch is None:
            batch = self._sample(step, cancelled=lambda: bool(self.stop))
        if batch is None:
            self.end(step, None)
            raise AssertionError("sampling ended without a request to stop")
        if not self.config.rollout.asynchronous:
            self.collect.engine.sleep()
        elif not self.run_end.is_last(batch):
            self._thread = threading.Thread(target=self._ahead, args=(step + 1,), daemon=True)
            self._thread.start()
        return batch

    def grade(self, batch: RolloutBatch) -> Tensor:
        """Grade the responses of a batch; every rank must call it.

        Dynamic sampling has graded them to pick groups, and a batch that was sampled ahead was
        graded in its thread. What is graded stays as it is.

        Args:
            batch: as :meth:`__call__` gave it.

        Returns:
            [B] float32, the rewards of the groups that are trained on; NaN where a response could
            not be scored.
        """
        self.collect.grade_groups(batch.seen, batch.step, batch.cap)
        self.memory.add(batch)
        return batch.rewards

    def wait(self) -> None:
        """Wait for the batch that is being sampled ahead.

        Raises:
            EngineError: see :class:`Collector`; or whatever else went wrong in its thread.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error

    def state(self) -> dict[str, Any] | None:
        """The state for a checkpoint besides weights and optimiser: a batch sampled ahead."""
        if self.next is None:
            return None
        return {"sampled_with": self._fingerprint(self.next.step), "batch": to_state(self.next)}

    def restore(self, source: Path, step: int) -> None:
        """Take the batch of ``step`` from a checkpoint that holds it.

        A batch that was sampled with other settings is left out, with a line that says so.

        Args:
            source: the checkpoint.
            step: the next one.

        Raises:
            ConfigError: the file cannot be read.
        """
        state = load_rollouts(source) if self.config.rollout.asynchronous else None
        if state is None or self.run_end.over:
            return
        if state["sampled_with"] != self._fingerprint(step):
            print(
                f"{self.config.name}: the batch of step {step} that {source} holds was "
                "sampled with other settings; it is sampled anew",
                flush=True,
            )
            return
        try:
            self.next = from_state(state["batch"], self.questions(step), self.collect.decode)
        except Exception as error:  # a damaged file can lead to any exception
            path = f"{source}/rollouts.pt"
            raise ConfigError(f"{path}: cannot be resumed from: {error!r}") from error

    def _fingerprint(self, step: int) -> dict[str, Any]:
        reward = self.config.reward
        settings = fingerprint(step, self.schedule(step), self.config.rollout, self.questions(step))
        if reward.function != DEFAULT:  # older checkpoints name none
            settings["reward"] = {"function": reward.function, "options": reward.options}
        usual = type(reward)()
        for key in ("verifier", "think", "truncated"):  # the saved batch is graded
            if getattr(reward, key) != getattr(usual, key):
                settings[key] = getattr(reward, key)
        if REWARDS[reward.function].shape is not None:
            settings["phase"] = self.schedule.phase(step)
            settings["shortest"] = self.schedule.min_len
        own = self.config.loss.own(self.schedule.phase(step))
        if own.ramp is not None:
            settings["overlong"] = list(own.ramp)
        if own.dynamic_sampling is False:
            settings["dynamic_sampling"] = False
        return settings

    def _sample(self, step: int, **options: Any) -> RolloutBatch | None:
        own = self.config.loss.own(self.schedule.phase(step))
        batch = self.collect(
            step,
            self.schedule(step),
            self.questions(step),
            self.seed(step),
            dynamic=own.dynamic_sampling is not False,
            **options,
        )
        if batch is not None and self.config.rollout.asynchronous:
            self.grade(batch)  # before another thread grades the next batch, beside the update
        return batch

    def _ahead(self, step: int) -> None:
        try:
            # A stop does not end it: the weights it samples from are gone when the run continues.
            # Nor may the engine take the weights again: they are being updated.
            self.next = self._sample(step, cancelled=lambda: self._closing, resync=False)
        except BaseException as error:  # wait() raises it in the thread that trains
            self._error = error
