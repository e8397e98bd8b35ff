"""Paths that cannot be: every command that takes one gives one line and leaves nothing behind."""

from __future__ import annotations

import ast
import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import siri_train
from siri_train.cli import main
from siri_train.config.base import ConfigError
from siri_train.config.paths import check_file, folder_made, user_path
from siri_train.config.recipe import load_config
from siri_train.files import about_a_file, explained, replace_text
from tests.train.conftest import TINY


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a recipe, a run's folder, and everything a path can run into."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(
        yaml.safe_dump({**TINY, "model": {"scratch": {}}, "sft": {"steps": 2, "batch_size": 4}})
    )
    Path("file").write_text("mine")
    Path("folder").mkdir()
    Path("dangling").symlink_to("nowhere/at/all")
    Path("loop").symlink_to("pool")
    Path("pool").symlink_to("loop")
    os.mkfifo("pipe")
    for name, odd in (("blocked", "checkpoints"), ("blocked2", "rollouts")):
        Path(name).mkdir()
        (Path(name) / odd).write_text("a file where a folder should be")
    for name, odd in (("blocked3", "metrics.jsonl"), ("blocked4", "config.yaml")):
        (Path(name) / odd).mkdir(parents=True)
    Path("locked").mkdir()
    Path("locked").chmod(0o500)
    manifest = Path("run/checkpoints/manifest.json")
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"siri-low": {"path": "checkpoints/step_000001"}}))
    (manifest.parent / "step_000001").mkdir()
    (manifest.parent / "step_000001" / "config.json").write_text("{}")
    yield tmp_path
    Path("locked").chmod(0o700)


IMPOSSIBLE = {
    "a file": "file",
    "under a file": "file/x",
    "deep under a file": "file/x/y/z",
    "too long": "y" * 300,
    "too long below": "new/" + "y" * 300 + "/run",
    "too long in all": "/".join(["y" * 200] * 30),
    "a NUL": "a\0b",
    "a line break": "a\nb",
    "an escape": "a\x1b[31mb",
    "a link to nothing": "dangling/x",
    "links in a circle": "loop",
    "below links in a circle": "loop/x",
    "a pipe": "pipe",
    "a device": "/dev/null",
    "below a device": "/dev/null/x",
    "the kernel's": "/proc/siri",
    "nobody's": "~no_such_user_here/x",
    "half a pair": "a\udc80b",
}
if os.geteuid() != 0:  # who may write everywhere
    IMPOSSIBLE |= {"no permission": "locked/x", "somebody else's": "/usr/x"}

FOLDERS_ONLY = {
    "a file for checkpoints": "blocked",
    "a file for rollouts": "blocked2",
    "a folder for metrics": "blocked3",
    "a folder for the configuration": "blocked4",
}


def recipe_with(output: str) -> str:
    """JSON, which YAML reads too: every character arrives."""
    sections = {**TINY, "output": output, "sft": {"steps": 2, "batch_size": 4}}
    Path("with.json").write_text(json.dumps({**sections, "model": {"scratch": {}}}))
    return "with.json"


WRITERS: dict[str, Callable[[str], list[str]]] = {
    "train": lambda path: ["train", recipe_with(path)],
    "sft": lambda path: ["sft", recipe_with(path)],
    "resume": lambda path: ["train", "tiny.yaml", "--resume", path],
    "demo": lambda path: ["demo", "--out", path],
    "schedule": lambda path: ["schedule", "tiny.yaml", "--svg", path],
    "report": lambda path: ["report", path],
    "export": lambda path: ["export", "run", "--which", "low", "--out", path],
    "export from": lambda path: ["export", path, "--which", "low"],
    "eval": lambda path: ["eval", path],
    "schedule beside": lambda path: ["schedule", recipe_with(path)],
}


def tree(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "other"
        if path.is_file() and not path.is_symlink():
            kind = path.read_text(errors="replace")
        found[str(path)] = kind
    return found


@pytest.mark.parametrize("command", WRITERS)
def test_an_impossible_path_is_one_line_and_nothing_is_written(
    there: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    paths = dict(IMPOSSIBLE)
    if command in ("train", "sft", "demo"):
        paths |= {} if command == "demo" else FOLDERS_ONLY
    if command == "schedule":  # the one that takes a file
        del paths["a file"]
        paths["a folder"] = "folder"
    for kind, path in paths.items():
        arguments = WRITERS[command](path)
        before = tree(there)
        try:
            status = main(arguments)
        except SystemExit as left:  # argparse checks the lengths of paths
            status = left.code
        shown = capsys.readouterr()
        assert status in (1, 2), (kind, shown)
        line = shown.err
        assert line.count("\n") == 1 and line.endswith("\n") and len(line) < 1000, (kind, line)
        assert line.startswith(f"siri-train {arguments[0]}: "), (kind, line)
        named = path if path.isprintable() else ascii(path)[1:-1]
        # of a path that is long, or fails above its end, a part says which it is
        assert any(part and part[:50] in line for part in named.split("/")), (kind, line)
        assert tree(there) == before, kind


def test_a_path_that_can_be_is_made_and_its_folders_with_it(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(there))
    assert main(["schedule", "tiny.yaml", "--svg", "~/a/b c/ü.svg"]) == 0
    assert (there / "a" / "b c" / "ü.svg").read_text().startswith("<svg")
    assert not (there / "~").exists()
    assert load_config("tiny.yaml", ["output=~/deep/run"]).run_dir == there / "deep" / "run"


@given(st.text(min_size=1, max_size=40))
@settings(derandomize=True, max_examples=300)
def test_a_users_path_is_taken_whole_or_refused_in_one_line(text: str) -> None:
    odd = not text.strip() or any(
        ord(c) < 32
        or 127 <= ord(c) < 160
        or c in "\u2028\u2029\ufffe\uffff"
        or "\ud800" <= c <= "\udfff"
        for c in text
    )
    try:
        path = user_path(text, "--out")
    except ConfigError as error:
        assert "\n" not in str(error) and str(error).startswith("--out: got ")
        assert odd or text.startswith("~")
    else:
        assert not odd and (text.startswith("~") or path == Path(text))


def test_one_function_expands_the_home_of_a_user() -> None:
    """So that every command, key and reader of data takes and refuses the same paths."""
    root = Path(siri_train.__file__).parent
    calls = [
        f"{path.relative_to(root)}: {ast.unparse(node)}"
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Attribute, ast.Name))
        and ast.unparse(node).split(".")[-1] in ("expanduser", "home", "expandvars")
    ]
    assert calls == ["files.py: os.path.expanduser"]


NUMBERS = sorted(errno.errorcode)


@pytest.mark.parametrize("named", [True, False])
def test_every_error_of_the_system_is_one_line_with_the_path(tmp_path: Path, named: bool) -> None:
    for number in NUMBERS:
        error = OSError(number, os.strerror(number), *(["/some/where"] if named else []))
        line = explained(error, tmp_path)
        assert "\n" not in line and os.strerror(number) in line
        assert ("/some/where" if named else str(tmp_path)) in line
        if named and not isinstance(error, (ConnectionError, TimeoutError)):
            about = about_a_file(error)
            assert about or isinstance(error, (ChildProcessError, InterruptedError))
    assert not about_a_file(socket.gaierror(-2, "Name or service not known"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_folder_that_takes_no_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As root, whom permissions do not stop, a disk can still refuse."""

    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "/somewhere/tmp1234")

    monkeypatch.setattr("tempfile.TemporaryFile", fails)
    with pytest.raises(ConfigError, match=f"output: {tmp_path}/new: {os.strerror(number)}"), \
            folder_made(tmp_path / "new", "output"):  # fmt: skip
        pass
    assert not list(tmp_path.iterdir())


def test_checking_a_file_changes_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("x")
    before = kept.stat()
    for path in (kept, tmp_path / "new", tmp_path / "a" / "b" / "new"):
        assert check_file(path, "--svg") == path
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert kept.stat().st_mtime_ns == before.st_mtime_ns and kept.read_text() == "x"


@given(st.text(alphabet=st.characters(), max_size=20))
@settings(derandomize=True, max_examples=100)
def test_any_text_can_be_written_and_json_stays_the_same(text: str) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"siri_test_{os.getpid()}.json"
    try:
        replace_text(path, json.dumps({"text": text}, ensure_ascii=False))
        assert json.loads(path.read_text(encoding="utf-8")) == {"text": text}
    finally:
        path.unlink(missing_ok=True)


def test_the_demo_and_a_run_of_its_recipe_do_not_share_a_folder(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, others = load_config("demo").run_dir.resolve(), Path("runs/demo").resolve()
    assert ours != others and others not in ours.parents and ours not in others.parents
    for part in ("siri", "constant"):
        (others / part).mkdir(parents=True)
        (others / part / "config.yaml").write_text("name: x")
    (others / "summary.json").write_text("the table")
    before = tree(there)
    assert main(["train", "tiny.yaml", "output=runs/demo"]) == 1
    assert "holds the two runs of `siri-train demo`" in capsys.readouterr().err
    for name in ("config.yaml", "metrics.jsonl"):
        Path("mine").mkdir(exist_ok=True)
        (Path("mine") / name).write_text("")
        assert main(["demo", "--out", "mine"]) == 1
        assert "holds a run of `siri-train train`" in capsys.readouterr().err
        assert [path.name for path in Path("mine").iterdir()] == [name]
        (Path("mine") / name).unlink()
    Path("mine").rmdir()
    assert tree(there) == before
