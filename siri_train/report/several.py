"""Runs from several folders on one page: each under a label of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from siri_train.files import shown

from .data import read_run_folder
from .latest import latest_rows
from .many import MOST_RUNS
from .records import Run, RunFolder


def read_several(folders: Sequence[Path], title: str) -> RunFolder:
    """Read runs, and folders of runs, for one page.

    Args:
        folders: of runs or of folders that hold runs; the same one twice counts once.
        title: of the page.

    Returns:
        The runs with different labels: their names, with the folder's name before where two are
        called the same, else with the path. The summary has the latest checkpoint of each name of
        every run, and its last. Runs after the first `MOST_RUNS` are left out, and a note says so.

    Raises:
        FileNotFoundError: a folder does not exist.
    """
    notes: list[str] = []
    found: dict[Path, Run] = {}
    for folder in folders:
        read = read_run_folder(folder)
        notes += [f"{shown(folder)}: {note}" for note in read.notes if "summary.json" not in note]
        for run in read.runs:
            found.setdefault(run.folder.resolve(), run)
    runs = _labelled(list(found.values()))
    if len(runs) > MOST_RUNS:
        left = ", ".join(run.label for run in runs[MOST_RUNS:])
        notes.insert(0, f"More than {MOST_RUNS} runs; left out: {left}.")
        runs = runs[:MOST_RUNS]
    summary = [row for run in runs for row in latest_rows(run)]
    runs.sort(key=lambda run: run.control)
    about = (
        "The verdict is of the run that it names; each has its own: siri-train report RUN --text."
    )
    return RunFolder(Path(title), runs, summary, notes, about, several=True)


def _labelled(runs: list[Run]) -> list[Run]:
    """The shortest label that no other run has: name, folder and name, path."""
    choices = [
        (run.name, f"{run.folder.resolve().parent.name}/{run.name}", shown(run.folder.resolve()))
        for run in runs
    ]
    labelled = []
    for run, names in zip(runs, choices, strict=True):
        for depth, name in enumerate(names):
            if depth == len(names) - 1 or sum(other[depth] == name for other in choices) == 1:
                labelled.append(replace(run, name=name))
                break
    return labelled
