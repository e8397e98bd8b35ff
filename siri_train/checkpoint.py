"""Checkpoints that ``from_pretrained`` loads, trainer state, and the siri-low/high manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from siri_train.config import ConfigError
from siri_train.files import replace_text, written_aside
from siri_train.model import Policy

_STATE = "trainer_state.pt"


def checkpoint_name(step: int) -> str:
    """``step_000320``: the weights after 320 steps."""
    return f"step_{step:06d}"


def save_checkpoint(
    run_dir: Path, step: int, policy: Policy, optimizer: torch.optim.Optimizer | None
) -> Path:
    """Write ``checkpoints/step_XXXXXX`` aside and rename it into place.

    A folder that carries the name is therefore complete. An existing one is replaced.

    Args:
        run_dir: the run's folder.
        step: optimiser steps done.
        policy: model and tokenizer.
        optimizer: None for weights without trainer state.
    """
    folder = run_dir / "checkpoints" / checkpoint_name(step)
    with written_aside(folder) as aside:
        policy.save(aside)
        state = {"step": step, "optimizer": optimizer.state_dict() if optimizer else None}
        torch.save(state, aside / _STATE)
    return folder


def checkpoints(run_dir: Path) -> dict[int, Path]:
    """Complete checkpoints of a run by step, ascending."""
    found = {}
    for folder in sorted((run_dir / "checkpoints").glob("step_*")):
        number = folder.name.removeprefix("step_")
        if number.isdigit() and (folder / _STATE).is_file():
            found[int(number)] = folder
    return found


def load_state(folder: Path, optimizer: torch.optim.Optimizer) -> int:
    """Restore the optimiser; returns the steps done.

    Raises:
        ConfigError: the folder holds no trainer state, or one of another model.
    """
    path = folder / _STATE
    if not path.is_file():
        raise ConfigError(f"{folder}: not a checkpoint of siri-train ({_STATE} is missing)")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["optimizer"] is not None:
            optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError, EOFError) as error:
        raise ConfigError(f"{path}: cannot be resumed from: {error}") from error
    return int(state["step"])


def prune(run_dir: Path, keep_last: int, protected: set[int]) -> None:
    """Delete periodic checkpoints but the newest ``keep_last``; ``protected`` steps stay."""
    periodic = [step for step in checkpoints(run_dir) if step not in protected]
    for step in periodic[:-keep_last]:
        shutil.rmtree(run_dir / "checkpoints" / checkpoint_name(step))


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one move."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def write_manifest(run_dir: Path, ends: list[dict[str, Any]]) -> dict[str, Any]:
    """Write ``checkpoints/manifest.json``.

    Args:
        run_dir: the run's folder.
        ends: for every cycle end reached, in order: ``{"which": "siri-low" | "siri-high",
            "cycle", "step", "path", "accuracy", "tokens"}``.

    Returns:
        The manifest: the last compressed end as siri-low, the last expanded end as siri-high
        (None before the first), and all ends under ``cycles``.
    """
    manifest: dict[str, Any] = {"siri-low": None, "siri-high": None, "cycles": ends}
    for end in ends:
        manifest[end["which"]] = {k: end[k] for k in ("step", "path", "accuracy", "tokens")}
    write_json(run_dir / "checkpoints" / "manifest.json", manifest)
    return manifest


def export(run_dir: Path, which: str, out: str | None = None) -> Path:
    """Copy siri-low or siri-high out of a run, without the trainer's state.

    Args:
        run_dir: the run's folder.
        which: ``siri-low`` or ``siri-high``.
        out: where to; default ``RUN/export/WHICH``.

    Raises:
        ConfigError: the run has no manifest, has not reached that end yet, or ``out`` exists.
    """
    manifest = run_dir / "checkpoints" / "manifest.json"
    if not manifest.is_file():
        raise ConfigError(f"{run_dir}: no run of siri-train (checkpoints/manifest.json is missing)")
    end = json.loads(manifest.read_text(encoding="utf-8")).get(which)
    if end is None:
        raise ConfigError(f"{run_dir}: {which} has not been reached yet (see schedule.cycle)")
    folder = Path(out) if out else run_dir / "export" / which
    if folder.exists():
        raise ConfigError(f"--out: {folder} already exists")
    with written_aside(folder) as aside:
        shutil.copytree(
            run_dir / end["path"],
            aside,
            ignore=shutil.ignore_patterns(_STATE),
            dirs_exist_ok=True,
        )
    return folder
