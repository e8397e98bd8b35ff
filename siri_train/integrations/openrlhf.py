"""SIRI's reward on OpenRLHF (0.11), as an agent executor, the public place for own rollouts.

A file for ``--train.agent_func_path`` that says
``from siri_train.integrations.openrlhf import SiriAgentExecutor as AgentExecutor``.
"""

from __future__ import annotations

from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor

from siri_train.model.think_marks import decode_responses
from siri_train.rewards import Response, Verifier, length_capping_reward, make_verifier
from siri_train.rewards.extract import ThinkMode
from siri_train.rewards.length_cap import TruncatedMode


class SiriAgentExecutor(SingleTurnAgentExecutor):
    """OpenRLHF's single turn, graded by SIRI: 1 if the answer in the response is right, else 0.

    The cap is OpenRLHF's ``max_new_tokens`` and does not move: an executor does not get the number
    of the step. OpenRLHF's losses and its head cannot be replaced without a fork.

    Args:
        verifier: grades answers; by default ``make_verifier("math_verify")``.
        think: where the answer may stand, see ``siri_train.rewards.final_answer``.
        truncated: what a truncated one earns, see ``siri_train.rewards.length_capping_reward``.
    """

    def __init__(
        self,
        verifier: Verifier | None = None,
        think: ThinkMode = "required",
        truncated: TruncatedMode = "grade",
    ) -> None:
        super().__init__(None)
        self.verifier = make_verifier("math_verify") if verifier is None else verifier
        self.think = think
        self.truncated = truncated

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
        (grade,) = length_capping_reward(
            [Response(text, "length" if out["truncated"] else "stop")],
            [str(label)],
            verifier=self.verifier,
            think=self.think,
            truncated=self.truncated,
        )
        reward = grade.reward if grade.reward == grade.reward else 0.0
        out.update(reward=reward, scores=reward)
        out["extra_logs"] = {"siri/correct": float(grade.correct)}
        return out
