"""Alarms that a step's rollout raises itself: no row of ``metrics.jsonl`` tells their reason.

``RolloutBatch.alarms`` (`siri_train.rollout.batch`) raises them.
"""

from __future__ import annotations

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.history import number
from siri_train.monitor.alarms.registry import Record, register


def _unjudged(row: Record, limits: AlarmsConfig) -> bool:
    """Whether too many answers of a step were not judged, as ``RolloutBatch.alarms`` counts."""
    tokens, length = number(row, "tokens"), number(row, "response_len_mean")
    answers = round(tokens / length) if tokens and length else 0
    return (number(row, "unjudged") or 0.0) > limits.unjudged * answers


PROMPTS_FAILED = register(
    "prompts-failed",
    cause="the engine could not answer {count} of the step's questions; {question}: {reason}",
    action="they were left out with their whole groups; look for the reason in the engine's log",
    shown=lambda row, limits: bool(row.get("groups_failed")),
)
"""The engine could not finish a response; the whole group was left out."""

NON_FINITE_LOGPROBS = register(
    "non-finite-logprobs",
    cause="the sampler's log-probs were not finite; the batch was thrown away and sampled again "
    "after the weights had been handed over once more",
    action="if it comes back, check the engine's dtype and its weight sync",
    shown=lambda row, limits: bool(row.get("rollout_retries")),
)
"""A batch was sampled again."""

ANSWERS_NOT_JUDGED = register(
    "answers-not-judged",
    cause="{unjudged} of the step's {answers} answers could not be judged: math-verify did not "
    "start, its processes were stopped or killed, or reward.batch_timeout was used up",
    action="they were left out of their groups; raise reward.workers or reward.batch_timeout, and "
    "look for long boxes in rollouts/",
    limits=("unjudged",),
    shown=_unjudged,
)
"""More answers without a verdict than a few."""

FEW_INFORMATIVE_GROUPS = register(
    "few-informative-groups",
    cause="only {informative} groups had rewards that differ, {wanted} were wanted",
    action="raise rollout.oversample or rollout.max_rounds, or take questions that are neither too "
    "easy nor too hard",
    shown=lambda row, limits: bool(row.get("groups_missing")),
)
"""Dynamic sampling found fewer groups than it wanted."""
