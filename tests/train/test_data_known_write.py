"""``siri-train data get`` that fails at each of its writes and renames in turn."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from siri_train.cli import main
from siri_train.data.known import write
from siri_train.data.known.fetch import file_sha256
from siri_train.rewards import ExactVerifier

WORDS = ["data", "get", "gsm8k", "--from", "in", "--force"]
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and the verifier that needs no processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("siri_train.commands.data._verifier", lambda: (ExactVerifier(), "exact"))


def source(version: str) -> None:
    """Two splits of a version of the set."""
    Path("in").mkdir(exist_ok=True)
    for split in ("train", "test"):
        row = {"question": f"{version} {split}?", "answer": "#### 7"}
        Path(f"in/{split}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")


def there() -> dict[str, bytes]:
    """Every file under ``data``, hidden ones too."""
    return {str(p): p.read_bytes() for p in Path("data").rglob("*") if p.is_file()}


def made(version: str) -> dict[str, bytes]:
    """The set of a version, whole."""
    source(version)
    assert main(WORDS) == 0
    return there()


def is_described() -> bool:
    """Whether the card names the files that are there."""
    card = json.loads(Path("data/gsm8k/card.json").read_text(encoding="utf-8"))
    return all(
        part["sha256"] == file_sha256(Path("data/gsm8k") / part["file"]) for part in card["written"]
    )


def failing(really: Any, turn: int, error: BaseException) -> Any:
    """``really``, that raises in its call number ``turn`` (from 0) and later ones."""
    calls: list[Any] = []

    def call(*given: Any) -> Any:
        calls.append(given)
        if len(calls) > turn:
            raise error
        return really(*given)

    return call


@pytest.mark.parametrize("error, status", [(FULL, 1), (KeyboardInterrupt(), 130)])
@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("before", [True, False])
def test_a_failed_write_changes_nothing(
    before: bool, turn: int, error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train, test and card: the call that fails is each of them in turn."""
    old = made("old") if before else {}
    source("new")
    with monkeypatch.context() as patch:
        patch.setattr(write, "replace_text", failing(write.replace_text, turn, error))
        assert main(WORDS) == status
    assert there() == old
    assert made("new") != old and is_described()


@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("before", [True, False])
def test_a_failed_rename_leaves_no_card_of_other_files(
    before: bool, turn: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = made("old") if before else {}
    source("new")
    capsys.readouterr()
    names = ["train.jsonl", "test.jsonl", "card.json"]
    calls: list[str] = []
    really = os.replace

    def replace(aside: Any, path: Any) -> None:
        if Path(path).name in names and Path(path).parent == Path("data/gsm8k"):
            calls.append(Path(path).name)
            if len(calls) > turn:
                raise OSError(errno.EACCES, "Permission denied", str(aside), None, str(path))
        really(aside, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        assert main(WORDS) == 1
    assert calls == names[: turn + 1], "the card is last"
    error = capsys.readouterr().err
    assert names[turn] in error and ".new" not in error and error.count("\n") == 1
    left = there()
    assert set(left) == {file for file in old if not file.endswith("card.json")}
    new = made("new")
    assert all(text in (old[file], new[file]) for file, text in left.items()) and is_described()
