"""What git tracks: nothing that ``.gitignore`` holds, and no path of somebody's machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MACHINE = re.compile(
    r"(?<![\w.~/$}>-])/(?:home|Users|root|mnt|media|scratch|work|workspace|data\d*|private|srv"
    r"|var/folders|opt|tmp|usr/local/lib/python)/(?!user/|you/|me/|(?:x|run)\b(?!/))"
    r"[\w.-]+/?[\w./-]*"
    r"|\b[A-Z]:\\\\?Users\\"
)
"""A path below somebody's home or work folder; ``/home/user/``, ``/tmp/x`` and ``/tmp/run`` in an
example name nobody."""

OUTPUT = re.compile(r"(?:^|/)(?:outputs|runs|wandb|trackio|mlruns|lightning_logs)/|\.(?:log|pyc)$")
"""What runs write, wherever it lies."""


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    ).stdout


def ignored(folder: Path) -> list[str]:
    """Tracked files that ``.gitignore`` says are none of the project's."""
    listed = git(folder, "ls-files", "-z", "--cached", "--ignored", "--exclude-standard")
    return [name for name in listed.split("\0") if name]


def outputs(folder: Path) -> list[str]:
    """Tracked files that a run has written."""
    return [name for name in git(folder, "ls-files", "-z").split("\0") if OUTPUT.search(name)]


def machine_paths(folder: Path) -> list[str]:
    """``FILE:LINE: PATH`` of the tracked text files, this one left out."""
    found = []
    for name in git(folder, "ls-files", "-z").split("\0"):
        path = folder / name
        if not name or path.is_symlink() or not path.is_file() or path.name == Path(__file__).name:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            found += [f"{name}:{number}: {m[0]}" for m in MACHINE.finditer(line)]
    return found


@pytest.fixture
def checkout() -> Path:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing is tracked")
    return ROOT


def test_nothing_is_tracked_that_gitignore_holds(checkout: Path) -> None:
    assert ignored(checkout) == []


def test_no_output_of_a_run_is_tracked(checkout: Path) -> None:
    assert outputs(checkout) == []


def test_no_tracked_file_names_a_machines_path(checkout: Path) -> None:
    assert machine_paths(checkout) == []


ARTEFACTS = [
    "outputs/2026-11-24/12-00-00/.hydra/config.yaml", "runs/demo/report.html", "models/x/a.bin",
    "data/q.jsonl", "siri_train/__pycache__/x.pyc", "dist/x.whl", ".venv/pyvenv.cfg",
    "wandb/run-1/logs/debug.log", "bench/outputs/step.log", "examples/runs/demo/metrics.jsonl",
    ".coverage", "train.log",
]  # fmt: skip
NAMED = [
    "/home/ann/x.py",
    "/Users/bob/runs/a",
    "/mnt/disk1/models",
    "/scratch/me2/job",
    "/root/a/b",
    "/work/main/x",
    "/tmp/brief/notes.md",
    "/opt/models",
]
FINE = [
    "~/x",
    "/home/user/x",
    "/dev/null",
    "/tmp/x",
    "/tmp/run",
    "/usr/bin/env",
    "https://a.b/home/c/d",
    "a/b",
]


def test_both_checks_find_what_is_added(tmp_path: Path) -> None:
    """In a repository with this one's ``.gitignore``, each artefact and each path is found."""
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    for name in ARTEFACTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    git(tmp_path, "add", ".")
    assert ignored(tmp_path) == []
    git(tmp_path, "add", "-f", ".")
    assert sorted(ignored(tmp_path)) == sorted(ARTEFACTS)
    written = ("outputs/", "runs/", "wandb/", "bench/outputs/", "examples/runs/", "train.log")
    compiled = "siri_train/__pycache__/"
    assert sorted(outputs(tmp_path)) == sorted(
        name for name in ARTEFACTS if name.startswith((*written, compiled))
    )
    (tmp_path / "notes.md").write_text("\n".join(["see", *NAMED, *FINE]))
    git(tmp_path, "add", "notes.md")
    expected = [f"notes.md:{n}: {path}" for n, path in enumerate(NAMED, start=2)]
    assert machine_paths(tmp_path) == expected
