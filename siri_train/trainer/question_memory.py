"""The memory of a reward function: values of questions from the steps that first had them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping
from typing import Any

from siri_train.config.run import RewardConfig
from siri_train.data.sources import EncodedQuestion
from siri_train.rewards import REWARDS, JudgedResponse, RewardGroup, reward_options
from siri_train.rollout.batch import Group, RolloutBatch
from siri_train.schedule import LengthSchedule


class QuestionMemory:
    """The first value of `siri_train.rewards.Reward.remember` for each question.

    A step adds after all its groups have been graded, and only the groups of its statistics. Which
    others were graded, and in which order, depends on the speed of the engine. So a question that
    comes twice in a step is new both times, and every rank and a resumed run know the same.

    Args:
        config: the recipe's section ``reward``.
        schedule: has the phase of a step and ``min_len``.
    """

    def __init__(self, config: RewardConfig, schedule: LengthSchedule) -> None:
        self.options = reward_options(config.function, config.options)
        self.function, self.schedule = config.function, schedule
        self.remember = REWARDS[config.function].remember
        self.known: dict[str, tuple[int, Any]] = {}  # by key: (step, value)

    def of(self, question: EncodedQuestion) -> Any:
        """The value of the question; None: there is none yet."""
        return self.known.get(_key(question), (0, None))[1] if self.known else None

    def add(self, batch: RolloutBatch) -> None:
        """Take what the graded groups of a step tell of new questions. Twice is as good as once."""
        if self.remember is None:
            return
        for group in batch.seen:
            key = _key(group.question)
            if key not in self.known:
                value = self.remember(self._judged(group, batch))
                if value is not None:
                    self.known[key] = (batch.step, value)

    def state(self) -> dict[str, Any] | None:
        """The values for a checkpoint, as JSON holds them; None if there are none."""
        if not self.known:
            return None
        return {"function": self.function, "options": self.options, "known": dict(self.known)}

    def restore(self, state: Mapping[str, Any] | None, before: int, name: str) -> None:
        """Take what a checkpoint holds.

        Args:
            state: as `state` gave it.
            before: the first step that is sampled again; what was learnt from it is left out.
            name: of the run, for the line that says that nothing of another reward is taken.
        """
        if state is None or self.remember is None:
            return
        if (state["function"], state["options"]) != (self.function, self.options):
            print(
                f"{name}: the checkpoint knows {len(state['known'])} questions by the reward "
                f"{state['function']} with {state['options']}; they are new to the recipe's reward",
                flush=True,
            )
            return
        self.known = {
            key: (step, value) for key, (step, value) in state["known"].items() if step < before
        }

    def _judged(self, group: Group, batch: RolloutBatch) -> RewardGroup:
        responses = [
            JudgedResponse(text, len(c.token_ids), c.truncated, grade.right, grade.answer)
            for text, c, grade in zip(group.texts, group.completions, group.grades, strict=True)
        ]
        return RewardGroup(
            responses,
            group.question.prompt,
            group.question.answer,
            batch.cap,
            batch.step,
            self.options,
            self.schedule.phase(batch.step),
            self.schedule.min_len,
        )


def _key(question: EncodedQuestion) -> str:
    """An id is unique within its source only; the prompt tells sources apart."""
    prompt = array("q", question.prompt_ids).tobytes()
    return f"{question.id} {hashlib.blake2b(prompt, digest_size=6).hexdigest()}"
