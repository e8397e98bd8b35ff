"""The reward of SIRI: a right answer within the cap pays 1, everything else 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from siri_train.rewards.extract import THINK_OPEN, ThinkMode, final_answer
from siri_train.rewards.verify import Verifier

FinishReason = Literal["stop", "length", "abort"]
TruncatedMode = Literal["grade", "zero"]
TRUNCATED_MODES = ("grade", "zero")


@dataclass(frozen=True)
class Response:
    """A decoded response as the rollout engine returned it.

    Attributes:
        text: the response without the prompt; ``</think>`` must not have been stripped.
        finish_reason: ``"stop"``: it ended with an end-of-sequence token; ``"length"``: it was cut
            at the cap; ``"abort"``: the engine lost it.
        thinking: the prompt ends with ``<think>``, so the response begins inside its thoughts.
    """

    text: str
    finish_reason: FinishReason
    thinking: bool = False


@dataclass(frozen=True)
class Grade:
    """What a response earned.

    Attributes:
        reward: 1.0 or 0.0; NaN if it could not be scored.
        correct: the extracted answer equals the gold answer, whether or not the response finished.
        answer: content of the last box (see ``final_answer``), None without one.
        truncated: cut at the cap, by the finish reason alone.
    """

    reward: float
    correct: bool
    answer: str | None
    truncated: bool


def length_capping_reward(
    responses: Sequence[Response],
    golds: Sequence[str],
    *,
    verifier: Verifier,
    think: ThinkMode = "required",
    truncated: TruncatedMode = "grade",
) -> list[Grade]:
    """Reward 1 where the boxed answer of a response, cut at the cap, is right, else 0.

    SIRI section 3.1 with DeepScaleR's extraction. No length penalty, no format reward, no negative
    reward. A truncated response is graded by what stands before the cut: with ``think="required"``
    only a box that was closed behind ``</think>`` can pay, so nearly all earn 0, and they stay in
    the loss, for they carry the compression. How long a response is plays no part: one that ends
    exactly at the cap has finished.

    Args:
        responses: B responses, cut at the step's cap by whoever generated them.
        golds: B gold answers.
        verifier: grades (answer, gold) pairs; see ``make_verifier``.
        think: where in the response the answer may stand, see ``final_answer``.
        truncated: ``"grade"``: a truncated response earns what its text earns, as in the paper;
            ``"zero"``: it earns 0, whatever stands in it.

    Returns:
        B grades, in order. The reward is NaN (``group_advantages`` leaves such a response out)
        where the engine aborted the response or the verifier could not judge the answer (see
        ``MathVerifier.verdicts``), neither of which a model can bring about.

    Raises:
        ValueError: different numbers of responses and golds, an unknown finish reason or
            ``truncated``.
    """
    if truncated not in TRUNCATED_MODES:
        raise ValueError(f"truncated: got {truncated!r}, takes 'grade' or 'zero'")
    if len(responses) != len(golds):
        raise ValueError(f"golds: got {len(golds)} for {len(responses)} responses")
    for index, response in enumerate(responses):
        if response.finish_reason not in ("stop", "length", "abort"):
            raise ValueError(
                f"responses[{index}].finish_reason: got {response.finish_reason!r}, "
                "takes 'stop', 'length' or 'abort'"
            )
    answers = [
        final_answer(THINK_OPEN * response.thinking + response.text, think=think)
        for response in responses
    ]
    verdicts = verifier.verdicts(list(zip(answers, golds, strict=True)))
    return [
        _grade(response, answer, verdict, pays=truncated == "grade")
        for response, answer, verdict in zip(responses, answers, verdicts, strict=True)
    ]


def _grade(response: Response, answer: str | None, verdict: bool | None, *, pays: bool) -> Grade:
    cut = response.finish_reason == "length"
    if response.finish_reason == "abort":
        reward = math.nan
    elif cut and not pays:
        reward = 0.0  # whatever the verifier would have said
    elif verdict is None:
        reward = math.nan
    else:
        reward = float(verdict)
    return Grade(reward, verdict is True, answer, cut)
