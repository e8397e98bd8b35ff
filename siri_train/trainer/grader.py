"""The reward of a step's responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from siri_train.config.loss import LossConfig
from siri_train.config.run import RewardConfig
from siri_train.data.sources import EncodedQuestion
from siri_train.model.think_marks import thinking
from siri_train.rewards import Grade, Response, Verifier, grade_responses
from siri_train.rewards.length import overlong_share
from siri_train.rollout.engine import Completion
from siri_train.schedule import LengthSchedule
from siri_train.trainer.question_memory import QuestionMemory


@dataclass(frozen=True)
class Grader:
    """1 if the answer in the response, truncated at the cap, is right, else 0 (SIRI 3.1).

    Another ``reward.function`` gives other rewards, from whole groups. In a phase with
    ``overlong_buffer`` DAPO's ramp is taken from whatever the function gives.

    Args:
        tokenizer: tells which prompts end inside a thinking block.
        verifier: compares answers.
        config: the recipe's section ``reward``.
        group_size: responses to each question.
        schedule: has the phase of a step.
        memory: what the reward function knows of questions.
        loss: the recipe's section ``loss``, for the ramp of a phase.
    """

    tokenizer: Any
    verifier: Verifier
    config: RewardConfig
    group_size: int
    schedule: LengthSchedule
    memory: QuestionMemory
    loss: LossConfig

    def __call__(
        self,
        responses: Sequence[tuple[str, tuple[EncodedQuestion, Completion]]],
        step: int,
        cap: int,
    ) -> list[Grade]:
        """Grade the responses of whole groups.

        Args:
            responses: (text, (question, response)), group after group.
            step: the 0-based step.
            cap: the longest possible response, in tokens.
        """
        phase = self.schedule.phase(step)
        opened = thinking(self.tokenizer, [q.prompt_ids for _, (q, _) in responses])
        grades = grade_responses(
            [
                Response(text, completion.finish_reason, inside, len(completion.token_ids))
                for (text, (_, completion)), inside in zip(responses, opened, strict=True)
            ],
            [question.answer for _, (question, _) in responses],
            verifier=self.verifier,
            think=self.config.think,
            truncated=self.config.truncated,
            function=self.config.function,
            options=self.config.options,
            group_size=self.group_size,
            questions=[question.prompt for _, (question, _) in responses],
            cap=cap,
            step=step,
            phase=phase,
            shortest=self.schedule.min_len,
            known=[self.memory.of(q) for _, (q, _) in responses[:: self.group_size]],
        )
        ramp = self.loss.own(phase).ramp
        if ramp is None:
            return grades
        buffer, height = ramp
        lengths = [len(completion.token_ids) for _, (_, completion) in responses]
        return [  # a reward that is NaN stays so
            replace(grade, reward=grade.reward - height * overlong_share(length, cap, buffer))
            for grade, length in zip(grades, lengths, strict=True)
        ]
