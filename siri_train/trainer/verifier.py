"""The verifier that a recipe names."""

from __future__ import annotations

from siri_train.config.base import ConfigError
from siri_train.config.method import RewardConfig
from siri_train.rewards import SandboxError, Verifier, make_verifier


def build_verifier(config: RewardConfig) -> Verifier:
    """The recipe's answer check.

    Raises:
        ConfigError: the package it needs is missing, or the sandbox that it needs.
    """
    try:
        return make_verifier(
            config.verifier,
            workers=config.workers,
            timeout=config.timeout,
            batch_timeout=config.batch_timeout,
            sandbox=config.sandbox,
        )
    except (ImportError, SandboxError) as error:
        raise ConfigError(f"reward.verifier: {error}") from error
