"""Checkpoints that ``from_pretrained`` loads, trainer state, and the siri-low/high manifest."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import torch

from siri_train import distributed
from siri_train.checkpoint import sharded_state, trainer_state
from siri_train.checkpoint.save_errors import save_failure
from siri_train.config.base import ConfigError
from siri_train.files import WriteError, replace_text, written_aside
from siri_train.model import fsdp
from siri_train.model.files import ModelFileError, cause, json_object
from siri_train.model.folder import check_model
from siri_train.model.policy import Policy

_STATE = "trainer_state.pt"
_SHARDS = "optimizer"  # torch.distributed.checkpoint's folder, where the model was sharded
_ROLLOUTS = "rollouts.pt"
_INDEX = "checkpoint.json"
_FORMAT = 1
_NAME = re.compile(r"step_[0-9]{1,15}")
# What decides which model is loaded; other files, a README say, may be put beside.
_MODEL = re.compile(
    r"config\.json|tokenizer\.json|adapter_config\.json"
    r"|(model|pytorch_model|adapter_model).*\.(safetensors|bin)"
)


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
        CheckpointError: it could not be written; the message says why (a full disk, a quota, no
            permission, whatever else) and what to do.
    """
    folder = run_dir / "checkpoints" / checkpoint_name(step)
    shards = folder.with_name(f".{folder.name}.{_SHARDS}.partial")
    sharded = optimizer is not None and fsdp.is_sharded(policy.model)
    try:
        weights, adapters = policy.weights()  # every rank takes part
        if sharded:
            assert optimizer is not None
            distributed.on_main(shutil.rmtree, shards, True)
            sharded_state.save_sharded_state(shards, policy.model, optimizer)

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
                _save(state, aside / _STATE)
                if rollouts is not None:
                    _save(rollouts, aside / _ROLLOUTS)
                files = {
                    path.relative_to(aside).as_posix(): size_and_crc(path)
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
        reason, remedy = save_failure(error, run_dir)
        raise CheckpointError(
            f"{folder} could not be written: {reason}. Nothing that was saved before is lost, "
            f"{kept}; {remedy} and run the same command again"
        ) from error
    return folder


def _save(state: dict[str, Any], path: Path) -> None:
    """``torch.save`` through Python's file, whose errors carry the system's number."""
    with path.open("wb") as file:
        torch.save(state, file)


def checkpoints(run_dir: Path) -> dict[int, Path]:
    """Checkpoints of a run by step, ascending; :func:`problem` says whether one is whole.

    Only the names that :func:`checkpoint_name` gives: anything else was not written by a run.
    """
    found = {}
    for folder in (run_dir / "checkpoints").glob("step_*"):
        number = folder.name.removeprefix("step_")
        # isdigit alone takes ² too, and 300 of them.
        if not (number.isascii() and number.isdigit() and len(number) < 16):
            continue
        if folder.name == checkpoint_name(int(number)) and folder.is_dir():
            found[int(number)] = folder
    return dict(sorted(found.items()))


def problem(folder: Path) -> str | None:
    """Why ``folder`` cannot be resumed from, or None if it is a whole checkpoint.

    Reads every file that ``checkpoint.json`` lists and compares size and CRC-32; none may lie
    outside the folder. What the model is loaded from must be listed.
    """
    if not (folder / _INDEX).is_file():
        return f"not a checkpoint of siri-train ({_INDEX} is missing)"
    try:
        files = _listed(folder)
        for name, (size, crc) in files.items():
            path = folder / name
            if not _inside(path, folder):
                return f"{_INDEX}: {name!r} does not lie in the checkpoint"
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} is damaged: {path.stat().st_size} bytes, {size} were written"
            if size_and_crc(path) != [size, crc]:
                return f"{name} is damaged: its CRC-32 is not what was written"
    except ModelFileError as error:
        return str(error)
    except (OSError, ValueError) as error:  # unreadable; ValueError: a NUL in a name
        return f"{_INDEX} is damaged, or a file that it lists cannot be read: {cause(error)}"
    unlisted = [p.name for p in folder.iterdir() if _MODEL.fullmatch(p.name)]
    if unlisted := sorted(name for name in unlisted if name not in files):
        return (
            f"{unlisted[0]} is not among the files that {_INDEX} lists, so nothing vouches for it"
        )
    if _STATE not in files:
        return f"not a checkpoint of siri-train ({_STATE} is missing)"
    step = json_object(folder / _INDEX, remedy="").get("step")
    if not _is_step(step):
        return f"{_INDEX} is damaged: step {step!r}"
    return None


def steps_done(folder: Path) -> int:
    """The steps of a checkpoint without a :func:`problem`, from ``checkpoint.json``."""
    return json.loads((folder / _INDEX).read_text(encoding="utf-8"))["step"]


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _listed(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and CRC-32 of every file of a checkpoint, by its name.

    Raises:
        ModelFileError: ``checkpoint.json`` is damaged or of another format.
    """
    try:
        index = json_object(folder / _INDEX, remedy="")
    except ModelFileError as error:
        said = str(error).removeprefix(f"{_INDEX}: ").removeprefix("is damaged: ")
        raise ModelFileError(f"{_INDEX} is damaged: {said}") from error
    version, files = index.get("format"), index.get("files")
    if version != _FORMAT:
        raise ModelFileError(f"{_INDEX}: format {version!r}, this version reads {_FORMAT}")
    whole = isinstance(files, dict) and all(
        isinstance(v, list) and len(v) == 2 and all(type(n) is int for n in v)
        for v in files.values()
    )
    if not whole:
        raise ModelFileError(f"{_INDEX} is damaged: files is no table of sizes and CRC-32s")
    return {name: (size, crc) for name, (size, crc) in index["files"].items()}


def _inside(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder when every link is followed."""
    return path.resolve().is_relative_to(folder.resolve())


def require_good(
    folder: Path, run_dir: Path, resume: bool = True, named: str = "", stage: bool = False
) -> None:
    """Refuse a damaged or foreign checkpoint: what resume, export and eval look at first.

    Args:
        folder: the checkpoint.
        run_dir: its run's folder, where another may be whole.
        resume: whether the message is to name the option that continues from that one.
        named: put before the folder: the option that gave it.
        stage: it is the supervised stage's, whose command takes no folder to continue from.

    Raises:
        ConfigError: the reason, and the run's newest checkpoint that is whole.
    """
    reason = problem(folder)
    if reason is None:
        return
    others = [path for _, path in sorted(checkpoints(run_dir).items(), reverse=True)]
    good = next((p for p in others if p != folder and problem(p) is None), None)
    use = f"use --resume {good}" if resume else "use that one"
    anew = "start anew in another folder (output=FOLDER)" if resume else "give another run's"
    if stage:
        use = f"remove {folder} to continue from there"
        anew = f"remove {run_dir} to make the supervised stage anew"
    hint = f"the newest good one is {good}: {use}" if good else f"no other is whole: {anew}"
    raise ConfigError(f"{named}{folder}: {reason}; {hint}")


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
            fsdp.load_weights(model, state["adapters"])
        # By the index: a folder of that name which it does not list was not written by the run.
        if any(name.startswith(f"{_SHARDS}/") for name in _listed(folder)):
            sharded_state.load_sharded_state(folder / _SHARDS, model, optimizer)
        elif state["optimizer"] is not None:
            if fsdp.is_sharded(model):
                sharded_state.load_whole_state(state["optimizer"], model, optimizer)
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
    if _ROLLOUTS not in _listed(folder):  # whose checksum nobody knows
        return None
    state = trainer_state.read(path)
    if not isinstance(state, dict) or not {"sampled_with", "batch"} <= state.keys():
        raise ConfigError(trainer_state.unusable(path, ValueError("it holds no batch of a step")))
    return state


def size_and_crc(path: Path) -> list[int]:
    """A file's size in bytes and the CRC-32 of its content.

    Raises:
        OSError: it cannot be read.
    """
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
        ConfigError: the run has no manifest or a damaged one, has not reached that end yet, or
            ``out`` exists (an empty folder may) or lies among the checkpoints; the checkpoint is
            damaged, does not lie in the run, or does not load.
    """
    manifest = run_dir / "checkpoints" / "manifest.json"
    if not manifest.is_file():
        raise ConfigError(
            f"{run_dir}: no run of siri-train (checkpoints/manifest.json is missing); give the "
            "folder of one"
        )
    if which.isdigit():
        there = checkpoints(run_dir)
        if int(which) not in there:
            kept = ", ".join(map(str, there)) or "none"
            raise ConfigError(
                f"{run_dir}: no checkpoint of step {which}; kept are {kept}; "
                "give --which with one of them"
            )
        which = checkpoint_name(int(which))
        end: Any = {"path": f"checkpoints/{which}"}
    else:
        try:
            end = json_object(manifest, remedy="").get(which)
        except ModelFileError as error:
            raise ConfigError(
                f"{run_dir}: checkpoints/{error}; give --which with a number of steps"
            ) from error
    if end is None:
        key = "checkpoint.best" if which == "best" else "schedule.cycle and checkpoint.lag"
        raise ConfigError(f"{run_dir}: {which} has not been reached yet (see {key})")
    source = _checkpoint_at(run_dir, end, which)
    folder = Path(out) if out else run_dir / "export" / which
    if folder.exists() and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--out: {folder} already exists; give another folder, or remove it")
    if _inside(folder, run_dir / "checkpoints"):
        raise ConfigError(
            f"--out: {folder} lies among the run's checkpoints, where it would be taken for one; "
            "give a folder elsewhere"
        )
    # verl's checkpoints (siri_train.integrations.verl) have neither our index nor our state.
    ours = (source / _INDEX).exists() or (source / _STATE).exists()
    if ours:
        require_good(source, run_dir, resume=False)
    check_model(source, "export", say=False)
    files = [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]
    with written_aside(folder) as aside:
        for name in _listed(source) if ours else files:
            if name.split("/")[0] not in (_STATE, _SHARDS, _ROLLOUTS):
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / name, aside / name)
    return folder


def _checkpoint_at(run_dir: Path, end: Any, which: str) -> Path:
    """The checkpoint that an entry of the manifest names.

    Raises:
        ConfigError: it is no entry, or names something that is not a checkpoint of this run.
    """
    path = end.get("path") if isinstance(end, dict) else None
    if not isinstance(path, str):
        raise ConfigError(
            f"{run_dir}: checkpoints/manifest.json: {which} has no path: {end!r:.80}; give --which "
            "with a number of steps"
        )
    name, there = Path(path).name, run_dir / "checkpoints"
    source = there / name
    named = path == f"checkpoints/{name}" and _NAME.fullmatch(name)
    if not named or not _inside(source, there):
        raise ConfigError(
            f"{run_dir}: checkpoints/manifest.json: {which} is at {path!r}, which is no checkpoint "
            "of this run; takes checkpoints/step_NUMBER, or give --which with a number of steps"
        )
    if not source.is_dir():
        kept = ", ".join(map(str, checkpoints(run_dir))) or "none"
        raise ConfigError(
            f"{run_dir}: {path} ({which}) is missing; kept are the steps {kept}; give --which with "
            "one of them"
        )
    return source
