"""A run's folder as the bench compares it: settings, metrics and responses, step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from siri_train.config.base import ConfigError
from siri_train.config.recipe import load_config
from siri_train.config.run import RunConfig

PATHS = ("name", "output", "model.path")  # say where a run is, not what it does


class Run(NamedTuple):
    """A run.

    Args:
        settings: the whole configuration by key, without ``PATHS``.
        metrics: ``metrics.jsonl``.
        responses: of each step the prompts, responses and lengths that were kept; empty: none were.
        evaluations: ``eval.jsonl``; empty where there is none.
    """

    settings: dict[str, Any]
    metrics: list[dict[str, Any]]
    responses: list[list[tuple[str, str, int]]]
    evaluations: list[dict[str, Any]]


def read_run(folder: Path) -> Run:
    """Read a run that has ended, or as far as it is.

    Args:
        folder: of the run, as ``output`` of its recipe says.

    Raises:
        SystemExit: it has no metrics or no configuration, or misses a step.
    """
    try:
        metrics = _lines(folder / "metrics.jsonl")
        settings = settings_of(load_config(folder / "config.yaml"))
        if [record["step"] for record in metrics] != list(range(len(metrics))) or not metrics:
            raise ValueError("metrics.jsonl has not every step once, from 0")
        responses = [
            _responses(folder / f"rollouts/step_{step:06d}.jsonl") for step in range(len(metrics))
        ]
        evaluations = _lines(folder / "eval.jsonl", required=False)
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise SystemExit(f"bench curves: {folder} is no run: {error}") from None
    return Run(settings, metrics, responses, evaluations)


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Every key of a configuration with its value, but for those that are paths of the run.

    Args:
        config: a recipe's or a run's.
    """
    found: dict[str, Any] = {}

    def add(section: dict[str, Any], begin: str) -> None:
        for key, value in section.items():
            if isinstance(value, dict):
                add(value, f"{begin}{key}.")
            elif begin + key not in PATHS:
                found[begin + key] = value

    add(config.model_dump(mode="json"), "")
    return found


def changed(settings: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The settings that are not those of ``base``.

    Args:
        settings: of a run.
        base: of another, or of the recipe.
    """
    return {key: value for key, value in settings.items() if base.get(key) != value}


def _responses(path: Path) -> list[tuple[str, str, int]]:
    return [
        (line["prompt"], line["response"], line["tokens"]) for line in _lines(path, required=False)
    ]


def _lines(path: Path, required: bool = True) -> list[Any]:
    if not required and not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
