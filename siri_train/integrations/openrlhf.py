"""SIRI's reward on OpenRLHF (0.11), as an agent executor, the public place for own rollouts.

A file for ``--train.agent_func_path`` that says
``from siri_train.integrations.openrlhf import SiriAgentExecutor as AgentExecutor``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor

from siri_train.model.think_marks import decode_responses
from siri_train.rewards import (
    Response,
    Verifier,
    grade_responses,
    make_verifier,
    require_single,
    reward_options,
)
from siri_train.rewards.extract import ThinkMode
from siri_train.rewards.functions import DEFAULT
from siri_train.rewards.grading import TruncatedMode


class SiriAgentExecutor(SingleTurnAgentExecutor):
    """OpenRLHF's single turn, graded by SIRI: 1 if the answer in the response is right, else 0.

    ``function`` names another reward function.
    The cap is OpenRLHF's ``max_new_tokens`` and does not move: an executor does not get the number
    of the step. OpenRLHF's losses and its head cannot be replaced without a fork.

    Args:
        verifier: grades answers; by default ``make_verifier("math_verify")``.
        think: where the answer may stand, see ``siri_train.rewards.final_answer``.
        truncated: what a truncated response earns, see ``siri_train.rewards.grade_responses``.
        function: a name in ``siri_train.rewards.REWARDS``.
        options: of that function, by name.

    Raises:
        ValueError: a reward function that compares the responses of a group, or an option that it
            does not take.
    """

    def __init__(
        self,
        verifier: Verifier | None = None,
        think: ThinkMode = "required",
        truncated: TruncatedMode = "grade",
        function: str = DEFAULT,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        reward_options(function, options or {})
        require_single(function, trainer="OpenRLHF")
        super().__init__(None)
        self.verifier = make_verifier("math_verify") if verifier is None else verifier
        self.think = think
        self.truncated = truncated
        self.function, self.options = function, options

    async def execute(
        self,
        prompt: Any,
        label: Any,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        """Sample and grade one response.

        Args:
            prompt: the question, as OpenRLHF gives it.
            label: the gold answer.
            sampling_params: of OpenRLHF's engine.
            max_length: tokens of prompt and response.
            hf_tokenizer: decodes the response.
            llm_engine: samples it.
            images: of the prompt.

        Returns:
            OpenRLHF's own result with ``reward`` and ``scores``: 1 or 0. A response that could not
            be scored has 0, because OpenRLHF's batches need a number.
        """
        out = await super().execute(
            prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images
        )
        start, end = out["action_ranges"][0]
        (text,) = decode_responses(hf_tokenizer, [out["observation_tokens"][start:end]])
        (grade,) = grade_responses(
            [Response(text, "length" if out["truncated"] else "stop", tokens=end - start)],
            [str(label)],
            verifier=self.verifier,
            think=self.think,
            truncated=self.truncated,
            function=self.function,
            options=self.options,
            questions=[str(prompt)],
            cap=sampling_params.max_tokens,
        )
        reward = grade.reward if grade.reward == grade.reward else 0.0
        out.update(reward=reward, scores=reward)
        out["extra_logs"] = {"siri/correct": float(grade.correct)}
        return out
