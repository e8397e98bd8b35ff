"""``checkpoints/manifest.json``: the ends that a run has reached, and copying one out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from siri_train.checkpoint.save_load import (
    INDEX,
    MEMORY,
    NAME,
    ROLLOUTS,
    SCHEDULE,
    SHARDS,
    STATE,
    checkpoint_name,
    checkpoints,
    inside,
    listed_files,
    require_good,
    write_json,
)
from siri_train.config.base import ConfigError
from siri_train.files import written_aside
from siri_train.model.files import ModelFileError, json_object
from siri_train.model.folder import check_model


def write_manifest(
    run_dir: Path, ends: list[dict[str, Any]], best: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write ``checkpoints/manifest.json``.

    Args:
        run_dir: the run's folder.
        ends: for every cycle end reached, in order: ``{"which": "siri-low" | "siri-high",
            "cycle", "step", "path", "accuracy", "tokens"}``; with ``checkpoint.lag`` also
            ``siri-low-lagged`` and ``siri-high-lagged``, with ``checkpoint.lag_window``
            ``siri-low-measured`` and ``siri-high-measured``.
        best: the record of ``eval.jsonl`` that ``checkpoint.best`` picks, if it picks one.

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
        keys = {"best": "checkpoint.best", "measured": "schedule.cycle and checkpoint.lag_window"}
        key = keys.get(which.rpartition("-")[2], "schedule.cycle and checkpoint.lag")
        raise ConfigError(f"{run_dir}: {which} has not been reached yet (see {key})")
    source = _checkpoint_at(run_dir, end, which)
    folder = Path(out) if out else run_dir / "export" / which
    if folder.exists() and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--out: {folder} already exists; give another folder, or remove it")
    if inside(folder, run_dir / "checkpoints"):
        raise ConfigError(
            f"--out: {folder} lies among the run's checkpoints, where it would be taken for one; "
            "give a folder elsewhere"
        )
    # verl's checkpoints (siri_train.integrations.verl) have neither our index nor our state.
    ours = (source / INDEX).exists() or (source / STATE).exists()
    if ours:
        require_good(source, run_dir, resume=False)
    check_model(source, "export", say=False)
    files = [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]
    with written_aside(folder) as aside:
        for name in listed_files(source) if ours else files:
            if name.split("/")[0] not in (STATE, SHARDS, ROLLOUTS, SCHEDULE, MEMORY):
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
    named = path == f"checkpoints/{name}" and NAME.fullmatch(name)
    if not named or not inside(source, there):
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
