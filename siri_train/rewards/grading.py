"""Grades: the answer in a response, the verifier's verdict on it, and what the response earns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from siri_train.rewards.extract import THINK_OPEN, ThinkMode, final_answer
from siri_train.rewards.functions import (
    DEFAULT,
    REWARDS,
    JudgedResponse,
    RewardGroup,
    reward_options,
    rewards_of,
)
from siri_train.rewards.verify import Verifier

FinishReason = Literal["stop", "length", "abort"]
TruncatedMode = Literal["grade", "zero"]
TRUNCATED_MODES = ("grade", "zero")


@dataclass(frozen=True)
class Response:
    """A decoded response as the rollout engine returned it.

    Attributes:
        text: the response without the prompt; ``</think>`` must not have been stripped.
        finish_reason: ``"stop"``: it ended with an end-of-sequence token; ``"length"``: it was
            truncated at the cap; ``"abort"``: the engine lost it.
        thinking: the prompt ends with ``<think>``, so the response begins inside its thoughts.
        tokens: its length in tokens. The default reward does not need it; others do.
    """

    text: str
    finish_reason: FinishReason
    thinking: bool = False
    tokens: int | None = None


@dataclass(frozen=True)
class Grade:
    """The grade of a response.

    Attributes:
        reward: what it earned; NaN if it has no reward.
        correct: the extracted answer equals the gold answer, whether or not the response finished.
        answer: content of the last box (see ``final_answer``), or what the verifier's ``extract``
            finds; None without one.
        truncated: truncated at the cap, by the finish reason alone.
        right: what accuracies count: correct, and with ``truncated="zero"`` also finished. None:
            the response could not be scored.
    """

    reward: float
    correct: bool
    answer: str | None
    truncated: bool
    right: bool | None


def grade_responses(
    responses: Sequence[Response],
    golds: Sequence[str],
    *,
    verifier: Verifier,
    think: ThinkMode = "required",
    truncated: TruncatedMode = "grade",
    function: str = DEFAULT,
    options: Mapping[str, Any] | None = None,
    group_size: int = 1,
    questions: Sequence[str] | None = None,
    cap: int | None = None,
    step: int | None = None,
    phase: str | None = None,
    shortest: int | None = None,
    known: Sequence[Any] | None = None,
) -> list[Grade]:
    """Grade responses: is the boxed answer right, and what does the response earn.

    The default reward is SIRI's (section 3.1, with DeepScaleR's extraction): 1 where the boxed
    answer of a response, truncated at the cap, is right, else 0. A truncated response is graded by
    what it holds: with ``think="required"`` only a box that was closed behind ``</think>`` can be
    right, so nearly all earn 0. They stay in the loss, because they carry the compression. A
    response that ends exactly at the cap has finished.

    Args:
        responses: B responses, truncated at the step's cap by whoever generated them.
        golds: B right answers.
        verifier: grades (answer, gold) pairs; see ``make_verifier``. Its method ``extract``, if it
            has one, finds the answers in place of ``final_answer``.
        think: where in the response the answer may stand, see ``final_answer``.
        truncated: ``"grade"``: a truncated response is as right as its text, as in the paper;
            ``"zero"``: it is not right, whatever it holds.
        function: the reward function, a name in `REWARDS`.
        options: of the reward function, by name.
        group_size: responses to each question; equal consecutive groups. With 1 every response is
            graded on its own.
        questions: B texts, for reward functions that read them.
        cap: the longest possible response in tokens, for reward functions that read it.
        step: the 0-based step, for reward functions that read it.
        phase: of the schedule, for reward functions that read it.
        shortest: the schedule's ``min_len`` in tokens, for reward functions that read it.
        known: one entry a group, what `Reward.remember` gave for its question before.

    Returns:
        B grades, in order. With the default reward NaN (``group_advantages`` leaves such a response
        out) where the engine aborted the response or the verifier could not judge the answer (see
        ``MathVerifier.verdicts``). A model can bring about neither.

    Raises:
        ValueError: different numbers of responses, golds and questions, a part of a group, an
            unknown finish reason, ``truncated``, reward function or option; a reward function that
            compares responses with a group size of 1, or that lacks the lengths or the phase; or
            one that does not give a number a response.
    """
    if truncated not in TRUNCATED_MODES:
        raise ValueError(f"truncated: got {truncated!r}, takes 'grade' or 'zero'")
    if len(responses) != len(golds):
        raise ValueError(f"golds: got {len(golds)} for {len(responses)} responses")
    if questions is not None and len(questions) != len(responses):
        raise ValueError(f"questions: got {len(questions)} for {len(responses)} responses")
    if group_size < 1 or len(responses) % group_size:
        raise ValueError(
            f"group_size: got {group_size} for {len(responses)} responses; takes a divisor"
        )
    settings = reward_options(function, options or {})
    shape = REWARDS[function].shape
    if shape is not None and (phase is None or shortest is None):
        raise ValueError(
            f"phase, shortest: missing; the reward {function!r} acts in the phases of "
            f"schedule.shape={shape}, and takes them from a training step"
        )
    for index, response in enumerate(responses):
        if response.finish_reason not in ("stop", "length", "abort"):
            raise ValueError(
                f"responses[{index}].finish_reason: got {response.finish_reason!r}, "
                "takes 'stop', 'length' or 'abort'"
            )
        if response.tokens is None and function != DEFAULT:
            raise ValueError(
                f"responses[{index}].tokens: missing; the reward {function!r} takes the length"
            )
    if group_size == 1:
        require_single(function)
    extract = getattr(verifier, "extract", final_answer)
    answers = [
        extract(THINK_OPEN * response.thinking + response.text, think=think)
        for response in responses
    ]
    verdicts = verifier.verdicts(list(zip(answers, golds, strict=True)))
    judged = [
        _judged(response, answer, verdict, truncated)
        for response, answer, verdict in zip(responses, answers, verdicts, strict=True)
    ]
    rewards: list[float] = []
    for index, first in enumerate(range(0, len(judged), group_size)):
        group = RewardGroup(
            responses=judged[first : first + group_size],
            question="" if questions is None else questions[first],
            gold=golds[first],
            cap=cap,
            step=step,
            options=settings,
            phase=phase,
            shortest=shortest,
            known=None if known is None else known[index],
        )
        rewards += rewards_of(function, group)
    return [
        Grade(reward, verdict is True, response.answer, response.truncated, response.right)
        for reward, verdict, response in zip(rewards, verdicts, judged, strict=True)
    ]


def require_single(function: str, key: str = "function", trainer: str = "") -> None:
    """Refuse a reward function that compares responses where each is graded alone.

    Args:
        function: a name in `REWARDS`.
        key: what named it, for the message.
        trainer: who grades one response at a time; "": a caller of `grade_responses`.

    Raises:
        ValueError: it compares responses.
    """
    if REWARDS[function].compares:
        why = f"{trainer} grades one response at a time" if trainer else "group_size is 1"
        alone = [name for name, reward in REWARDS.items() if not reward.compares]
        raise ValueError(
            f"{key}: got {function!r}, which compares the responses of a group, but {why}; takes "
            f"one of {', '.join(alone)}"
        )


def _judged(
    response: Response, answer: str | None, verdict: bool | None, truncated: TruncatedMode
) -> JudgedResponse:
    at_cap = response.finish_reason == "length"
    right = verdict
    if response.finish_reason == "abort":
        right = None
    elif at_cap and truncated == "zero":
        right = False  # whatever the verifier says
    tokens = 0 if response.tokens is None else response.tokens
    return JudgedResponse(response.text, tokens, at_cap, right, answer)
