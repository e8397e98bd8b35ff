"""Switches by phase: what their metrics say of a step, and what a run says of them at its start."""

from __future__ import annotations

import math

from siri_train.config.loss import LossConfig
from siri_train.config.phases import PHASES
from siri_train.config.run import RunConfig
from siri_train.rewards.length import overlong_share
from siri_train.rollout.batch import RolloutBatch

MASKED = "overlong_masked_frac"
PENALTY = "overlong_penalty"


def switch_metrics(loss: LossConfig, phase: str, batch: RolloutBatch) -> dict[str, float | None]:
    """Metrics of the overlong filter and the overlong shaping of a step.

    Args:
        loss: the recipe's section.
        phase: of the step.
        batch: its responses, graded.

    Returns:
        ``overlong_masked_frac`` where a phase has the filter: of the responses trained on, the
        share that it took out of the loss. ``overlong_penalty`` where a phase has the shaping: what
        it took from a reward, the mean over the step's responses that have one; None without any.
        Both are 0 in the phase that does not have them.
    """
    found: dict[str, float | None] = {}
    if any(loss.at(name).overlong_filter for name in ("constant", *PHASES)):
        cut = [c.truncated for group in batch.groups for c in group.completions]
        found[MASKED] = sum(cut) / len(cut) if loss.at(phase).overlong_filter else 0.0
    if any(loss.own(name).ramp is not None for name in PHASES):
        buffer, height = loss.own(phase).ramp or (1, 0.0)
        taken = [
            height * overlong_share(len(c.token_ids), batch.cap, buffer)
            for group in batch.seen
            for c, grade in zip(group.completions, group.grades, strict=True)
            if not math.isnan(grade.reward)
        ]
        found[PENALTY] = sum(taken) / len(taken) if taken else None
    return found


def notices(config: RunConfig) -> list[str]:
    """Settings that a recipe may have, but that are probably not meant: one line each.

    Args:
        config: the recipe.
    """
    loss = config.loss
    said: list[str] = []
    if config.schedule.build().constant:
        return said
    if loss.at("compression").overlong_filter:
        said.append(
            "loss.overlong_filter is on in compression: truncated responses, which compress, count "
            "nowhere in the loss; set loss.compression.overlong_filter=false to keep them"
        )
    for phase, other in zip(PHASES, reversed(PHASES), strict=True):
        if loss.own(phase).dynamic_sampling and loss.own(other).dynamic_sampling is None:
            said.append(
                f"loss.{phase}.dynamic_sampling is true, and {other} has dynamic sampling too; "
                f"set loss.{other}.dynamic_sampling=false to have it in {phase} alone"
            )
    return said
