"""The configuration: sections and their values, recipes in YAML, overrides, messages."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from siri_train.config.base import ConfigError

__all__ = ["ConfigError"]


def __getattr__(name: str) -> Any:
    # Not imported at once: it takes pydantic, and the help of a command imports this package.
    if name == "ConfigError":
        from siri_train.config.base import ConfigError

        return ConfigError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
