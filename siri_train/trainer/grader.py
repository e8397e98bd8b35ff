"""The reward of a step's responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from siri_train.config.run import RewardConfig
from siri_train.data.sources import EncodedQuestion
from siri_train.model.think_marks import thinking
from siri_train.rewards import Grade, Response, Verifier, length_capping_reward
from siri_train.rollout.engine import Completion


@dataclass(frozen=True)
class Grader:
    """1 if the answer in the response, truncated at the cap, is right, else 0 (SIRI 3.1).

    Args:
        tokenizer: tells which prompts end inside a thinking block.
        verifier: compares answers.
        config: the recipe's section.
    """

    tokenizer: Any
    verifier: Verifier
    config: RewardConfig

    def __call__(
        self, responses: Sequence[tuple[str, tuple[EncodedQuestion, Completion]]]
    ) -> list[Grade]:
        """The grade of each (text, (question, response))."""
        opened = thinking(self.tokenizer, [q.prompt_ids for _, (q, _) in responses])
        return length_capping_reward(
            [
                Response(text, completion.finish_reason, inside)
                for (text, (_, completion)), inside in zip(responses, opened, strict=True)
            ],
            [question.answer for _, (question, _) in responses],
            verifier=self.verifier,
            think=self.config.think,
            truncated=self.config.truncated,
        )
