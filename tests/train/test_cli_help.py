"""The first screen, each command's help, and what starting the command line imports."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from siri_train import cli
from siri_train.commands import parser
from siri_train.config.recipe import load_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parser.parse([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def examples(text: str) -> list[list[str]]:
    """The commands in a text, without what the shell does with them."""
    lines = re.findall(r"siri-train [^\n)`]*", text.split("example")[-1])
    return [shlex.split(re.split(r" [>#] ?", line)[0], comments=True)[1:] for line in lines]


def test_every_command_has_a_function_and_arguments() -> None:
    assert set(cli._RUN) == set(parser.COMMANDS) == set(parser._ARGUMENTS)


def test_first_screen_names_every_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys)
    for name, command in parser.COMMANDS.items():
        assert len(re.findall(rf"^  {name} +{re.escape(command.text)}$", text, re.M)) == 1
    assert max(map(len, text.splitlines())) <= 80
    for page in re.findall(r"docs/[\w.]+", text):
        assert (ROOT / page).is_file()
    session = re.findall(r"^  (siri-train .*?)(?:   .*)?$", text, re.M)
    assert len(session) == 3
    for line in session:
        parser.parse(line.split()[1:])


@pytest.mark.parametrize("name", parser.COMMANDS)
def test_examples_of_a_command_are_what_it_takes(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(capsys, name)
    assert max(map(len, text.splitlines())) <= 80
    found = examples(text)
    assert len(found) == len(parser.COMMANDS[name].examples) > 0
    for words in found:
        arguments = parser.parse(words)
        assert arguments.command == name == words[0]
        recipe = getattr(arguments, "recipe", None)
        if recipe is not None:
            load_config(recipe, arguments.overrides)


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_commands_of_the_pages_are_what_siri_train_takes(page: Path) -> None:
    """Those in blocks of code; RECIPE.yaml and the like are taken as they stand."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    for line in (line for block in blocks for line in block.splitlines()):
        words = shlex.split(line, comments=True) if line.startswith("siri-train ") else []
        if words:
            parser.parse(words[1:])


@pytest.mark.parametrize("words", [["train"], ["train", "siri-1.5b", "--rank=x"], ["trian"]])
def test_what_is_wrong_points_to_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser.parse(words)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert "--help" in error and "usage" not in error


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["report", "runs/x", "--help"]])
def test_help_and_version_import_the_standard_library_only(words: list[str]) -> None:
    """So that they are there at once, and where the trainer's packages are missing."""
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom siri_train.cli import main\n"
        f"try: main({words})\nexcept SystemExit: pass\n"
        "print(*set(sys.modules) - before, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = ran.stderr.split()
    assert "siri_train.cli" in loaded and ran.stdout
    others = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert others == {"siri_train"}
    assert not {"importlib.metadata", "inspect", "siri_train.config.run"} & set(loaded)
