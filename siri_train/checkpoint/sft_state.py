"""The files of the supervised stage: its checkpoints, its log, its finished start.

While it runs, ``RUN/sft_stage`` holds checkpoints (:mod:`siri_train.checkpoint.save_load`) and
the settings it was begun with. The start ``RUN/sft`` appears when all steps are done, and
``sft_stage`` is removed: a stage that is half done is never used as a start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from siri_train.checkpoint.save_errors import save_failure
from siri_train.checkpoint.save_load import (
    checkpoints,
    prune,
    require_good,
    save_checkpoint,
    write_json,
)
from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig
from siri_train.files import WriteError, append_record, recover, written_aside
from siri_train.model.policy import Policy
from siri_train.monitor.run_logs import keep_records

_SETTINGS = "sft.json"


class Stage:
    """The files of one supervised stage.

    Args:
        config: the recipe.

    Attributes:
        start: ``RUN/sft``, the finished start.
        dir: ``RUN/sft_stage``, where checkpoints are while the stage runs.
        log: ``RUN/sft.jsonl``, a record a step.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.start = config.run_dir / "sft"
        self.dir = config.run_dir / "sft_stage"
        self.log = config.run_dir / "sft.jsonl"

    def finished(self, resume: str) -> bool:
        """Whether the start is there already, made with these settings.

        Args:
            resume: ``auto`` or ``never``.

        Raises:
            ConfigError: a start made with other settings is there; the folder holds a stage or a
                training run although ``never`` was given or no start is there.
        """
        run = self.config.run_dir
        recover(run)
        there = (self.start / "config.json").is_file()
        if resume == "never" and (there or checkpoints(self.dir)):
            raise ConfigError(
                f"--resume: never, but {self.start if there else self.dir} already holds a "
                "supervised stage; give another output=FOLDER, remove it, or use --resume auto"
            )
        if not there:
            if checkpoints(run) or (run / "metrics.jsonl").exists():
                raise ConfigError(
                    f"output: {run} already holds a training run that did not begin from a "
                    "supervised start; give another folder (output=FOLDER)"
                )
            return False
        # A start made before settings were kept with it cannot be compared.
        changed = self._changed(self.start / _SETTINGS)
        if changed:
            key, before, now = changed[0]
            raise ConfigError(
                f"{key}: {self.start} was made with {before!r}, now it is {now!r}"
                + (f" (and {len(changed) - 1} more settings changed)" if changed[1:] else "")
                + f"; give another folder (output=FOLDER), or remove {self.start} to make it anew"
            )
        shutil.rmtree(self.dir, ignore_errors=True)  # a kill right after the start was written
        return True

    def source(self) -> Path | None:
        """The newest checkpoint of a stage that is half done, None for one that begins.

        Raises:
            ConfigError: it is damaged, was begun with another seed, or has done more steps than
                ``sft.steps``.
        """
        assert self.config.sft is not None
        recover(self.dir / "checkpoints")
        found = checkpoints(self.dir)
        if not found:
            return None
        newest, steps = max(found), self.config.sft.steps
        if newest > steps:
            raise ConfigError(
                f"sft.steps: {steps}, but {self.dir} has already done {newest}; give {newest} or "
                "more, or another folder (output=FOLDER)"
            )
        require_good(found[newest], self.dir, stage=True)
        for key, before, now in self._changed(self.dir / _SETTINGS):
            if key == "seed":
                raise ConfigError(
                    f"seed: {self.dir} was begun with seed {before}, now it is {now}; give another "
                    "folder (output=FOLDER)"
                )
            print(f"{self.config.name} sft: {key} was {before}, is now {now}", flush=True)
        return found[newest]

    def prepare(self, step: int) -> list[dict[str, Any]]:
        """Make the folders and trim the log to ``step``; returns the records until then."""
        self.dir.mkdir(parents=True, exist_ok=True)
        write_json(self.dir / _SETTINGS, self._settings())
        if not step:
            self.log.unlink(missing_ok=True)
        rows, notices = keep_records(self.log, below=step)
        for notice in notices:
            print(f"{self.config.name} sft: {notice}", flush=True)
        return rows

    def record(self, row: dict[str, Any]) -> None:
        """Append one step's record to the log."""
        append_record(self.log, row)

    def save(self, done: int, policy: Policy, optimizer: torch.optim.Optimizer) -> Path:
        """The checkpoint after ``done`` steps, written if it is not there yet.

        Args:
            done: steps done.
            policy: model and tokenizer.
            optimizer: of the stage.

        Raises:
            CheckpointError: it could not be written; older ones are untouched.
        """
        there = checkpoints(self.dir).get(done)
        if there is None:
            there = save_checkpoint(self.dir, done, policy, optimizer)
            prune(self.dir, self.config.checkpoint.keep_last, set())
        return there

    def forget_after(self, step: int) -> Path | None:
        """Remove checkpoints of more than ``step`` steps; returns the newest that is left."""
        for done, folder in checkpoints(self.dir).items():
            if done > step:
                shutil.rmtree(folder)
        left = checkpoints(self.dir)
        if not left:
            shutil.rmtree(self.dir, ignore_errors=True)
        return left[max(left)] if left else None

    def finish(self, policy: Policy) -> Path:
        """Write the start as an ordinary ``from_pretrained`` folder and remove the checkpoints.

        Raises:
            WriteError: it could not be written; the checkpoints are untouched.
        """
        weights, _ = policy.weights()  # adapters merged
        try:
            with written_aside(self.start) as aside:
                policy.save(aside, weights)
                write_json(aside / _SETTINGS, self._settings())
        except Exception as error:  # safetensors has errors of its own
            reason, remedy = save_failure(error, self.config.run_dir)
            raise WriteError(
                f"{self.start} could not be written: {reason}. The checkpoints in {self.dir} are "
                f"whole; {remedy} and run the same command again"
            ) from error
        shutil.rmtree(self.dir, ignore_errors=True)
        return self.start

    def _settings(self) -> dict[str, Any]:
        """The settings that decide the start's weights, as plain values by dotted key."""
        everything = self.config.model_dump(mode="json")
        data = {key: everything["data"][key] for key in ("train", "template", "system")}
        data["instruction"] = everything["data"]["instruction"]
        think = {"think": everything["reward"]["think"]}
        kept = {key: everything[key] for key in ("seed", "model", "sft")}
        return _flat({**kept, "data": data, "reward": think})

    def _changed(self, file: Path) -> list[tuple[str, Any, Any]]:
        """Key, value then, value now, of every setting that differs from those in ``file``."""
        if not file.is_file():
            return []
        try:
            before = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{file}: damaged ({error}); remove {file.parent} to make the supervised stage "
                "anew, or give another folder (output=FOLDER)"
            ) from error
        # Through JSON and back: tuples became lists on the disk. Keys that only one side knows are
        # another version's.
        now = json.loads(json.dumps(self._settings()))
        return [
            (key, before[key], now[key]) for key in now if before.get(key, now[key]) != now[key]
        ]


def refuse_half_done(config: RunConfig) -> None:
    """Refuse to train from the base model while the recipe's supervised stage is half done.

    Raises:
        ConfigError: naming the steps done and the command that continues.
    """
    if config.sft is None:
        return
    stage = Stage(config)
    found = checkpoints(stage.dir)
    if found and not (stage.start / "config.json").is_file():
        raise ConfigError(
            f"sft: {stage.dir} holds a supervised stage that is half done ({max(found)} of "
            f"{config.sft.steps} steps); run `siri-train sft` with this recipe again to finish "
            f"it, or remove {stage.dir} to train from the base model"
        )


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
