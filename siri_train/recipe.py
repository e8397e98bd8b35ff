"""Recipes: YAML and ``a.b=c`` overrides become a validated configuration, or a clear error."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from siri_train.config import ConfigError, RunConfig

RECIPES = Path(__file__).parent / "recipes"


def find_recipe(recipe: str | Path) -> Path:
    """Locate a recipe: a file as given, or the packaged one of that name.

    Raises ConfigError naming the packaged recipes and the nearest one.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    packaged = {p.name: p for p in sorted(RECIPES.glob("*.yaml"))}
    for name in (path.name, f"{path.name}.yaml"):
        if name in packaged and (len(path.parts) == 1 or path.parts[-2] == "recipes"):
            return packaged[name]
    near = difflib.get_close_matches(path.name, list(packaged), n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"recipe {str(recipe)!r}: no such file, and not one of the packaged recipes "
        f"({', '.join(packaged)}){hint}"
    )


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe, apply ``a.b=c`` overrides, validate.

    Args:
        recipe: YAML file or the name of a packaged recipe.
        overrides: ``key.sub=value`` strings; values are YAML, list items are addressed by number
            (``data.train.0.limit=10``).

    Raises:
        ConfigError: unreadable YAML, malformed override, unknown key (the nearest valid one is
            named), or a value outside what the key accepts.
    """
    path = find_recipe(recipe)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(raw).__name__}")
    raw.setdefault("name", path.stem)
    return parse_config(raw, overrides, where=str(path))


def parse_config(
    raw: dict[str, Any], overrides: Sequence[str] = (), where: str = "config"
) -> RunConfig:
    """Validate a plain mapping, after applying ``overrides``. See :func:`load_config`."""
    for override in overrides:
        _apply_override(raw, override)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(item)}" for item in error.errors())
        raise ConfigError(f"{where} is not valid:\n{problems}") from error


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"override {override!r}: expected KEY.SUBKEY=VALUE")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: value is not YAML: {error}") from error
    parts = key.strip().split(".")
    node: Any = raw
    for depth, part in enumerate(parts[:-1]):
        if isinstance(node, list):
            node = node[_list_index(node, part, override)]
            continue
        if node.get(part) is None:
            # Sections a recipe leaves out exist with their defaults; an unknown name is caught
            # when the whole is validated, which names the nearest valid one.
            node[part] = {}
        node = node[part]
        if not isinstance(node, (dict, list)):
            raise ConfigError(
                f"override {override!r}: {'.'.join(parts[: depth + 1])} has no subkeys"
            )
    if isinstance(node, list):
        node[_list_index(node, parts[-1], override)] = value
    else:
        node[parts[-1]] = value


def _list_index(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ConfigError(
            f"override {override!r}: {part!r} is not an item of a list of {len(node)} (from 0)"
        )
    return int(part)


def _explain(item: Any) -> str:
    """One pydantic error as 'key: what was given, what is accepted'."""
    location = [str(part) for part in item["loc"]]
    key = ".".join(location) or "(top level)"
    given = item.get("input")
    if item["type"] == "extra_forbidden":
        accepted = _fields_at(location[:-1])
        near = difflib.get_close_matches(location[-1], accepted, n=1, cutoff=0.4)
        hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?" if near else ""
        return f"{key}: unknown key; {hint or 'accepted here: ' + ', '.join(accepted)}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error" or isinstance(given, dict):
        return f"{key}: {message}"
    if isinstance(given, float) and not math.isfinite(given):
        message = "must be a finite number"
    return f"{key}: got {given!r}; {message[0].lower()}{message[1:]}"


def _fields_at(location: Iterable[str]) -> list[str]:
    """Names valid inside the section at ``location``."""
    model: type[BaseModel] = RunConfig
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            continue  # an index into a list of sections
        found = [m for m in _section_types(field.annotation)]
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)


def _section_types(annotation: Any) -> list[type[BaseModel]]:
    # Python 3.10 takes list[...] for a type.
    if (
        get_origin(annotation) is None
        and isinstance(annotation, type)
        and issubclass(annotation, BaseModel)
    ):
        return [annotation]
    inner = getattr(annotation, "__args__", ())
    return [model for argument in inner for model in _section_types(argument)]
