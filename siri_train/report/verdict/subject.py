"""Which run of a folder is judged, and with which others it is compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from siri_train.monitor.question_records import QuestionRecord, read_question_records
from siri_train.report.data import Evaluation, Run, RunFolder, number, read_run_folder

DEEPEST = 3
"""Folders below the given one that are looked at."""
MOST = 100
"""Runs that are read besides those of the folder."""
_FILES = ("metrics.jsonl", "eval.jsonl")
_NO_RUNS = ("checkpoints", "rollouts", "export", "sft", "sft_stage", "server", "tensorboard")

Records = Mapping[tuple[int | None, "str | None"], QuestionRecord]


@dataclass(frozen=True)
class Subject:
    """A run with what its files say beyond `Run`.

    Args:
        run: as the report reads it.
        label: different from those of all others in the folder.
        settings: its config.yaml; empty where it is missing or damaged.
        records: its evaluations question by question, by step and set.
        notes: on damaged files.
    """

    run: Run
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    records: Records = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def done(self) -> int:
        """Steps that the logs know to be done."""
        steps = [row["step"] + 1 for row in self.run.metrics[-1:]]
        return max([*steps, *(one.step for one in self.run.evals[-1:]), 0])

    @property
    def described(self) -> str:
        """The label, with the cap where it never moves."""
        caps = {number(row.get("cap")) for row in self.run.metrics} - {None}
        if self.run.control and len(caps) == 1:
            cap = f"{caps.pop():.0f}"
            if cap not in self.label:
                return f"{self.label} (constant cap {cap})"
        return self.label

    @property
    def select(self) -> str | None:
        """Name of the set by which checkpoints are chosen, if the recipe gives one."""
        name = self.setting("eval", "select")
        return name if isinstance(name, str) else None

    def setting(self, section: str, key: str) -> Any:
        """A value of config.yaml; None where it is missing.

        Args:
            section: of the recipe.
            key: in it.
        """
        found = self.settings.get(section)
        return found.get(key) if isinstance(found, dict) else None

    def count(self, section: str, key: str) -> int | None:
        """A positive whole number of config.yaml; None for anything else.

        Args:
            section: of the recipe.
            key: in it.
        """
        value = self.setting(section, key)
        whole = isinstance(value, int) and not isinstance(value, bool)
        return value if whole and 0 < value < 10**15 else None

    def ends(self, name: str) -> list[int]:
        """The steps done at compressed or expanded ends that lie behind the run.

        They are where the phase changes in metrics.jsonl, and the evaluations of that name.

        Args:
            name: "siri-low" or "siri-high".
        """
        phase = {"siri-low": "compression", "siri-high": "expansion"}[name]
        rows = self.run.metrics
        found = {one.step for one in self.run.evals if one.name == name}
        for before, after in zip(rows, rows[1:], strict=False):
            whole = after["step"] == before["step"] + 1
            if whole and before.get("phase") == phase and after.get("phase") not in (phase, None):
                found.add(after["step"])
        return sorted(found)


def subjects(folder: RunFolder) -> tuple[Subject, list[Subject]]:
    """The run that is judged, and the others in its folder.

    The first whose cap moves is judged; without one the first that has records.

    Args:
        folder: as it was read; runs deeper in it (``controls/`` of a demo) are read here. From an
            ablation, whose arms are means of seeds, comes the first seed of each arm: a mean has
            no questions to pair.
    """
    notes = {id(run): folder.notes for run in folder.runs}
    runs: list[Run] = []
    if folder.several:
        for run in folder.runs:
            own, told = _read(run.folder)
            if own is not None:
                seed = f", {run.folder.name}" if run.name != run.folder.name else ""
                own = replace(own, name=f"{run.name}{seed}")
                notes[id(own)] = told
                runs.append(own)
    runs = runs or list(folder.runs)
    known = {run.folder.resolve() for run in runs}
    for path in _deeper(folder.folder, known) if not folder.several else ():
        own, told = _read(path)
        if own is not None:
            notes[id(own)] = told
            runs.append(own)
    filled = [run for run in runs if run.metrics or run.evals]
    runs = filled or runs[:1]
    first = next((run for run in runs if not run.control), runs[0])
    labels = _labels(folder.folder, runs)
    made = [
        Subject(
            run,
            labels[id(run)],
            _settings(run.config),
            _records(run.folder),
            tuple(note for note in notes[id(run)] if _of_damage(note)),
        )
        for run in [first, *(run for run in runs if run is not first)]
    ]
    return made[0], made[1:]


def at_step(run: Run, step: int) -> Evaluation | None:
    """The evaluation after ``step`` steps; of several the last.

    Args:
        run: whose evaluations.
        step: steps done.
    """
    return next((one for one in reversed(run.evals) if one.step == step), None)


def of_set(one: Evaluation, name: str | None) -> Evaluation:
    """The figures of an evaluation on a named set; on the first where there is no such set.

    Args:
        one: an evaluation.
        name: of the set; None: the first.
    """
    return next((other for other in (one, *one.others) if other.set == name), one)


def _read(path: Path) -> tuple[Run | None, list[str]]:
    """The run that a folder itself holds, and notes on its files."""
    try:
        read = read_run_folder(path)
    except OSError:
        return None, []
    own = [run for run in read.runs if run.folder.resolve() == path.resolve()]
    return (own[0] if own else None), read.notes


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


def _records(folder: Path) -> dict[tuple[int | None, str | None], QuestionRecord]:
    try:
        return {(one.step, one.set): one for one in read_question_records(folder)}
    except OSError:
        return {}


def _of_damage(note: str) -> bool:
    """Whether a file is not whole; a last line that is being written is no damage."""
    lost = "left out" in note or "could not be read" in note
    return lost and "half-written" not in note
