"""Which run of a folder is judged, and with which others it is compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from siri_train.monitor.question_records import read_question_records
from siri_train.report.data import Run, RunFolder, read_run_folder

from .seeds import by_method, together
from .subject import Records, Subject

DEEPEST = 3
"""Folders below the given one that are looked at."""
MOST = 100
"""Runs that are read besides those of the folder."""
_FILES = ("metrics.jsonl", "eval.jsonl")
_NO_RUNS = ("checkpoints", "rollouts", "export", "sft", "sft_stage", "server", "tensorboard")


def subjects(folder: RunFolder) -> tuple[Subject, list[Subject]]:
    """The run that is judged, and the others in its folder.

    The first whose cap moves is judged; without one the first that has records. Runs of one method
    that differ in the seed alone are one: those of an arm of an ablation, and those whose recipes
    are the same but for the seed.

    Args:
        folder: as it was read; runs deeper in it (``controls/`` of a demo) are read here. The arms
            of an ablation are means of seeds, which have no questions to pair: their seeds are
            read instead.
    """
    arms: list[tuple[str, list[tuple[Run, list[str]]]]] = []
    for run in folder.runs:
        if folder.several:
            own = _seeds_of(run)
            if own:
                arms.append((run.name, own))
        else:
            arms.append((run.name, [(run, folder.notes)]))
    if not arms:
        arms = [(run.name, [(run, folder.notes)]) for run in folder.runs]
    if not folder.several:
        known = {run.folder.resolve() for run in folder.runs}
        arms += [(one[0].name, [one]) for path in _deeper(folder.folder, known)
                 if (one := _read(path)) is not None]  # fmt: skip
    filled = [(name, [one for one in own if one[0].metrics or one[0].evals]) for name, own in arms]
    arms = [arm for arm in filled if arm[1]] or arms[:1]
    alone = [own[0][0] for _, own in arms if len(own) == 1]
    labels = _labels(folder.folder, alone)
    groups: list[tuple[str, list[Subject]]] = []
    for name, own in arms:
        made = [
            _subject(run, labels.get(id(run), f"{name}, {run.folder.name}"), notes)
            for run, notes in own
        ]
        groups.append((name if len(made) > 1 else made[0].label, made))
    found = [together(label, members) for label, members in by_method(groups)]
    first = next((one for one in found if not one.run.control), found[0])
    return first, [one for one in found if one is not first]


def _seeds_of(run: Run) -> list[tuple[Run, list[str]]]:
    """The runs that a run of a page of several stands for, with notes: its seeds, or itself."""
    paths = [run.folder]
    if run.seeds > 1:
        beside = [path for path in run.folder.parent.glob("seed-*") if path.is_dir()]
        paths = sorted(beside, key=lambda path: (len(path.name), path.name))
    found = [own for path in paths if (own := _read(path)) is not None]
    if run.seeds > 1:
        return found
    alone = run.folder.name.startswith("seed-") and run.name != run.folder.name
    name = f"{run.name}, {run.folder.name}" if alone else run.name
    return [(replace(own, name=name), notes) for own, notes in found]


def _subject(run: Run, label: str, notes: Iterable[str]) -> Subject:
    told = tuple(note for note in notes if _of_damage(note))
    return Subject(run, label, _settings(run.config), _records(run.folder), told)


def _read(path: Path) -> tuple[Run, list[str]] | None:
    """The run that a folder itself holds, and notes on its files."""
    try:
        read = read_run_folder(path)
    except OSError:
        return None
    own = [run for run in read.runs if run.folder.resolve() == path.resolve()]
    return (own[0], read.notes) if own else None


def _deeper(folder: Path, known: set[Path]) -> list[Path]:
    """Run folders below ``folder`` that are not known yet."""
    found: list[Path] = []
    level = [folder]
    for _ in range(DEEPEST):
        below: list[Path] = []
        for parent in level:
            try:
                inner = [path for path in sorted(parent.iterdir()) if path.is_dir()]
            except OSError:
                continue
            below += [
                path
                for path in inner
                if not path.is_symlink() and path.name not in _NO_RUNS and path.name[:1] != "."
            ]
        found += [path for path in below if any((path / name).is_file() for name in _FILES)]
        level = below
    return [path for path in found if path.resolve() not in known][:MOST]


def _labels(folder: Path, runs: list[Run]) -> dict[int, str]:
    """A label a run: its own where only one has it, else where it lies in the folder."""
    own = [run.label for run in runs]
    names = {}
    for run in runs:
        label = run.label
        if own.count(label) > 1:
            try:
                place = run.folder.relative_to(folder).as_posix()
            except ValueError:
                place = str(run.folder)
            label = f"{label} (the folder itself)" if place == "." else place
        names[id(run)] = label
    return names


def _settings(config: str | None) -> dict[str, Any]:
    try:
        found = yaml.safe_load(config or "")
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _records(folder: Path) -> Records:
    try:
        return {(one.step, one.set): one for one in read_question_records(folder)}
    except OSError:
        return {}


def _of_damage(note: str) -> bool:
    """Whether a file is not whole; a last line that is being written is no damage."""
    lost = "left out" in note or "could not be read" in note
    return lost and "half-written" not in note
