"""Reward manager ``siri_capped``: what ``siri.reward.function`` gives a capped response."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.utils.fs import copy_to_local
from verl.utils.model import get_generation_config

from siri_train.config.base import ConfigError
from siri_train.integrations.verl.settings import REWARD_MANAGER, settings_of
from siri_train.model.chat_template import eos_token_ids
from siri_train.model.think_marks import decode_responses
from siri_train.rewards import (
    Grade,
    Response,
    grade_responses,
    make_verifier,
    require_single,
)


@register(REWARD_MANAGER)
class SiriRewardManager(RewardManagerBase):
    """SIRI's reward (arXiv 2509.25176, section 3.1) for verl's reward loop.

    It is 1 if the answer is right, else 0. ``siri.reward.function`` and ``siri.reward.options``
    give another one.

    A response has finished if its last token ends a sequence (the tokenizer's, the generation
    config's and the chat template's end tokens), whatever its length: verl's servers report
    "completed" for a truncated response too. NaN if it could not be scored, see
    ``grade_responses``.

    Args:
        config: verl's whole configuration, with the section ``siri``.
        tokenizer: the model's.
        compute_score: not used: verl passes its default where none is configured.
        reward_router_address: verl's, not used.
        reward_model_tokenizer: verl's, not used.

    Raises:
        ConfigError: see ``settings_of``; a ``reward.custom_reward_function`` or reward model, whose
            scores would be ignored; a reward function that compares the responses of a group.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        super().__init__(config, tokenizer, compute_score)
        if config.reward.custom_reward_function.path is not None:
            raise ConfigError(
                f"reward.custom_reward_function.path: got "
                f"{config.reward.custom_reward_function.path!r}; {REWARD_MANAGER} takes null: it "
                "grades with siri.reward.verifier"
            )
        if config.reward.reward_model.enable:
            raise ConfigError(f"reward.reward_model.enable: got True; {REWARD_MANAGER} takes False")
        self.settings = settings_of(config)
        model = config.actor_rollout_ref.model
        self.end_token_ids = eos_token_ids(
            tokenizer, get_generation_config(copy_to_local(model.path), model.trust_remote_code)
        )
        reward = self.settings.reward
        try:
            require_single(reward.function, "siri.reward.function", "verl")
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.verifier = make_verifier(
            reward.verifier,
            workers=1,
            timeout=reward.timeout,
            batch_timeout=reward.batch_timeout,
            sandbox=reward.sandbox,
        )
        self.grader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="siri-grader")

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Grade the last response of ``data`` (verl's ``DataProto``).

        Returns:
            ``reward_score``, and ``reward_extra_info``: ``acc`` (1 right, 0 wrong, NaN not scored),
            ``siri_correct`` (right whatever ``siri.reward.truncated`` says), ``siri_truncated``,
            ``siri_cap``, ``siri_length``, and for each of ``siri.budgets`` ``siri_acc_at_N``: the
            same as ``acc`` for the response truncated at N tokens.
        """
        item = data[-1:][0]
        ids = item.batch["responses"]
        length = int(item.batch["attention_mask"][-len(ids) :].sum())
        ids = ids[:length].tolist()
        finished = bool(ids) and ids[-1] in self.end_token_ids
        gold = str(item.non_tensor_batch["reward_model"]["ground_truth"])
        fields = item.non_tensor_batch.get("tool_extra_fields") or {}
        cap = fields.get("siri_cap", self.config.data.max_response_length)
        grade, *shorter = await asyncio.get_running_loop().run_in_executor(
            self.grader, self._grades, ids, finished, gold, cap
        )
        info = {
            "acc": _accuracy(grade),
            "siri_correct": float(grade.correct),
            "siri_truncated": float(grade.truncated),
            "siri_cap": cap,
            "siri_length": length,
        }
        for budget, at in zip(self.settings.budgets, shorter, strict=True):
            info[f"siri_acc_at_{budget}"] = _accuracy(at)
        return {"reward_score": grade.reward, "reward_extra_info": info}

    def _grades(self, ids: list[int], finished: bool, gold: str, cap: int) -> list[Grade]:
        """The grades of the response, and of the response truncated at each budget."""
        budgets, reward = self.settings.budgets, self.settings.reward
        parts = [ids, *(ids[:budget] for budget in budgets)]
        texts = decode_responses(self.tokenizer, parts)
        ended = [finished, *(finished and len(ids) <= budget for budget in budgets)]
        return grade_responses(
            [
                Response(text, "stop" if end else "length", tokens=len(part))
                for text, end, part in zip(texts, ended, parts, strict=True)
            ],
            [gold] * len(texts),
            verifier=self.verifier,
            think=reward.think,
            truncated=reward.truncated,
            function=reward.function,
            options=reward.options,
            cap=cap,
        )


def _accuracy(grade: Grade) -> float:
    return math.nan if grade.right is None else float(grade.right)
