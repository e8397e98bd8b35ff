"""Completion by TAB, asked for as the shells ask; in bash for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from siri_train.cli import main
from siri_train.commands import completion
from siri_train.config import reference
from siri_train.config.recipe import RECIPES
from siri_train.schedule import SHAPES

from .fields import FIELDS

pytest.importorskip("argcomplete", reason="needs the extra completion")

ROOT = Path(__file__).parents[2]
FOUND = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
ASK = """
eval "$(siri-train completion bash)"
complete -p siri-train >/dev/null || exit 1
while IFS= read -r COMP_LINE; do
    COMP_POINT=${#COMP_LINE} COMP_TYPE=9 COMPREPLY=()
    _python_argcomplete siri-train
    printf '%s\\t' "${COMPREPLY[@]}"
    printf '\\n'
done
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs, a model, recipes, and a ``siri-train`` for the PATH."""
    folder = tmp_path_factory.mktemp("work")
    for name in ("runs/one/config.yaml", "runs/two/metrics.jsonl", "runs/notes/x", "models/m/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name in ("mine.yaml", "models.txt"):
        (folder / name).touch()
    program = folder / "bin" / "siri-train"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m siri_train "$@"\n')
    program.chmod(0o755)
    return folder


LINES = {
    "siri-train ": {"train ": False, "train": True, "completion": True, "--help": False},
    "siri-train tr": {"train ": True, "demo": False},
    "siri-train train ": {"siri-7b": True, "mine.yaml": True, "runs/": True, "models.txt": False},
    "siri-train train siri-7b sched": {"schedule.shape=": True, "schedule.": False},
    "siri-train train siri-7b schedule.shape=": {name: True for name in SHAPES},
    "siri-train train siri-7b loss.objective=cl": {"clip ": True, "cispo": False},
    "siri-train train siri-7b seed=1 --dry-run reward.v": {"reward.verifier=": True},
    "siri-train train siri-7b data.train.3.kind=f": {"file ": True},
    "siri-train train siri-7b model.path=mod": {"models/": True, "models.txt": True},
    "siri-train train siri-7b --": {"--dry-run": True, "--rates": True, "--svg": False},
    "siri-train report ": {"runs/one": True, "runs/two": True, "runs/notes": False, "bin/": False},
    "siri-train eval models/": {"models/m/": True},
    "siri-train export runs/one --which ": {"low": True, "best": True},
    "siri-train ablate demo --method si": {"siri ": True, "dler": False},
    "siri-train ablate demo --method siri,constant-m": {
        "siri,constant-max": True,
        "siri,constant-min": True,
        "siri,siri": False,
    },
    "siri-train ablate demo --at last,siri-h": {"last,siri-high": True, "last,last": False},
    "siri-train ablate demo --vary schedule.cyc": {"schedule.cycle=": True},
    "siri-train train siri-7b --halt-on grad-norm-sp": {"grad-norm-spike ": True},
    "siri-train completion ": {"bash": True, "zsh": True, "fish": True},
    "siri-train train siri-7b nowhere.x": {},
}


@pytest.mark.costly
def test_bash_completes_lines(folder: Path) -> None:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "--norc", "-c", ASK],
        input="".join(f"{line}\n" for line in LINES),
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": FOUND},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    answers = ran.stdout.splitlines()
    assert len(answers) == len(LINES)
    for (line, wanted), answer in zip(LINES.items(), answers, strict=True):
        offered = {word for word in answer.split("\t") if word}
        assert bool(offered) == bool(wanted), line
        for word, there in wanted.items():
            assert (word in offered) is there, (line, word, offered)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_what_their_shell_reads(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert "siri-train" in text and "_ARGCOMPLETE" in text
    assert ("compdef" if shell == "zsh" else "complete ") in text
    if shutil.which(shell):  # reads it without running it
        script = tmp_path / "script"
        script.write_text(text)
        subprocess.run([shell, "-n", str(script)], check=True)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_words_with_the_line_in_the_environment(shell: str, folder: Path) -> None:
    """The environment that their scripts set; no such shell is needed."""
    line, answer = "siri-train train siri-7b loss.ratio=", folder / f"answer-{shell}"
    separator = "\n" if shell == "fish" else "\v"
    environment = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": shell,
        "_ARGCOMPLETE_IFS": separator,
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "siri_train"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": FOUND, **environment},
        stderr=(folder / "imported").open("w"),
        check=True,
    )
    words = [word.partition(":")[0] for word in answer.read_text().split(separator)]
    assert words == ["loss.ratio=token", "loss.ratio=sequence"]
    imported = (folder / "imported").read_text()
    assert "argcomplete" in imported and "pydantic" not in imported and "torch" not in imported


def test_keys_are_current_and_complete() -> None:
    assert reference.KEYS.read_text(encoding="utf-8") == reference.keys_text(), (
        "run python -m siri_train.config.reference"
    )
    leaves = {key.replace(".0.", ".N.") for key in FIELDS}
    sections = {key for key in leaves if any(other.startswith(f"{key}.") for other in leaves)}
    given = json.loads(reference.KEYS.read_text(encoding="utf-8"))
    assert leaves - sections <= set(given)
    assert {key for key in set(given) & sections if given[key] != ["null"]} == set()


def test_every_recipe_is_offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert completion.recipes("") == sorted(path.stem for path in RECIPES.glob("*.yaml"))


def test_without_argcomplete_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("argcomplete", "argcomplete.finders"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["completion", "bash"]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and "siri-kernels[completion]" in error
    assert completion.complete() == 1
