"""Checkpoints that ``from_pretrained`` loads, with the state of the trainer."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from dataclasses import replace
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
from siri_train.model.policy import Policy
from siri_train.schedule import LengthSchedule

STATE = "trainer_state.pt"
SHARDS = "optimizer"  # torch.distributed.checkpoint's folder, where the model was sharded
ROLLOUTS = "rollouts.pt"
SCHEDULE = "schedule.json"
MEMORY = "reward_memory.json"
INDEX = "checkpoint.json"
_FORMAT = 1
NAME = re.compile(r"step_[0-9]{1,15}")
# The files that decide which model is loaded; others, such as a README, may be added.
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
    schedule: LengthSchedule | None = None,
    memory: dict[str, Any] | None = None,
    tokens: int | None = None,
) -> Path:
    """Write ``checkpoints/step_XXXXXX`` aside, synchronise it, and rename it into place.

    A folder that carries the name is therefore complete. An existing one is replaced. It holds the
    model and tokenizer as ``from_pretrained`` loads them, the optimiser and the random number
    generators' states, and ``checkpoint.json``: every file's size and CRC-32. With a sharded
    model, each rank writes its part of the optimiser's state (``optimizer/``), and rank 0 the rest;
    every rank must call this.

    Args:
        run_dir: the run's folder.
        step: optimiser steps done.
        policy: model and tokenizer.
        optimizer: None for weights without trainer state.
        rollouts: a batch sampled ahead (``Rollouts.state``), written as ``rollouts.pt``.
        schedule: the run's; what its shape has learnt from the run is written as ``schedule.json``.
        memory: what the reward knows of questions, written as ``reward_memory.json``.
        tokens: response tokens sampled in these steps, for ``train.max_tokens``.

    Raises:
        CheckpointError: it could not be written; the message says why (a full disk, a quota, no
            permission, ...) and what to do.
    """
    folder = run_dir / "checkpoints" / checkpoint_name(step)
    shards = folder.with_name(f".{folder.name}.{SHARDS}.partial")
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
                    os.replace(shards, aside / SHARDS)
                state = {
                    "step": step,
                    "optimizer": optimizer.state_dict() if optimizer and not sharded else None,
                    "rng": trainer_state.rng_state(),
                }
                if adapters is not None:
                    state["adapters"] = adapters
                _save(state, aside / STATE)
                if rollouts is not None:
                    _save(rollouts, aside / ROLLOUTS)
                if schedule is not None and schedule.state is not None:
                    known = {"shape": schedule.shape, "state": schedule.state}
                    write_json(aside / SCHEDULE, known)
                if memory is not None:
                    write_json(aside / MEMORY, memory)
                files = {
                    path.relative_to(aside).as_posix(): size_and_crc(path)
                    for path in sorted(aside.rglob("*"))
                    if path.is_file()
                }
                index: dict[str, Any] = {"format": _FORMAT, "step": step, "files": files}
                if tokens is not None:
                    index["tokens"] = tokens
                write_json(aside / INDEX, index)

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
    outside the folder. The files that the model is loaded from must be in it.
    """
    if not (folder / INDEX).is_file():
        return f"not a checkpoint of siri-train ({INDEX} is missing)"
    try:
        files = listed_files(folder)
        for name, (size, crc) in files.items():
            path = folder / name
            if not inside(path, folder):
                return f"{INDEX}: {name!r} does not lie in the checkpoint"
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} is damaged: {path.stat().st_size} bytes, {size} were written"
            if size_and_crc(path) != [size, crc]:
                return f"{name} is damaged: its CRC-32 is not what was written"
    except ModelFileError as error:
        return str(error)
    except (OSError, ValueError) as error:  # unreadable; ValueError: a NUL in a name
        return f"{INDEX} is damaged, or a file that it lists cannot be read: {cause(error)}"
    unlisted = [p.name for p in folder.iterdir() if _MODEL.fullmatch(p.name)]
    if unlisted := sorted(name for name in unlisted if name not in files):
        return f"{unlisted[0]} is not among the files that {INDEX} lists, so nothing vouches for it"
    if STATE not in files:
        return f"not a checkpoint of siri-train ({STATE} is missing)"
    step = json_object(folder / INDEX, remedy="").get("step")
    if not _is_step(step):
        return f"{INDEX} is damaged: step {step!r}"
    return None


def steps_done(folder: Path) -> int:
    """The steps of a checkpoint without a :func:`problem`, from ``checkpoint.json``."""
    return json.loads((folder / INDEX).read_text(encoding="utf-8"))["step"]


def tokens_sampled(folder: Path) -> int | None:
    """The response tokens sampled until a checkpoint; None in one of an older version."""
    tokens = json.loads((folder / INDEX).read_text(encoding="utf-8")).get("tokens")
    return tokens if _is_step(tokens) else None


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def listed_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and CRC-32 of every file of a checkpoint, by its name.

    Raises:
        ModelFileError: ``checkpoint.json`` is damaged or of another format.
    """
    try:
        index = json_object(folder / INDEX, remedy="")
    except ModelFileError as error:
        said = str(error).removeprefix(f"{INDEX}: ").removeprefix("is damaged: ")
        raise ModelFileError(f"{INDEX} is damaged: {said}") from error
    version, files = index.get("format"), index.get("files")
    if version != _FORMAT:
        raise ModelFileError(f"{INDEX}: format {version!r}, this version reads {_FORMAT}")
    whole = isinstance(files, dict) and all(
        isinstance(v, list) and len(v) == 2 and all(type(n) is int for n in v)
        for v in files.values()
    )
    if not whole:
        raise ModelFileError(f"{INDEX} is damaged: files is no table of sizes and CRC-32s")
    return {name: (size, crc) for name, (size, crc) in index["files"].items()}


def inside(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder when every link is followed."""
    return path.resolve().is_relative_to(folder.resolve())


def require_good(
    folder: Path, run_dir: Path, resume: bool = True, named: str = "", stage: bool = False
) -> None:
    """Refuse a damaged or foreign checkpoint. Resume, export and eval call it first.

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
    """Restore the optimiser and the random number generators.

    A checkpoint of any number of ranks is resumed on any number of ranks.

    Args:
        folder: a checkpoint without a :func:`problem`.
        optimizer: over the model's parameters.
        model: its weights are loaded already, but for adapters.

    Returns:
        The steps done.

    Raises:
        ConfigError: the folder holds no trainer state, one of another model, or objects that are
            no tensors and numbers: those are never loaded, as they could run anything.
    """
    path = folder / STATE
    state = trainer_state.read(path)
    try:
        trainer_state.check(state, optimizer, steps_done(folder))
        if "adapters" in state:
            fsdp.load_weights(model, state["adapters"])
        # Only if checkpoint.json names it: any other folder of that name is not the run's.
        if any(name.startswith(f"{SHARDS}/") for name in listed_files(folder)):
            sharded_state.load_sharded_state(folder / SHARDS, model, optimizer)
        elif state["optimizer"] is not None:
            if fsdp.is_sharded(model):
                sharded_state.load_whole_state(state["optimizer"], model, optimizer)
            else:
                optimizer.load_state_dict(state["optimizer"])
        trainer_state.restore_rng(state["rng"])
    except Exception as error:  # a damaged file can lead to any exception
        raise ConfigError(trainer_state.unusable(path, error)) from error
    return state["step"]


def load_rollouts(folder: Path) -> dict[str, Any] | None:
    """The batch that a checkpoint holds, sampled ahead of its step; None if it holds none.

    Raises:
        ConfigError: the file cannot be read.
    """
    path = folder / ROLLOUTS
    if ROLLOUTS not in listed_files(folder):  # no checksum, so not the run's
        return None
    state = trainer_state.read(path)
    if not isinstance(state, dict) or not {"sampled_with", "batch"} <= state.keys():
        raise ConfigError(trainer_state.unusable(path, ValueError("it holds no batch of a step")))
    return state


def load_schedule(folder: Path, schedule: LengthSchedule) -> LengthSchedule:
    """The schedule with what its shape had learnt when the checkpoint was written.

    Args:
        folder: the checkpoint.
        schedule: as the recipe gives it. Returned unchanged if the checkpoint has nothing for its
            shape.

    Raises:
        ConfigError: the file cannot be read.
    """
    known = _listed_json(folder, SCHEDULE)
    if known is None:
        return schedule
    if schedule.kind.observe is None or known.get("shape") != schedule.shape:
        return schedule
    return replace(schedule, state=known.get("state"))


def load_memory(folder: Path) -> dict[str, Any] | None:
    """The reward's knowledge of questions when the checkpoint was written; None: nothing.

    Raises:
        ConfigError: the file cannot be read.
    """
    return _listed_json(folder, MEMORY)


def _listed_json(folder: Path, name: str) -> dict[str, Any] | None:
    """A file of the checkpoint; None if it has none."""
    if name not in listed_files(folder):
        return None
    try:
        return json_object(folder / name, remedy="take another checkpoint (--resume PATH)")
    except ModelFileError as error:
        raise ConfigError(f"{folder}: cannot be resumed from: {error}") from error


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
    """Delete old checkpoints.

    Args:
        run_dir: the run's folder.
        keep_last: how many of the newest stay, not counting the protected ones.
        protected: steps whose checkpoints stay.
    """
    periodic = [step for step in checkpoints(run_dir) if step not in protected]
    for step in periodic[:-keep_last]:
        shutil.rmtree(run_dir / "checkpoints" / checkpoint_name(step))


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one move."""
    replace_text(path, json.dumps(value, indent=2) + "\n")
