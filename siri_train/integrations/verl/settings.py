"""The section ``siri`` of verl's configuration, which agent loop, reward and checkpoints share."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from siri_train.config.base import ConfigError, Section
from siri_train.config.method import RewardConfig, ScheduleConfig
from siri_train.config.plugins import Plugin
from siri_train.rewards import require_fit, reward_options

AGENT_LOOP, REWARD_MANAGER = "siri_single_turn", "siri_capped"


class VerlSettings(Section):
    """Settings that verl has no key for; with hydra ``+siri.schedule.max_len=16384`` and so on."""

    plugins: list[Plugin] = []
    """As in a recipe; every worker of verl imports them."""
    schedule: ScheduleConfig
    """The moving cap, as in a recipe."""
    reward: RewardConfig = RewardConfig()
    """``workers`` has no meaning here: verl starts ``reward.num_workers`` managers."""
    budgets: list[int] = []
    """Validation also reports ``siri_acc_at_N`` for each of these numbers of tokens."""
    lag: int = Field(0, ge=0)
    """As ``checkpoint.lag`` of a recipe."""


def settings_of(config: Any) -> VerlSettings:
    """The checked section ``siri`` of verl's whole configuration (a ``DictConfig``).

    Raises:
        ConfigError: the section is missing, a key in it is missing or wrong, or the shape needs
            more than the step.
    """
    from omegaconf import OmegaConf

    section = config.get("siri")
    if section is None:
        raise ConfigError(
            "siri: this section is missing; give +siri.schedule.max_len=N, .min_len and .cycle, or "
            "let `siri-train verl RECIPE` write the whole command"
        )
    try:
        settings = VerlSettings.model_validate(OmegaConf.to_container(section, resolve=True))
    except ValidationError as error:
        problems = "; ".join(
            f"siri.{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}"
            for e in error.errors()
        )
        raise ConfigError(problems) from error
    _require_fit(settings)
    try:
        settings.schedule.build().require_stateless("verl")
    except ValueError as error:
        raise ConfigError(f"siri.schedule.{error}") from error
    longest = config.data.max_response_length
    if settings.schedule.max_len > longest:
        raise ConfigError(
            f"data.max_response_length: got {longest}; takes at least siri.schedule.max_len, "
            f"{settings.schedule.max_len}: verl truncates every response there"
        )
    return settings


def _require_fit(settings: VerlSettings) -> None:
    name, schedule = settings.reward.function, settings.schedule.build()
    options = reward_options(name, settings.reward.options)
    try:
        require_fit(name, options, schedule.lowest, schedule.max_len)
    except ValueError as error:
        raise ConfigError(f"siri.reward.{error}") from error
