"""How verl samples the held-out questions."""

from __future__ import annotations

from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig


def validation_samples(config: RunConfig) -> int:
    """Responses to each held-out question, of which verl has one number.

    Args:
        config: the recipe; ``data.eval`` and ``eval.samples`` are used.

    Raises:
        ConfigError: sets with different numbers.
    """
    found = {name: config.samples_of(name) for name in config.data.set_names or [""]}
    if len(set(found.values())) > 1:
        of = ", ".join(f"{name} {count}" for name, count in found.items())
        raise ConfigError(
            f"data.eval.N.samples: got {of}; verl samples all sets with one val_kwargs.n: give "
            "every set the same number, or remove the key and set eval.samples"
        )
    return next(iter(found.values()))
