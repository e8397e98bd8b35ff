"""Base class and parts of every section of the configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the key, what it got and what it takes."""


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values do not change after validation.

    Types are strict: no text or boolean for a number, no number for text, nothing is rounded.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
