"""Checkpoints that ``from_pretrained`` loads, trainer state, and the siri-low/high manifest."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import torch

from siri_train import distributed, trainer_state
from siri_train.config import ConfigError
from siri_train.files import WriteError, replace_text, written_aside
from siri_train.model import Policy

_STATE = "trainer_state.pt"
_SHARDS = "optimizer"  # torch.distributed.checkpoint's folder, where the model was sharded
_ROLLOUTS = "rollouts.pt"
_INDEX = "checkpoint.json"
_FORMAT = 1


def checkpoint_name(step: int) -> str:
    """``step_000320``: the weights after 320 steps."""
    return f"step_{step:06d}"


class CheckpointError(WriteError):
    """A checkpoint could not be written; what was there before is untouched."""


def save_checkpoint(
    run_dir: Path,
    step: int,
    policy: Policy,
    optimizer: torch.optim.Optimizer | None,
    rollouts: dict[str, Any] | None = None,
) -> Path:
    """Write ``checkpoints/step_XXXXXX`` aside, synchronise it, and rename it into place.

    A folder that carries the name is therefore complete. An existing one is replaced. It holds the
    model and tokenizer as ``from_pretrained`` loads them, the optimiser and the random number
    generators' states, and ``checkpoint.json``: every file's size and CRC-32. Of a sharded model
    each rank writes its part of the optimiser's state (``optimizer/``), and rank 0 the rest; every
    rank must call this.

    Args:
        run_dir: the run's folder.
        step: optimiser steps done.
        policy: model and tokenizer.
        optimizer: None for weights without trainer state.
        rollouts: a batch sampled ahead (``Rollouts.state``), written as ``rollouts.pt``.

    Raises:
        CheckpointError: it could not be written (a full disk, a quota, no permission).
    """
    folder = run_dir / "checkpoints" / checkpoint_name(step)
    shards = folder.with_name(f".{folder.name}.{_SHARDS}.partial")
    sharded = optimizer is not None and distributed.is_sharded(policy.model)
    try:
        weights, adapters = policy.weights()  # every rank takes part
        if sharded:
            assert optimizer is not None
            distributed.on_main(shutil.rmtree, shards, True)
            distributed.save_sharded_state(shards, policy.model, optimizer)

        def write() -> None:
            with written_aside(folder) as aside:
                policy.save(aside, weights)
                if sharded:
                    os.replace(shards, aside / _SHARDS)
                state = {
                    "step": step,
                    "optimizer": optimizer.state_dict() if optimizer and not sharded else None,
                    "rng": trainer_state.rng_state(),
                }
                if adapters is not None:
                    state["adapters"] = adapters
                torch.save(state, aside / _STATE)
                if rollouts is not None:
                    torch.save(rollouts, aside / _ROLLOUTS)
                files = {
                    path.relative_to(aside).as_posix(): _size_and_crc(path)
                    for path in sorted(aside.rglob("*"))
                    if path.is_file()
                }
                write_json(aside / _INDEX, {"format": _FORMAT, "step": step, "files": files})

        distributed.on_main(write)
    except Exception as error:  # safetensors and torch.save each have an error of their own
        if distributed.is_main():
            shutil.rmtree(shards, ignore_errors=True)
        there = checkpoints(run_dir)
        kept = f"the newest one is {there[max(there)]}" if there else "there is none yet"
        free = shutil.disk_usage(run_dir).free / 2**30
        raise CheckpointError(
            f"{folder} could not be written: {error} ({free:.2f} GiB free). Nothing that was "
            f"saved before is lost, {kept}; make room and run the same command again"
        ) from error
    return folder


def checkpoints(run_dir: Path) -> dict[int, Path]:
    """Checkpoints of a run by step, ascending; :func:`problem` says whether one is whole."""
    found = {}
    for folder in sorted((run_dir / "checkpoints").glob("step_*")):
        number = folder.name.removeprefix("step_")
        if number.isdigit() and folder.is_dir():
            found[int(number)] = folder
    return found


def problem(folder: Path) -> str | None:
    """Why ``folder`` cannot be resumed from, or None if it is a whole checkpoint.

    Reads every file that ``checkpoint.json`` lists and compares size and CRC-32.
    """
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        version, files = index["format"], dict(index["files"])
        listed = [(str(name), int(size), int(crc)) for name, (size, crc) in files.items()]
    except FileNotFoundError:
        return f"not a checkpoint of siri-train ({_INDEX} is missing)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{_INDEX} is damaged: {type(error).__name__}: {error}"
    if version != _FORMAT:
        return f"{_INDEX}: format {version!r}, this version reads {_FORMAT}"
    for name, size, crc in listed:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} is damaged: {path.stat().st_size} bytes, {size} were written"
        if _size_and_crc(path) != [size, crc]:
            return f"{name} is damaged: its CRC-32 is not what was written"
    if _STATE not in files:
        return f"not a checkpoint of siri-train ({_STATE} is missing)"
    if not _is_step(index.get("step")):
        return f"{_INDEX} is damaged: step {index.get('step')!r}"
    return None


def steps_done(folder: Path) -> int:
    """The steps of a checkpoint without a :func:`problem`, from ``checkpoint.json``."""
    return json.loads((folder / _INDEX).read_text(encoding="utf-8"))["step"]


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def require_good(folder: Path, run_dir: Path) -> None:
    """Refuse a damaged or foreign checkpoint.

    Raises:
        ConfigError: the reason, and the run's newest checkpoint that is whole.
    """
    reason = problem(folder)
    if reason is None:
        return
    others = [path for _, path in sorted(checkpoints(run_dir).items(), reverse=True)]
    good = next((p for p in others if p != folder and problem(p) is None), None)
    hint = f"the newest good one is {good}: use --resume {good}" if good else "no other is whole"
    raise ConfigError(f"{folder}: {reason}; {hint}")


def load_state(folder: Path, optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> int:
    """Restore the optimiser and the random number generators; returns the steps done.

    A checkpoint of any number of ranks is resumed on any number of ranks.

    Raises:
        ConfigError: the folder holds no trainer state, one of another model, or objects that are
            no tensors and numbers: those are never loaded, as they could run anything.
    """
    path = folder / _STATE
    state = trainer_state.read(path)
    try:
        trainer_state.check(state, optimizer, steps_done(folder))
        if "adapters" in state:
            distributed.load_weights(model, state["adapters"])
        if (folder / _SHARDS).is_dir():
            distributed.load_sharded_state(folder / _SHARDS, model, optimizer)
        elif state["optimizer"] is not None:
            if distributed.is_sharded(model):
                distributed.load_whole_state(state["optimizer"], model, optimizer)
            else:
                optimizer.load_state_dict(state["optimizer"])
        trainer_state.restore_rng(state["rng"])
    except Exception as error:  # a file may hold anything: what that leads to cannot be listed
        raise ConfigError(trainer_state.unusable(path, error)) from error
    return state["step"]


def load_rollouts(folder: Path) -> dict[str, Any] | None:
    """The batch that a checkpoint holds, sampled ahead of its step; None if it holds none.

    Raises:
        ConfigError: the file cannot be read.
    """
    path = folder / _ROLLOUTS
    if not path.is_file():
        return None
    state = trainer_state.read(path)
    if not isinstance(state, dict) or not {"sampled_with", "batch"} <= state.keys():
        raise ConfigError(trainer_state.unusable(path, ValueError("it holds no batch of a step")))
    return state


def _size_and_crc(path: Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def prune(run_dir: Path, keep_last: int, protected: set[int]) -> None:
    """Delete periodic checkpoints but the newest ``keep_last``; ``protected`` steps stay."""
    periodic = [step for step in checkpoints(run_dir) if step not in protected]
    for step in periodic[:-keep_last]:
        shutil.rmtree(run_dir / "checkpoints" / checkpoint_name(step))


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one move."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def write_manifest(
    run_dir: Path, ends: list[dict[str, Any]], best: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write ``checkpoints/manifest.json``.

    Args:
        run_dir: the run's folder.
        ends: for every cycle end reached, in order: ``{"which": "siri-low" | "siri-high",
            "cycle", "step", "path", "accuracy", "tokens"}``; with ``checkpoint.lag`` also
            ``siri-low-lagged`` and ``siri-high-lagged``.
        best: the row of ``eval.jsonl`` that ``checkpoint.best`` picks, if it picks one.

    Returns:
        The manifest: the last compressed end as siri-low, the last expanded end as siri-high
        (None before the first), the best one as best where there is one, and all ends under
        ``cycles``.
    """
    manifest: dict[str, Any] = {"siri-low": None, "siri-high": None, "cycles": ends}
    for end in ends:
        manifest[end["which"]] = {k: end[k] for k in ("step", "path", "accuracy", "tokens")}
    if best is not None:
        manifest["best"] = {
            "step": best["step"],
            "path": f"checkpoints/{checkpoint_name(best['step'])}",
            "accuracy": best["accuracy"][-1],
            "tokens": best["tokens"],
        }
    write_json(run_dir / "checkpoints" / "manifest.json", manifest)
    return manifest


def export(run_dir: Path, which: str, out: str | None = None) -> Path:
    """Copy a checkpoint out of a run as ``from_pretrained`` loads it, without the trainer's state.

    Checkpoints of sharded models hold whole weights too, so this needs no ranks.

    Args:
        run_dir: the run's folder.
        which: a name of the manifest (``siri-low``, ``siri-high-lagged``, ``best``, ...) or a
            number of steps that is still kept.
        out: where to; default ``RUN/export/WHICH``.

    Raises:
        ConfigError: the run has no manifest, has not reached that end yet, or ``out`` exists.
    """
    manifest = run_dir / "checkpoints" / "manifest.json"
    if not manifest.is_file():
        raise ConfigError(f"{run_dir}: no run of siri-train (checkpoints/manifest.json is missing)")
    if which.isdigit():
        there = checkpoints(run_dir)
        if int(which) not in there:
            kept = ", ".join(map(str, there)) or "none"
            raise ConfigError(f"{run_dir}: no checkpoint of step {which}; kept are {kept}")
        which = checkpoint_name(int(which))
        end = {"path": f"checkpoints/{which}"}
    else:
        end = json.loads(manifest.read_text(encoding="utf-8")).get(which)
    if end is None:
        key = "checkpoint.best" if which == "best" else "schedule.cycle and checkpoint.lag"
        raise ConfigError(f"{run_dir}: {which} has not been reached yet (see {key})")
    folder = Path(out) if out else run_dir / "export" / which
    if folder.exists():
        raise ConfigError(f"--out: {folder} already exists")
    with written_aside(folder) as aside:
        shutil.copytree(
            run_dir / end["path"],
            aside,
            ignore=shutil.ignore_patterns(_STATE, _INDEX, _SHARDS, _ROLLOUTS),
            dirs_exist_ok=True,
        )
    return folder
