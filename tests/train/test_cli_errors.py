"""A wrong command line is exactly one line that says what is taken; nothing is written."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from siri_train.cli import main
from siri_train.config.base import ConfigError
from tests.train.conftest import TINY

NO_NUMBERS = ["", "x", "-5", "-0.1", "0", "nan", "inf", "-inf", "1e30", "1e400", "2 0", "0x10",
              "²", "१", "--", "9" * 5000, "\udcff", "a\nb"]  # fmt: skip
HELP = "; see siri-train"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def run(arguments: list[str], capsys: Any) -> tuple[int, str]:
    """Exit status and the one line."""
    try:
        status = main(arguments)
    except SystemExit as error:
        status = int(error.code or 0)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("siri-train"), (arguments, err)
    assert "Traceback" not in err and len(err) < 1500
    return status, err


NUMBERS = [
    ("train", "--ranks"), ("train", "--gpu-memory"), ("verl", "--gpus"), ("verl", "--nodes"),
]  # fmt: skip


@pytest.mark.draw(30)
@pytest.mark.parametrize("text", NO_NUMBERS)
@pytest.mark.parametrize(("command", "option"), [*NUMBERS, ("demo", "--seed")])
def test_numbers(recipe: Path, capsys: Any, command: str, option: str, text: str) -> None:
    if (option, text) == ("--seed", "0"):
        return
    where = [] if command == "demo" else [str(recipe)]
    status, err = run([command, *where, f"{option}={text}"], capsys)
    assert status == 2 and f"argument {option}: got " in err and HELP in err
    assert "; takes " in err or text == "--"
    assert os.listdir() == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["trian", "x"], "did you mean train?"),
        (["train"], "required: recipe; see"),
        (["train", "tiny.yaml", "--dry-runs", "--x"], "unrecognized arguments: --dry-runs --x"),
        (["train", "tiny.yaml", "--ranks"], "expected one argument"),
        (["verl", "tiny.yaml", "--engine", "slang"], "did you mean sglang?"),
        (["convert", "a.gguf", "o", "--dtype", "float16"], "invalid choice"),
        (["export", "r", "--which", "²"], "takes low, high"),
        (["export", "r", "--which", "lwo"], "takes low, high"),
        (["export", "r"], "required: --which"),
        (["schedule", "--svg="], "takes a path that is not empty"),
        (["demo", "--out=~nobody-here/x"], "no user 'nobody-here'"),
        (["report", "a\nb"], "takes text of one line"),
        (["report", "\udcff"], "control characters"),
        (["report", "r", "a.b=c"], "unrecognized arguments: a.b=c"),
    ],
)
def test_arguments(recipe: Path, capsys: Any, arguments: list[str], says: str) -> None:
    status, err = run(arguments, capsys)
    assert status == 2 and says in err and HELP in err
    assert os.listdir() == ["tiny.yaml"]


def test_home_is_expanded_in_options(
    recipe: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The shell leaves ``~`` alone in ``--svg=~/x``."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert main(["schedule", "~/../tiny.yaml", "--svg=~/cap.svg"]) == 0
    assert (tmp_path / "home" / "cap.svg").is_file() and not Path("~").exists()


RECIPES = [
    ("", "not a file"), ("nowhere.yaml", "no such file"), (".", "not a file"),
    ("a\0b", "control"), ("x" * 5000, "at most 4000"), ("x" * 300, "too long"),
    ("tiny.yaml/x", "no such file"), ("~nobody-here/x", "no user"), ("\udcff", "control"),
    ("/dev/null", "not a file"), ("simol2-135m", "did you mean"),
]  # fmt: skip


@pytest.mark.parametrize("command", ["train", "sft", "schedule", "verl"])
@pytest.mark.parametrize(("name", "says"), RECIPES)
def test_recipes(recipe: Path, capsys: Any, command: str, name: str, says: str) -> None:
    status, err = run([command, name], capsys)
    assert status == 1 and says in err.lower() and err.startswith(f"siri-train {command}: recipe")
    assert os.listdir() == ["tiny.yaml"]


JUNK = st.binary(max_size=60) | st.text(
    st.sampled_from("abk:-?[]{}&*!|>'\"%@` \n\t#,.0~=<\\\0\x85\u2028é"), max_size=40
).map(str.encode)


@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(JUNK, st.booleans())
def test_recipes_of_junk(recipe: Path, data: bytes, appended: bool) -> None:
    """Whatever is in the file: a configuration, or one line that begins with its name."""
    from siri_train.config.recipe import load_config

    good = yaml.safe_dump(TINY).encode()
    path = recipe.with_name("junk.yaml")
    path.write_bytes(good + data if appended else data)
    try:
        load_config(path)
    except ConfigError as error:
        assert str(error).startswith(f"{path}:") and str(error).isprintable(), str(error)


@pytest.mark.draw(30)
@pytest.mark.parametrize("section", [*copy.deepcopy(TINY), "monitor", "loss", "sft"])
@pytest.mark.parametrize("value", ["5", "[1]", "x", "true", "[[{}]]", "{x: 1}", ".nan"])
def test_sections_that_are_none(recipe: Path, capsys: Any, section: str, value: str) -> None:
    if (section, value) in [("name", "5"), ("name", "x"), ("threads", "5")]:
        return
    raw = {**TINY, section: yaml.safe_load(value)}
    recipe.write_text(yaml.safe_dump(raw))
    if section == "name" and value != "x":
        raw["name"] = yaml.safe_load(value)
    status, err = run(["train", str(recipe)], capsys)
    assert status == 1 and err.startswith(f"siri-train train: {recipe}: {section}"), err
    assert os.listdir() == ["tiny.yaml"]


def test_a_chat_template_that_is_missing_is_told_before_work(recipe: Path, capsys: Any) -> None:
    status, err = run(["train", str(recipe), "data.template=chat"], capsys)
    assert status == 1 and "data.template: chat, but" in err and "data.template=plain" in err
    assert os.listdir() == ["tiny.yaml"]


@pytest.mark.parametrize("size", ["", "x", "0", "-1", "1.5", "9" * 30])
def test_a_spoilt_world_size(
    recipe: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    status, err = run(["train", str(recipe), "--dry-run"], capsys)
    assert status == 1 and "WORLD_SIZE: got " in err


@pytest.mark.parametrize(
    "row",
    ["", "5", "[]", "{", "null", '{"tokens": 1}', '{"tokens": "x"}', "[" * 5000, "\x00", "\xff"],
)
def test_rates_that_are_none(recipe: Path, capsys: Any, row: str) -> None:
    (recipe.parent / "run").mkdir()
    (recipe.parent / "run" / "metrics.jsonl").write_bytes((row + "\n").encode("latin-1"))
    status, err = run(["train", str(recipe), "--dry-run", "--rates", "run"], capsys)
    assert status == 1 and "--rates: run/metrics.jsonl has no finished step" in err
