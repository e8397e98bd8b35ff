"""Where a run continues: the checkpoint, and what of its folder no longer belongs to it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from siri_train.checkpoint import checkpoints, require_good
from siri_train.config import ConfigError, RunConfig
from siri_train.files import recover


def resume_from(config: RunConfig, resume: str) -> Path | None:
    """The checkpoint to continue from, None for a run that begins.

    Args:
        config: the recipe.
        resume: ``auto`` (the newest of the run's folder, if there is one), ``never``, or a folder.

    Raises:
        ConfigError: the folder does not exist or is not whole, holds a run although ``never`` was
            asked for, or has done more steps than ``train.steps``.
    """
    recover(config.run_dir / "checkpoints")
    if resume not in ("auto", "never"):
        folder = Path(resume)
        if not folder.is_dir():
            raise ConfigError(f"--resume: {resume!r} is neither auto, never nor a folder")
        require_good(folder, config.run_dir)
        return folder
    found = checkpoints(config.run_dir)
    if resume == "never" and (found or (config.run_dir / "metrics.jsonl").exists()):
        raise ConfigError(
            f"{config.run_dir} already holds a run; give another output=FOLDER, remove it, or use "
            "--resume auto"
        )
    if not found:
        return None
    newest = max(found)
    if newest > config.train.steps:
        raise ConfigError(
            f"{config.run_dir} has already done {newest} steps, train.steps is {config.train.steps}"
        )
    require_good(found[newest], config.run_dir)
    return found[newest]


def compare_with_before(config: RunConfig) -> None:
    """Say what changed since the run was started.

    Raises:
        ConfigError: the seed did: that would be another run.
    """
    path = config.run_dir / "config.yaml"
    if not path.exists():
        return
    before = _flatten(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    now = _flatten(config.model_dump(mode="json"))
    changed = [key for key in now if now[key] != before.get(key)]
    if "seed" in changed:
        raise ConfigError(
            f"seed: {config.run_dir} was started with seed {before.get('seed')}, now it is "
            f"{config.seed}; give another folder (output=FOLDER, demo: --out FOLDER)"
        )
    for key in changed:
        print(f"{config.name}: {key} was {before.get(key)}, is now {now[key]}", flush=True)


def set_aside_newer(config: RunConfig, start_step: int) -> None:
    """Rename checkpoints past the one resumed from: they belong to a history that is now written
    anew, and the next ``--resume auto`` must not continue it."""
    for step, folder in checkpoints(config.run_dir).items():
        if step > start_step:
            aside = folder.with_name(f"abandoned_{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            print(f"{config.name}: {folder} set aside as {aside.name}", flush=True)


def _flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
