"""The configuration: sections and their values, recipes in YAML, overrides, messages."""

from siri_train.config.base import ConfigError

__all__ = ["ConfigError"]
