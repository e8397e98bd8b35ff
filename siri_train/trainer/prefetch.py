"""The batches of a run's steps, in order: beside the update if asked to, resumable, stoppable."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from siri_train.checkpoint.save_load import load_rollouts
from siri_train.config.base import ConfigError
from siri_train.model.think_marks import thinking
from siri_train.rewards import Grade, Response, grade_responses
from siri_train.rewards.functions import DEFAULT
from siri_train.rollout.batch import RolloutBatch, fingerprint, from_state, to_state
from siri_train.rollout.collect import Collector
from siri_train.trainer.signals import Stopped, StopRequest

if TYPE_CHECKING:
    from siri_train.trainer.run import Run


class Rollouts:
    """Calls give the steps' batches. Use it as a context manager.

    With ``rollout.asynchronous`` the batch of step t + 1 is sampled in a thread while step t is
    trained on: from the weights before that update, with the cap of step t + 1. Batch 0, and the
    first after a change of settings, come from the weights they are trained on.

    Args:
        run: the run they belong to.
        stop: once set, the run ends before the next step, with a checkpoint.
    """

    def __init__(self, run: Run, stop: StopRequest) -> None:
        self.run, self.stop = run, stop
        self.config = run.config
        self.collect = Collector(
            run.engine,
            run.config.rollout,
            run.policy.eos_ids,
            run.policy.decode,
            partial(self._grade, step=None, cap=None),
            lambda done, total: run.progress.status(f"sampled {done}/{total}"),
        )
        self.next: RolloutBatch | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._closing = False
        if self.config.rollout.asynchronous and run.source is not None:
            self._restore(load_rollouts(run.source))

    def __enter__(self) -> Rollouts:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        if self._thread is not None:
            self._thread.join()

    def __call__(self, step: int) -> RolloutBatch:
        """The batch of ``step``; the engine then sleeps, or asynchronous begins the next one.

        Raises:
            Stopped: the run was asked to end; a checkpoint of what is done has been written.
            EngineError: see :class:`Collector`.
        """
        self._end_if_asked(step)
        batch, self.next = self.next, None
        if batch is None:
            batch = self._sample(step, cancelled=lambda: bool(self.stop))
        if batch is None:
            self._end_if_asked(step)
            raise AssertionError("sampling ended without a request to stop")
        if not self.config.rollout.asynchronous:
            self.run.engine.sleep()
        elif step + 1 < self.config.train.steps:
            self._thread = threading.Thread(target=self._ahead, args=(step + 1,), daemon=True)
            self._thread.start()
        return batch

    def wait(self) -> None:
        """Wait for the batch begun beside the update; raises what went wrong with it."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint must hold besides weights and optimiser: a batch sampled ahead."""
        if self.next is None:
            return None
        return {"sampled_with": self._fingerprint(self.next.step), "batch": to_state(self.next)}

    def _restore(self, state: dict[str, Any] | None) -> None:
        step = self.run.start_step
        if state is None or step >= self.config.train.steps:
            return
        if state["sampled_with"] != self._fingerprint(step):
            print(
                f"{self.config.name}: the batch of step {step} that {self.run.source} holds was "
                "sampled with other settings; it is sampled anew",
                flush=True,
            )
            return
        questions = self.run.sampler(step)
        try:
            self.next = from_state(state["batch"], questions, self.run.policy.decode)
        except Exception as error:  # a file may hold anything: what that leads to is unknown
            path = f"{self.run.source}/rollouts.pt"
            raise ConfigError(f"{path}: cannot be resumed from: {error!r}") from error

    def _fingerprint(self, step: int) -> dict[str, Any]:
        questions, reward = self.run.sampler(step), self.config.reward
        settings = fingerprint(step, self.run.schedule(step), self.config.rollout, questions)
        if reward.function != DEFAULT:  # older checkpoints name none
            settings["reward"] = {"function": reward.function, "options": reward.options}
        return settings

    def _sample(self, step: int, **options: Any) -> RolloutBatch | None:
        cap = self.run.schedule(step)
        collect = replace(self.collect, grade=partial(self._grade, step=step, cap=cap))
        return collect(
            step,
            cap,
            self.run.sampler(step),
            self.run.seed(step),
            **options,
        )

    def _ahead(self, step: int) -> None:
        try:
            # Not ended by a stop: the weights it samples from are gone when the run continues.
            # Nor may the weights, which are being updated, be handed over again.
            self.next = self._sample(step, cancelled=lambda: self._closing, resync=False)
        except BaseException as error:  # raised by wait() in the thread that trains
            self._error = error

    def _grade(self, part: Any, *, step: int | None, cap: int | None) -> list[Grade]:
        """Reward: 1 if the answer in the response, truncated at the cap, is right, else 0 (SIRI
        3.1); or what ``reward.function`` makes of whole groups."""
        reward = self.config.reward
        opened = thinking(self.run.policy.tokenizer, [q.prompt_ids for _, (q, _) in part])
        return grade_responses(
            [
                Response(text, completion.finish_reason, inside, len(completion.token_ids))
                for (text, (_, completion)), inside in zip(part, opened, strict=True)
            ],
            [question.answer for _, (question, _) in part],
            verifier=self.run.verifier,
            think=reward.think,
            truncated=reward.truncated,
            function=reward.function,
            options=reward.options,
            group_size=self.config.rollout.group_size,
            questions=[question.prompt for _, (question, _) in part],
            cap=cap,
            step=step,
        )

    def _end_if_asked(self, step: int) -> None:
        signum = self.stop.agreed()
        if signum is None:
            return
        saved = self.run.save(step, self.state()) if step > self.run.start_step else None
        self.run.progress.interrupt()
        raise Stopped(
            f"{self.config.name}: stopped before step {step}"
            + (f", {saved} holds everything until then" if saved else "")
            + "; run the same command again to continue",
            signum,
        )
