"""Whatever has one of the names a run writes: cleared where it is a leftover, else told."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_train.checkpoint.save_load import checkpoint_name, checkpoints
from siri_train.cli import main
from siri_train.config.base import ConfigError
from siri_train.config.paths import _FILES, _FOLDERS, check_run_folder
from siri_train.config.recipe import parse_config
from siri_train.files import recover, replace_text, written_aside
from siri_train.train import train
from tests.train.conftest import TINY


def _file(path: Path) -> None:
    path.write_text("left over")


def _full_folder(path: Path) -> None:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "x").write_text("left over")


THINGS: dict[str, Callable[[Path], Any]] = {
    "file": _file,
    "folder": _full_folder,
    "empty folder": lambda path: path.mkdir(),
    "link to nothing": lambda path: path.symlink_to("nowhere/at/all"),
    "link in a circle": lambda path: path.symlink_to(path.name),
    "link to a folder": lambda path: path.symlink_to(".."),
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("thing", THINGS)
def test_a_leftover_under_a_name_of_ours_is_cleared(tmp_path: Path, thing: str) -> None:
    """``.NAME.partial`` and ``.NAME.old`` are the project's own: nobody's work lies there."""
    THINGS[thing](tmp_path / ".a.json.partial")
    replace_text(tmp_path / "a.json", "{}")
    for name in (".b.partial", ".b.old"):
        THINGS[thing](tmp_path / name)
    for _ in range(2):
        with written_aside(tmp_path / "b") as aside:
            (aside / "x").write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b"]
    assert (tmp_path / "b" / "x").read_text() == "new"
    THINGS[thing](tmp_path / ".b.old")
    recover(tmp_path)
    assert (tmp_path / "b" / "x").read_text() == "new"


@pytest.mark.parametrize(
    "thing", [name for name in THINGS if "folder" not in name or name[0] == "l"]
)
def test_a_folder_takes_its_name_from_anything(tmp_path: Path, thing: str) -> None:
    THINGS[thing](tmp_path / "b")
    with written_aside(tmp_path / "b") as aside:
        (aside / "x").write_text("new")
    assert (tmp_path / "b" / "x").read_text() == "new" and not (tmp_path / "b").is_symlink()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_folder_in_a_files_place_is_named_itself(tmp_path: Path) -> None:
    """Not ``.NAME.partial``, which nobody has seen."""
    _full_folder(tmp_path / "a.json")
    with pytest.raises(OSError) as caught:
        replace_text(tmp_path / "a.json", "{}")
    assert caught.value.filename == str(tmp_path / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("name", [*_FILES, *_FOLDERS])
def test_what_a_run_could_not_write_is_told_before_it_begins(
    tmp_path: Path, name: str, thing: str
) -> None:
    assert {"sft.jsonl", "server.log", "checkpoints/manifest.json"} <= {*_FILES}
    assert {"sft", "sft_stage", "server"} <= {*_FOLDERS}
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    THINGS[thing](path)
    fits = thing == "file" if name in _FILES else "folder" in thing
    if fits:
        check_run_folder(tmp_path / "run", "output")
        return
    with pytest.raises(ConfigError) as caught:
        check_run_folder(tmp_path / "run", "output")
    line = str(caught.value)
    assert line.startswith(f"output: {path}") and "\n" not in line
    assert "give another" in line


# The project's own names, and every way to be nearly one.
NUMBERS = st.one_of(
    st.integers(0, 10**17).map(str),
    st.integers(0, 10**7).map(lambda n: f"{n:06d}"),
    st.text("0123456789²³①٣十−- .", min_size=1, max_size=9),
    st.integers(1, 200).map(lambda n: "9" * n),
)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.sets(NUMBERS, max_size=6))
def test_checkpoints_are_what_a_run_has_named(
    tmp_path_factory: pytest.TempPathFactory, numbers: set[str]
) -> None:
    run = tmp_path_factory.mktemp("names")
    for number in numbers:
        (run / "checkpoints" / f"step_{number}").mkdir(parents=True)
    found = checkpoints(run)
    assert list(found) == sorted(found)
    assert all(path.name == checkpoint_name(step) for step, path in found.items())
    wanted = {checkpoint_name(n) for n in range(100)} | {checkpoint_name(10**k) for k in range(15)}
    there = {f"step_{number}" for number in numbers}
    assert there & wanted <= {path.name for path in found.values()} <= there
    shutil.rmtree(run)


@pytest.mark.draw(1)
@pytest.mark.parametrize("stray", ["optimizer", "rollouts.pt"])
def test_what_a_checkpoint_does_not_list_is_not_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stray: str
) -> None:
    """Its checksum would be nobody's: a run goes on as if it were not there."""
    output = f"output={tmp_path / 'run'}"
    train(parse_config(copy.deepcopy(TINY), [output, "train.steps=1"]))
    path = tmp_path / "run" / "checkpoints" / "step_000001" / stray
    if stray == "optimizer":
        path.mkdir()
    else:
        path.write_bytes(b"no tensors")
    train(parse_config(copy.deepcopy(TINY), [output, "train.steps=2", "rollout.asynchronous=true"]))
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    assert (tmp_path / "run" / "checkpoints" / "step_000002").is_dir()


@pytest.mark.parametrize("columns", ["1", "0", "-5", "23", "24", "9999", "x", ""])
def test_a_narrow_terminal_shows_the_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["schedule", "demo.yaml", "--svg", str(tmp_path / "s.svg")]) == 0


def test_of_several_who_make_a_folder_the_first_stays(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    killed, running = tmp_path / ".a.1-x.partial", tmp_path / ".a.2-x.partial"
    for path in (killed, running):
        path.mkdir()
    os.utime(killed, (0, 0))
    with written_aside(folder, first_stays=True) as slow:
        (slow / "x.safetensors").write_text("slow")
        with written_aside(folder, first_stays=True) as fast:
            (fast / "x").write_text("fast")
    assert sorted(path.name for path in tmp_path.iterdir()) == [running.name, "a"]
    assert [path.name for path in folder.iterdir()] == ["x"]
    with pytest.raises(OSError, match="full"), written_aside(folder, first_stays=True):
        raise OSError("full")
    (tmp_path / "file").write_text("")
    with (  # a file is no folder that another process has made
        pytest.raises(OSError),
        written_aside(tmp_path / "file", first_stays=True) as aside,
    ):
        (aside / "x").write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [running.name, "a", "file"]
