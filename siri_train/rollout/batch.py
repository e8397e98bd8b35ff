"""The graded responses of one step, in whole groups, and counts of those that were left out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siri_train.config.alarms import AlarmsConfig
from siri_train.config.rollout import RolloutConfig
from siri_train.data.sources import EncodedQuestion
from siri_train.monitor.alarms import Raised
from siri_train.monitor.alarms.rollout import (
    ANSWERS_NOT_JUDGED,
    FEW_INFORMATIVE_GROUPS,
    NON_FINITE_LOGPROBS,
    PROMPTS_FAILED,
)
from siri_train.rewards import Grade
from siri_train.rollout.engine import Completion


@dataclass
class Group:
    """A question with all its responses.

    Args:
        position: among the questions drawn for the step.
        question: the question.
        completions: ``rollout.group_size`` of them, none aborted.
        texts: decoded.
        grades: one a response.
    """

    position: int
    question: EncodedQuestion
    completions: list[Completion]
    texts: list[str] = field(default_factory=list, repr=False)
    grades: list[Grade] = field(default_factory=list, repr=False)

    @property
    def informative(self) -> bool:
        """Whether rewards differ, so that an advantage is not 0; NaN rewards are left out."""
        rewards = [g.reward for g in self.grades if not math.isnan(g.reward)]
        return len(set(rewards)) > 1


@dataclass
class RolloutBatch:
    """The responses that one step trains on.

    Args:
        step: the step it belongs to.
        cap: the response length cap of that step, in tokens.
        groups: trained on, in the order the questions were drawn.
        dropped: complete, but all rewards equal (dynamic sampling only).
        failures: (question, reason) of groups that the engine could not finish.
        surplus: groups left over once there were enough: cancelled, or complete too late.
        tokens_discarded: response tokens of failures and surplus.
        retries: how often sampling was repeated because of log-probs that are not finite.
        seconds: spent in the engine.
        wanted: groups that the recipe wants (``rollout.prompts``).
        dynamic: groups whose rewards are all equal are dropped. If this holds for all groups, they
            are kept; the step then trains on nothing, because their advantages are 0.
    """

    step: int
    cap: int
    wanted: int
    dynamic: bool = False
    groups: list[Group] = field(default_factory=list)
    dropped: list[Group] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    surplus: int = 0
    tokens_discarded: int = 0
    retries: int = 0
    seconds: float = 0.0

    @property
    def rewards(self) -> Tensor:
        """The rewards of the groups trained on, [B] float32; NaN where one could not be scored."""
        return torch.tensor([g.reward for group in self.groups for g in group.grades])

    @property
    def pairs(self) -> list[tuple[EncodedQuestion, Completion]]:
        """Question and response of every response trained on."""
        return [(group.question, c) for group in self.groups for c in group.completions]

    @property
    def seen(self) -> list[Group]:
        """The groups of the step's statistics: trained on or dropped, in the order drawn."""
        return sorted([*self.groups, *self.dropped], key=lambda group: group.position)

    @property
    def tokens_sampled(self) -> int:
        """Response tokens of the step, those of dropped and discarded groups included."""
        kept = sum(len(c.token_ids) for group in self.seen for c in group.completions)
        return kept + self.tokens_discarded

    @property
    def missing(self) -> int:
        """Groups with different rewards that dynamic sampling wanted and did not find."""
        informative = sum(group.informative for group in self.groups)
        return max(0, self.wanted - informative) if self.dynamic else 0

    def counts(self) -> dict[str, int]:
        """How many groups were trained on and left out: keys of a record of metrics."""
        return {
            "groups": len(self.groups),
            "groups_failed": len(self.failures),
            "groups_dropped": len(self.dropped),
            "groups_surplus": self.surplus,
            "groups_missing": self.missing,
            "tokens_discarded": self.tokens_discarded,
            "rollout_retries": self.retries,
        }

    def alarms(self, limits: AlarmsConfig | None = None) -> list[dict[str, Any]]:
        """Alarms about the rollout itself, without the step.

        Args:
            limits: thresholds; None: their defaults.
        """
        limits = limits or AlarmsConfig()
        found = []
        if self.failures:
            question, reason = self.failures[0]
            count = len(self.failures)
            raised = Raised(count, count=count, question=question, reason=reason)
            found.append(PROMPTS_FAILED.entry(raised))
        if self.retries:
            found.append(NON_FINITE_LOGPROBS.entry(Raised(self.retries)))
        grades = [grade for group in self.seen for grade in group.grades]
        unjudged = sum(grade.right is None for grade in grades)
        if unjudged > limits.unjudged * len(grades):
            raised = Raised(unjudged, unjudged=unjudged, answers=len(grades))
            found.append(ANSWERS_NOT_JUDGED.entry(raised))
        if self.missing:
            informative = self.wanted - self.missing
            raised = Raised(informative, informative=informative, wanted=self.wanted)
            found.append(FEW_INFORMATIVE_GROUPS.entry(raised))
        return found


def fingerprint(
    step: int, cap: int, rollout: RolloutConfig, questions: Sequence[EncodedQuestion]
) -> dict[str, Any]:
    """The settings that a saved batch must have been sampled with, for a resumed run to use it.

    Args:
        step: its step.
        cap: the response length cap of the step, in tokens.
        rollout: the recipe's section.
        questions: drawn for the step.
    """
    keys = ("prompts", "group_size", "temperature", "top_p", "top_k", "oversample", "max_rounds")
    # Older checkpoints have none of these. One process without shards has a single one.
    usual = {"deal": ("questions",), "keep": ("in_order",), "shards": (0, 1)}
    others = {key: getattr(rollout, key) for key in usual}
    return {
        "step": step,
        "cap": cap,
        "questions": [question.id for question in questions],
        **{key: getattr(rollout, key) for key in keys},
        **{key: value for key, value in others.items() if value not in usual[key]},
    }


def to_state(batch: RolloutBatch) -> dict[str, Any]:
    """A batch as ``torch.load(..., weights_only=True)`` reads it; exact."""
    plain = {
        f.name: getattr(batch, f.name)
        for f in dataclasses.fields(batch)
        if f.name not in ("groups", "dropped")
    }
    return {**plain, **{kind: _packed(getattr(batch, kind)) for kind in ("groups", "dropped")}}


def from_state(
    state: dict[str, Any],
    questions: Sequence[EncodedQuestion],
    decode: Callable[[Sequence[Sequence[int]]], list[str]],
) -> RolloutBatch:
    """The batch that :func:`to_state` was given.

    Args:
        state: the saved batch.
        questions: drawn for its step.
        decode: turns token ids of responses into texts, which are not saved.
    """
    values = dict(state)
    for kind in ("groups", "dropped"):
        values[kind] = groups = _unpacked(state[kind], questions)
        for group in groups:
            group.texts = decode([c.token_ids for c in group.completions])
    values["failures"] = [tuple(failure) for failure in state["failures"]]
    return RolloutBatch(**values)


def _packed(groups: Sequence[Group]) -> list[dict[str, Any]]:
    return [
        {
            "position": group.position,
            "grades": [dataclasses.astuple(grade) for grade in group.grades],
            "completions": [
                {
                    "token_ids": torch.tensor(c.token_ids, dtype=torch.int32),
                    "logprobs": _exact(c.logprobs),
                    "entropies": None if c.entropies is None else _exact(c.entropies),
                    "finish_reason": c.finish_reason,
                }
                for c in group.completions
            ],
        }
        for group in groups
    ]


def _unpacked(state: list[dict[str, Any]], questions: Sequence[EncodedQuestion]) -> list[Group]:
    def completion(saved: dict[str, Any]) -> Completion:
        plain: dict[str, Any] = {
            name: value.tolist() if isinstance(value, Tensor) else value
            for name, value in saved.items()
        }
        return Completion(**plain)

    return [
        Group(
            saved["position"],
            questions[saved["position"]],
            [completion(c) for c in saved["completions"]],
            grades=[_grade(*grade) for grade in saved["grades"]],
        )
        for saved in state
    ]


def _grade(reward: float, correct: bool, answer: str | None, truncated: bool, *more: Any) -> Grade:
    """A saved grade. Older ones lack ``right``, which was what the reward said."""
    right = more[0] if more else None if math.isnan(reward) else reward == 1
    return Grade(reward, correct, answer, truncated, right)


def _exact(values: Sequence[float]) -> Tensor:
    """As float32 where nothing is lost, which is what engines give; else as float64."""
    wide = np.array(values, dtype=np.float64)
    narrow = wide.astype(np.float32)
    same = np.array_equal(narrow.astype(np.float64), wide, equal_nan=True)
    return torch.from_numpy(narrow if same else wide)
