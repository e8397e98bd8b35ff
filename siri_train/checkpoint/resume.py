"""Where a run continues: its checkpoint, and later checkpoints that no longer belong to it."""

from __future__ import annotations

import os
import reprlib
import shutil
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from siri_train.checkpoint.save_load import checkpoints, require_good, steps_done
from siri_train.config.base import ConfigError
from siri_train.config.masked import masked_settings
from siri_train.config.paths import user_path
from siri_train.config.run import RunConfig
from siri_train.files import free_name, recover, shown


def resume_from(config: RunConfig, resume: str) -> Path | None:
    """The checkpoint to continue from, None for a run that begins.

    Args:
        config: the recipe.
        resume: ``auto`` (the newest of the run's folder, if there is one), ``never``, or a folder.

    Raises:
        ConfigError: the folder does not exist or is not whole, holds a run although ``never`` was
            given, or a demo, or has done more steps than ``train.steps``.
    """
    _refuse_demo(config.run_dir)
    recover(config.run_dir / "checkpoints")
    if resume not in ("auto", "never"):
        folder = user_path(resume, "--resume")
        if not os.path.isdir(folder):  # False for a name that is too long, too
            raise ConfigError(
                f"--resume: {shown(resume)} is neither auto, never nor a folder; takes a folder "
                "such as RUN/checkpoints/step_000100"
            )
        require_good(folder, config.run_dir, named="--resume: ")
        done = steps_done(folder)
        if done > config.train.steps:
            raise ConfigError(
                f"--resume: {folder} has already done {done} steps, train.steps is "
                f"{config.train.steps}; raise it to {done} or more"
            )
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
            f"{config.run_dir} has already done {newest} steps, train.steps is "
            f"{config.train.steps}; raise it to {newest} or more, or give another folder "
            "(output=FOLDER)"
        )
    require_good(found[newest], config.run_dir)
    return found[newest]


def compare_with_before(config: RunConfig) -> None:
    """Print which settings changed since the run was started.

    Raises:
        ConfigError: the seed changed; that would be another run.
    """
    path = config.run_dir / "config.yaml"
    if not path.exists():
        return
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(loaded, Mapping):
            raise ValueError("it holds no mapping of sections")
        before = _flatten(loaded)
        if type(before.get("seed")) is not int:  # every run writes one
            raise ValueError(f"its seed is {_short(before.get('seed'))}, which is no whole number")
    # Not YAML, not UTF-8, a date that is none, nested too deep: PyYAML has many ways to say so.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        kept = free_name(path)
        shutil.copyfile(path, kept)
        print(
            f"{config.name}: {shown(path)} is damaged ({reason}), so its seed and settings cannot "
            f"be compared with today's; it is kept as {kept.name} and written anew",
            flush=True,
        )
        return
    now = _flatten(config.model_dump(mode="json"))
    # A key that the version which started the run did not have stands for its default.
    defaults = _flatten(RunConfig().model_dump(mode="json"))
    changed = [key for key in now if now[key] != before.get(key, defaults.get(key))]
    if "seed" in changed:
        raise ConfigError(
            f"seed: {config.run_dir} was started with seed {before.get('seed')}, now it is "
            f"{config.seed}; give another folder (output=FOLDER, demo: --out FOLDER)"
        )
    for key in changed:
        # An older version took an address with a password.
        was = masked_settings(_short(before.get(key, defaults.get(key))))
        print(f"{config.name}: {key} was {was}, is now {now[key]}", flush=True)


def set_aside_newer(config: RunConfig, start_step: int) -> None:
    """Rename the checkpoints after the one resumed from.

    Their steps are trained again now, and the next ``--resume auto`` must not continue them.

    Args:
        config: the recipe.
        start_step: steps done by the checkpoint resumed from.
    """
    for step, folder in checkpoints(config.run_dir).items():
        if step > start_step:
            aside = folder.with_name(f"abandoned_{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            print(f"{config.name}: {folder} set aside as {aside.name}", flush=True)


def _refuse_demo(folder: Path) -> None:
    """Refuse a demo's folder: it holds two runs and their table, which a run would overwrite.

    Raises:
        ConfigError: the folder is one.
    """
    parts = [folder / name / "config.yaml" for name in ("siri", "constant")]
    if all(part.is_file() for part in parts) and not (folder / "config.yaml").exists():
        raise ConfigError(
            f"{folder} holds the two runs of `siri-train demo`; give another folder "
            "(output=FOLDER), or continue one of them (output=FOLDER/siri)"
        )


def _short(value: Any) -> str:
    """A value on one line, of a bounded length: aliases of YAML may repeat it a billion times."""
    text = value if isinstance(value, str) else _REPR.repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:197]}..."


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 20

_MOST = 10_000
"""Settings looked at: a file whose aliases repeat one another has more than memory holds."""


def _flatten(section: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``. Raises ValueError over :data:`_MOST` entries."""
    flat: dict[str, Any] = {}
    waiting = deque([("", section)])
    seen = 0
    while waiting:
        prefix, inner = waiting.popleft()
        for key, value in inner.items():
            seen += 1
            if seen > _MOST:
                raise ValueError(f"it has more than {_MOST} entries")
            if isinstance(value, Mapping) and value:
                waiting.append((f"{prefix}{key}.", value))
            else:
                flat[f"{prefix}{key}"] = value
    return flat
