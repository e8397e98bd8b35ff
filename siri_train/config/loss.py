"""The configuration of what an update computes: ``advantage`` and ``loss``.

Keys have the names of the arguments of ``siri_kernels.group_advantages`` and ``policy_loss``, but
for ``advantage.sas``. docs/losses.md says which give which paper's loss. The names that a key of
``loss`` takes are those that ``siri_kernels`` accepts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from siri_train.config.base import Section
from siri_train.config.phases import PHASES, AdvantageScale, PhaseLossConfig
from siri_train.config.values import OneOf, UserPath

if TYPE_CHECKING:  # torch comes with it, which reading a recipe does without
    from siri_kernels.policy_loss import RolloutCorrection

START = "start"
"""``loss.reference``: the model that the run began from."""


def _accepted(names: str) -> Collection[str]:
    """The names that ``siri_kernels.policy_loss.validate`` accepts."""
    from siri_kernels.policy_loss import validate

    return tuple(getattr(validate, names))


Objective = Annotated[str, AfterValidator(OneOf(partial(_accepted, "OBJECTIVES")))]
CispoBounds = Annotated[str, AfterValidator(OneOf(partial(_accepted, "CISPO_BOUNDS")))]
Ratio = Annotated[str, AfterValidator(OneOf(partial(_accepted, "RATIOS")))]
Aggregation = Annotated[str, AfterValidator(OneOf(partial(_accepted, "AGGREGATIONS")))]
KlEstimator = Annotated[str, AfterValidator(OneOf(partial(_accepted, "KL_ESTIMATORS")))]
CorrectionMode = Annotated[str, AfterValidator(OneOf(partial(_accepted, "CORRECTION_MODES")))]
CorrectionLevel = Annotated[str, AfterValidator(OneOf(partial(_accepted, "CORRECTION_LEVELS")))]
Tau = Annotated[float, Field(gt=0, le=1e3)]


class SasConfig(Section):
    """Step-level advantage selection (SAS, arXiv 2604.24003; docs/rewards.md).

    The least confident steps of right responses and the most confident steps of wrong ones get an
    advantage of 0. Confidence is the mean log-prob of the sampler over the tokens of the step.
    """

    share: float = Field(0.3, gt=0, lt=1)
    """Share of a response's steps that lose their advantage, rounded down to whole steps."""
    cut: Literal["blank-line", "sentence", "window"] = "blank-line"
    """Where a step ends: at a blank line, at the end of a sentence or line, or after ``window``
    tokens."""
    window: int = Field(64, ge=1, le=10**6)
    """Tokens of a step with cut: window, and in a response in which the other cuts find no end."""
    phases: Literal["all", "compression"] = "all"
    """In which phases of the schedule it acts."""


class AdvantageConfig(Section):
    """Group-relative advantages (``siri_kernels.group_advantages``)."""

    baseline: Literal["mean", "leave_one_out", "none"] = "mean"
    """Subtracted from a reward: the mean of its group, the mean of the others, or nothing."""
    scale: AdvantageScale = "group_std"
    """The difference is divided by the standard deviation of its group, by that of the step, or
    by nothing."""
    eps: float = Field(1e-6, ge=0, le=1)
    """Added to the standard deviation."""
    sas: SasConfig | None = None
    """Step-level advantage selection; null: every token has the advantage of its response."""

    def options(self, scale: AdvantageScale | None = None) -> dict[str, Any]:
        """Keyword arguments of ``group_advantages``.

        Args:
            scale: of the step's phase (``loss.PHASE.advantage_scale``); None: as elsewhere.
        """
        options = self.model_dump(exclude={"sas"})
        return options if scale is None else options | {"scale": scale}


class RolloutCorrectionConfig(Section):
    """``policy_loss``'s ``rollout_correction``: a weight for a sampler that is not the policy."""

    mode: CorrectionMode = "truncate"
    """truncate: the ratio clamped to [low, high] (TIS); mask: the ratio inside, else 0 (MIS,
    IcePop); reject: 1 inside, else 0."""
    level: CorrectionLevel = "token"
    """The ratio of a token, the product over the sequence, or its geometric mean."""
    high: float = Field(2.0, gt=0, le=1e6)
    """Upper bound of the ratio."""
    low: float = Field(0.0, ge=0, le=1e6)
    """Lower bound of the ratio."""

    @model_validator(mode="after")
    def _ordered(self) -> RolloutCorrectionConfig:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self

    def build(self) -> RolloutCorrection:
        """As ``policy_loss`` takes it."""
        from siri_kernels.policy_loss import RolloutCorrection

        return RolloutCorrection(self.mode, self.level, high=self.high, low=self.low)


class LossConfig(Section):
    """The policy loss (``siri_kernels.policy_loss``). The defaults are SIRI's."""

    objective: Objective = "clip"
    """The function of ratio and advantage: clip is that of PPO, GRPO, DAPO and SIRI."""
    clip_low: float = Field(0.2, ge=0, le=20)
    """The ratio is clipped at 1 - clip_low, so at most 1; with gmpo its logarithm at -clip_low."""
    clip_high: float = Field(0.28, ge=0, le=1e3)
    """The ratio is clipped at 1 + clip_high; with gmpo its logarithm at clip_high."""
    dual_clip: float | None = Field(None, gt=1, le=1e6)
    """With clip: the loss of a token with advantage A < 0 is at most -dual_clip * A; null: no
    bound."""
    delta: float | None = Field(None, ge=1, le=1e6)
    """With clip, instead of dual_clip: the ratio is at most delta (two-sided clipping), which is at
    least 1 + clip_high; null: no bound."""
    cispo_bounds: CispoBounds = "verl"
    """With cispo: what the weight is clipped to. verl: [1 - clip_low, 1 + clip_high]; trl:
    [0, clip_high]."""
    sapo_tau: Annotated[tuple[Tau, Tau], Field(strict=False)] = (1.0, 1.05)
    """With sapo: temperatures of the gate, for positive advantages and for the others."""
    ratio: Ratio = "token"
    """token; or sequence: the geometric mean of the sequence's ratios (GSPO)."""
    aggregation: Aggregation = "token-mean"
    """How the losses of the tokens become one number; token-sum-norm divides by the number of
    sequences times schedule.max_len (Dr. GRPO)."""
    off_policy_threshold: float | None = Field(None, ge=0, le=20)
    """Mask sequences with a negative advantage whose mean of old minus new log-prob is above this,
    in nats a token (DeepSeek-V3.2); null: none."""
    kl_coef: float = Field(0.0, ge=0, le=1e3)
    """Weight of the KL divergence to the reference model; 0: no reference model is loaded."""
    kl_estimator: KlEstimator = "k3"
    """With d = log-prob of the policy - that of the reference: k1: d; k2: d^2 / 2; k3:
    exp(-d) - 1 + d."""
    kl_unbiased: bool = False
    """Multiply the estimate with the token's ratio (DeepSeek-V3.2)."""
    kl_limit: float | None = Field(None, gt=0, le=1e9)
    """Clamp the estimate of a token to this on both sides (verl: 10); null: no bound."""
    reference: UserPath = START
    """The frozen reference model of the KL: start (the model that the run began from), or a folder
    or hub id that ``from_pretrained`` loads, with the policy's vocabulary. With model.lora start
    takes no memory."""
    entropy_coef: float = Field(0.0, ge=0, le=1e3)
    """Weight of the entropy bonus."""
    old_logprobs: Literal["rollout", "recompute"] = "rollout"
    """Old log-probs: the sampler's own, or from one more forward pass before the first update."""
    rollout_correction: RolloutCorrectionConfig | None = None
    """tis, mis or icepop with their authors' bounds, or mode, level, low and high; null: none.
    Needs old_logprobs: recompute."""
    skip_zero_advantage: bool = True
    """Leave sequences whose advantage is exactly 0 out of forward and backward; the denominator
    still includes them. Has an effect only where entropy_coef and kl_coef are 0."""
    overlong_filter: bool = False
    """Truncated responses count nowhere in the loss: not in its sum, not in its denominator (DAPO).
    Their rewards stay in the mean and deviation of their groups. In compression they are what
    compresses: see docs/losses.md."""

    compression: PhaseLossConfig | None = None
    """Other values while the cap compresses; null: none. Without phases (a constant cap) they have
    no effect."""
    expansion: PhaseLossConfig | None = None
    """Other values in expansion, where the paper suggests an entropy bonus or a higher clip; null:
    none."""

    @field_validator("rollout_correction", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        from siri_kernels.policy_loss import ROLLOUT_CORRECTIONS as NAMED

        if value not in NAMED:
            raise ValueError(f"takes {', '.join(NAMED)}, or mode, level, low, high")
        return asdict(NAMED[value])

    @field_validator("reference")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("takes start, or a path that is not empty")
        return value

    @model_validator(mode="after")
    def _bounds_fit(self) -> LossConfig:
        if self.objective != "gmpo" and self.clip_low > 1:
            raise ValueError(
                f"clip_low: got {self.clip_low}; takes a number from 0 to 1 with objective "
                f"{self.objective}, whose ratio is clipped at 1 - clip_low"
            )
        if self.dual_clip is not None and self.delta is not None:
            raise ValueError(
                f"delta: got {self.delta} beside dual_clip ({self.dual_clip}); both bound the same "
                "loss, set one of them to null"
            )
        if self.delta is not None and self.delta < 1 + self.clip_high:
            raise ValueError(
                f"delta: got {self.delta}; takes a number from 1 + clip_high = "
                f"{1 + self.clip_high:g}, or null"
            )
        return self

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> LossConfig:
        fields = type(self).model_fields
        for objective, names in _ONLY_WITH.items():
            for name in names:
                if objective != self.objective and getattr(self, name) != fields[name].default:
                    raise ValueError(
                        f"{name}: got {_shown(getattr(self, name))}, which has no effect with "
                        f"objective {self.objective}; set objective to {objective}, or leave "
                        f"{name} out"
                    )
        for name in _OF_KL:
            if self.kl_coef == 0 and getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"{name}: got {_shown(getattr(self, name))}, which has no effect while kl_coef "
                    f"is 0; set kl_coef above 0, or leave {name} out"
                )
        return self

    @model_validator(mode="after")
    def _correction_has_two_sides(self) -> LossConfig:
        if self.rollout_correction is not None and self.old_logprobs != "recompute":
            raise ValueError(
                "rollout_correction compares the trainer's old log-probs with the sampler's: set "
                f"loss.old_logprobs=recompute (it is {self.old_logprobs})"
            )
        return self

    @model_validator(mode="after")
    def _phases_are_losses(self) -> LossConfig:
        for phase in PHASES:
            if getattr(self, phase) is not None:
                try:
                    type(self).model_validate(self.at(phase).model_dump(exclude=set(PHASES)))
                except ValidationError as error:
                    said = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
                    raise ValueError(f"{phase}: {said}") from error
        return self

    def at(self, phase: str) -> LossConfig:
        """The loss of a step.

        Args:
            phase: of the schedule: ``"compression"``, ``"expansion"`` or ``"constant"``.
        """
        fields = type(self).model_fields
        own = self.own(phase)
        given = {name: value for name, value in own if name in fields and value is not None}
        return self.model_copy(update=given) if given else self

    def own(self, phase: str) -> PhaseLossConfig:
        """The switches of a phase; of one that has none, a section without any.

        Args:
            phase: of the schedule: ``"compression"``, ``"expansion"`` or ``"constant"``.
        """
        found = getattr(self, phase) if phase in PHASES else None
        return PhaseLossConfig() if found is None else found

    @property
    def heaviest(self) -> LossConfig:
        """The loss of the phase that takes most memory: one with an entropy bonus, if any has."""
        return max((self, *map(self.at, PHASES)), key=lambda loss: loss.entropy_coef != 0)

    def options(self) -> dict[str, Any]:
        """Keyword arguments of ``policy_loss`` that are not tensors, without ``denominator``."""
        correction = self.rollout_correction
        return {
            **{name: getattr(self, name) for name in _OPTIONS},
            "rollout_correction": None if correction is None else correction.build(),
        }


_OPTIONS = (
    "objective", "clip_low", "clip_high", "dual_clip", "delta", "cispo_bounds", "sapo_tau",
    "ratio", "aggregation", "off_policy_threshold", "kl_coef", "kl_estimator", "kl_unbiased",
    "kl_limit", "entropy_coef",
)  # fmt: skip
"""Keys that ``policy_loss`` takes as they are."""

_ONLY_WITH = {"clip": ("dual_clip", "delta"), "cispo": ("cispo_bounds",), "sapo": ("sapo_tau",)}
_OF_KL = ("kl_estimator", "kl_unbiased", "kl_limit", "reference")


def _shown(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
