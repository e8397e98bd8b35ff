"""Recipes: YAML and ``a.b=c`` overrides become a validated configuration, or a clear error."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from siri_train.config.base import ConfigError
from siri_train.config.explain import explain, shown_value
from siri_train.config.override import apply_override
from siri_train.config.run import RunConfig
from siri_train.config.text import expand
from siri_train.config.yaml_core import read_yaml_file

RECIPES = Path(__file__).parents[1] / "recipes"


def find_recipe(recipe: str | Path) -> Path:
    """Locate a recipe: a file as given, or the packaged one of that name.

    Raises:
        ConfigError: there is neither; it names the packaged recipes and the nearest one.
    """
    packaged = {p.name: p for p in sorted(RECIPES.glob("*.yaml"))}
    takes = f"takes a YAML file or one of the packaged recipes ({', '.join(packaged)})"
    try:
        path = Path(expand(str(recipe)))
        if path.is_file():
            return path
        if path.exists():
            raise ConfigError(f"recipe {shown_value(str(recipe))}: is not a file; {takes}")
    except (ValueError, OSError) as error:  # a name that no file can have; no permission
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"recipe {shown_value(str(recipe))}: {reason}; {takes}") from error
    for name in (path.name, f"{path.name}.yaml"):
        if name in packaged and (len(path.parts) == 1 or path.parts[-2] == "recipes"):
            return packaged[name]
    near = difflib.get_close_matches(path.name, list(packaged), n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"recipe {shown_value(str(recipe))}: no such file; {takes}{hint}")


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe, apply ``a.b=c`` overrides, validate.

    Args:
        recipe: YAML file or the name of a packaged recipe; see :mod:`siri_train.config.yaml_core`.
        overrides: ``key.sub=value`` strings; list items are addressed by number
            (``data.train.0.limit=10``). See :func:`siri_train.config.override.apply_override`.

    Raises:
        ConfigError: unreadable YAML, malformed override, unknown key (the nearest valid one is
            named), or a value outside what the key accepts; always one line.
    """
    path = find_recipe(recipe)
    raw = read_yaml_file(path)
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: got {shown_value(raw)}; takes a mapping of sections")
    raw.setdefault("name", path.stem)
    return parse_config(raw, overrides, where=str(path))


def parse_config(
    raw: dict[str, Any], overrides: Sequence[str] = (), where: str = "config"
) -> RunConfig:
    """Validate a plain mapping, after applying ``overrides``. See :func:`load_config`.

    Args:
        raw: what YAML gave; not changed.
        overrides: as ``load_config`` takes them.
        where: what errors begin with.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    raw = deepcopy(raw)
    try:
        for override in overrides:
            apply_override(raw, override, RunConfig)
        return RunConfig.model_validate(raw)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, RunConfig)}") from error
