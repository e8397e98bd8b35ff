"""Switches that hold in one phase of the schedule: ``loss.compression`` and ``loss.expansion``.

docs/losses.md has a table of them with the source of each.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from siri_train.config.base import Section
from siri_train.config.values import Tokens

PHASES = ("compression", "expansion")
"""Phases of a schedule whose steps can have values of their own."""

AdvantageScale = Literal["group_std", "batch_std", "none"]


class PhaseLossConfig(Section):
    """Values that hold in one phase of the schedule; null: the same as elsewhere."""

    clip_low: float | None = Field(None, ge=0, le=20)
    """See ``loss.clip_low``."""
    clip_high: float | None = Field(None, ge=0, le=1e3)
    """See ``loss.clip_high``."""
    entropy_coef: float | None = Field(None, ge=0, le=1e3)
    """See ``loss.entropy_coef``."""
    overlong_filter: bool | None = None
    """See ``loss.overlong_filter``."""
    overlong_buffer: Tokens | None = None
    """DAPO's overlong shaping: over the last so many tokens before the cap a ramp from 0 to
    overlong_factor is taken from the reward, whatever the reward function; null: none. At most the
    shortest cap."""
    overlong_factor: float | None = Field(None, gt=0, le=100)
    """With overlong_buffer: what a response as long as the cap loses; null: 1."""
    advantage_scale: AdvantageScale | None = None
    """See ``advantage.scale``; DLER has batch_std."""
    dynamic_sampling: bool | None = None
    """Whether ``rollout.oversample`` and ``rollout.max_rounds`` act in this phase; null: yes."""

    @model_validator(mode="after")
    def _factor_of_a_ramp(self) -> PhaseLossConfig:
        if self.overlong_factor is not None and self.overlong_buffer is None:
            raise ValueError(
                f"overlong_factor: got {self.overlong_factor:g}, which has no effect without "
                "overlong_buffer; set overlong_buffer, or leave overlong_factor out"
            )
        return self

    @property
    def ramp(self) -> tuple[int, float] | None:
        """Tokens and height of the overlong shaping; None: there is none."""
        if self.overlong_buffer is None:
            return None
        return self.overlong_buffer, 1.0 if self.overlong_factor is None else self.overlong_factor


def require_phase_fits(
    phase: str, own: PhaseLossConfig, *, dynamic: bool, shortest: int, reward: str
) -> None:
    """Refuse switches of a phase that the rest of a recipe leaves without effect or sense.

    Args:
        phase: its name, for the message.
        own: its switches.
        dynamic: whether ``rollout`` asks for dynamic sampling.
        shortest: cap of the run in tokens.
        reward: ``reward.function``.

    Raises:
        ValueError: the message begins with the key.
    """
    key = f"loss.{phase}"
    if own.dynamic_sampling is not None and not dynamic:
        raise ValueError(
            f"{key}.dynamic_sampling: got {str(own.dynamic_sampling).lower()}, but rollout has no "
            "dynamic sampling (oversample 1, max_rounds 1); set rollout.oversample or "
            f"rollout.max_rounds above 1, or leave {key}.dynamic_sampling out"
        )
    if own.overlong_buffer is None:
        return
    if own.overlong_buffer > shortest:
        raise ValueError(
            f"{key}.overlong_buffer: got {own.overlong_buffer}; takes 1 to {shortest}, the "
            "shortest cap (schedule.min_len)"
        )
    if reward == "overlong":
        raise ValueError(
            f"{key}.overlong_buffer: got {own.overlong_buffer} beside reward.function=overlong, "
            "which has this ramp in every step; take another reward.function, or leave "
            f"{key}.overlong_buffer out"
        )
