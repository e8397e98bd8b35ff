"""The configuration of the method: ``schedule`` and ``reward``. Names come from the registries."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from siri_train.config.base import Section
from siri_train.config.values import OneOf, Steps, Tokens, check_tree
from siri_train.schedule import SHAPES, LengthSchedule

DEFAULT_REWARD = "length-cap"
"""The paper's. A recipe that names no other is read without an import of the rewards."""


def _rewards() -> Collection[str]:
    from siri_train.rewards import REWARDS

    return REWARDS


def _verifiers() -> Collection[str]:
    from siri_train.rewards import VERIFIERS

    return VERIFIERS


ShapeName = Annotated[str, AfterValidator(OneOf(lambda: SHAPES))]
RewardName = Annotated[str, AfterValidator(OneOf(_rewards))]
VerifierName = Annotated[str, AfterValidator(OneOf(_verifiers))]


class _Options(Section):
    """A section with options of the entry of a registry that it names."""

    @field_validator("options", check_fields=False)
    @classmethod
    def _plain_options(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_tree(value)
        return value


class ScheduleConfig(_Options):
    """The cap on the response length over the steps (SIRI section 4.3)."""

    shape: ShapeName = "cosine"
    """cosine: the paper's main schedule; constant: always ``max_len``, the control run. For all
    see docs/schedules.md."""
    max_len: Tokens = 16384
    """Longest cap, in response tokens."""
    min_len: Tokens = 8192
    """Shortest cap, in response tokens; at most ``max_len``."""
    cycle: Steps = 640
    """Steps of one compression and expansion together; for most shapes an even number."""
    stair_order: Literal["compress_first", "phase_centred"] = "compress_first"
    """For stair. compress_first: ``min_len`` in the first half of a cycle; phase_centred: from a
    quarter to three quarters of it."""
    options: dict[str, Any] = {}
    """Options of the shape, by name, see docs/schedules.md; cosine has none."""

    @model_validator(mode="after")
    def _ordered(self) -> ScheduleConfig:
        self.build()  # LengthSchedule knows what it accepts
        return self

    def build(self) -> LengthSchedule:
        """The schedule as a function of the step."""
        return LengthSchedule(
            shape=self.shape,
            max_len=self.max_len,
            min_len=self.min_len,
            cycle=self.cycle,
            stair_order=self.stair_order,
            options=self.options,
        )


class RewardConfig(_Options):
    """The reward of a response; by default SIRI's length-capping reward (section 3.1).

    That is 1 if the answer in the response, truncated at the cap, is right, else 0.
    """

    function: RewardName = DEFAULT_REWARD
    """The reward function; length-cap: the paper's. docs/rewards.md has the formulas."""
    options: dict[str, Any] = {}
    """Options of the reward function, by name (docs/rewards.md); length-cap has none."""
    verifier: VerifierName = "exact"
    """exact: answers are compared by rule; math_verify: what the rules cannot decide is
    evaluated; code: programs are tested in a sandbox."""
    think: Literal["required", "optional", "none"] = "required"
    """Whether the answer must follow ``</think>``."""
    truncated: Literal["grade", "zero"] = "grade"
    """A response truncated at the cap: grade what it holds, as the paper does, or zero."""
    workers: int = Field(2, gt=0, le=256)
    """Processes that evaluate answers (math_verify), programs at a time (code)."""
    timeout: float = Field(1.0, ge=0.01, le=3600)
    """Seconds of processor time per answer (math_verify) or program with its tests (code)."""
    batch_timeout: float = Field(60.0, ge=0.01, le=86400)
    """Seconds for all answers of a batch together (math_verify, code); what is left then has no
    reward and is left out of its group."""
    sandbox: Literal["strict", "best_effort"] = "strict"
    """code, on a machine where the sandbox lacks something. strict: refuse to run; best_effort:
    run programs of the model all the same. ``siri-train doctor`` says what holds."""

    @model_validator(mode="after")
    def _takes_options(self) -> RewardConfig:
        if self.options or self.function != DEFAULT_REWARD:  # else nothing to look up
            from siri_train.rewards import reward_options

            reward_options(self.function, self.options)
        return self
