"""Shapes of known model families: what a plan needs of a model that is not on this machine.

A shape is a small JSON file in ``shapes/`` with the keys of the model's own ``config.json`` that
decide its parameters, its memory and its longest sequence, and ``hub_ids``, the models that have
this shape. ``tests/train/test_plan_families.py`` compares the parameters with the published counts.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from siri_train.config.base import ConfigError

_FOLDER = Path(__file__).parent / "shapes"


@cache
def _shapes() -> dict[str, dict[str, Any]]:
    """Every shape by hub id in lower case."""
    found = {}
    for path in sorted(_FOLDER.glob("*.json")):
        shape = json.loads(path.read_text(encoding="utf-8"))
        for name in shape["hub_ids"]:
            found[name.lower()] = shape
    return found


def known_models() -> list[str]:
    """The hub ids whose shape is packaged, sorted."""
    names = (name for shape in _shapes().values() for name in shape["hub_ids"])
    return sorted(set(names), key=str.lower)


def known_config(name: str, key: str = "model.path") -> Any:
    """The configuration of a known model (transformers' ``PretrainedConfig``), without a download.

    Args:
        name: a hub id, in any case.
        key: the recipe key that named it, for the message.

    Raises:
        ConfigError: no shape of that name is packaged; the message lists those that are.
    """
    shape = _shapes().get(name.lower())
    if shape is None:
        raise ConfigError(
            f"{key}: {name!r} is no folder here, and no model whose shape is known; a plan takes a "
            "folder that holds its config.json (that file is enough), or one of "
            f"{', '.join(known_models())}"
        )
    values = {key: value for key, value in shape.items() if key not in ("hub_ids", "model_type")}
    config: Any = AutoConfig.for_model(shape["model_type"], **values)
    config._attn_implementation = "sdpa"
    return config
