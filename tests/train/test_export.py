"""Export and eval read what resume would read: whole files of this run, or a line."""

from __future__ import annotations

import copy
import errno
import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from siri_train.checkpoint import save_load
from siri_train.checkpoint.manifest import export
from siri_train.checkpoint.save_load import CheckpointError, save_checkpoint
from siri_train.cli import main
from siri_train.config.base import ConfigError
from siri_train.config.recipe import parse_config
from siri_train.files import remedy_of
from siri_train.model.policy import Policy
from siri_train.train import train
from tests.train.conftest import TINY
from tests.train.damage import edit_json, edit_weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "run"
    return train(parse_config(copy.deepcopy(TINY), [f"output={output}", "train.steps=2"]))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def one_line(command: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The error of a command that fails, which is one line."""
    capfd.readouterr()
    assert main(command) == 1
    error = capfd.readouterr().err
    assert len(error.splitlines()) == 1, error
    return error


@pytest.mark.costly
@pytest.mark.draw(2)
@pytest.mark.parametrize("how", ["flip", "cut", "grow", "remove"])
def test_every_damaged_file_is_found(
    how: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(how)
    folder = run / "checkpoints" / "step_000002"
    names = sorted(json.loads((folder / "checkpoint.json").read_text())["files"])
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(names)
    for name in [*names, "checkpoint.json"]:
        path = folder / name
        data = path.read_bytes()
        if how == "remove":
            path.unlink()
        elif how == "cut":
            path.write_bytes(data[: rng.randrange(len(data))])
        elif how == "grow":
            path.write_bytes(data + b"x")
        else:
            place = rng.randrange(len(data)) if name != "checkpoint.json" else 0
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        out = tmp_path / "out"
        commands = [["export", str(run), "--which", "2", "--out", str(out)], ["eval", str(folder)]]
        for command in commands:
            said = one_line(command, capfd)
            assert name in said and ("damaged" in said or "missing" in said)
            if "config.json is missing" not in said:
                assert str(run / "checkpoints" / "step_000001") in said  # the newest good one
        assert not out.exists() and not (folder / "eval.json").exists()
        path.write_bytes(data)


@pytest.mark.parametrize(
    "path",
    ["../../secret", "/etc", "checkpoints/..", "checkpoints/../../secret", "checkpoints/link",
     "checkpoints", "", "checkpoints/", "secret", None, 3, ["checkpoints/step_000001"], "a\0b",
     "checkpoints/step_000009"],
)  # fmt: skip
def test_a_manifest_may_not_lead_out_of_the_run(
    path: Any, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = shutil.copytree(run / "checkpoints" / "step_000002", tmp_path / "secret")
    (run / "checkpoints" / "link").symlink_to(secret)
    manifest = run / "checkpoints" / "manifest.json"
    edit_json(manifest, **{"siri-low": {"path": path}})
    said = one_line(["export", str(run), "--which", "low"], capfd)
    assert "siri-low" in said and not (run / "export").exists()
    for entry in (path, [path], 5):
        edit_json(manifest, **{"siri-low": entry if entry is not None else "none"})
        assert "siri-low" in one_line(["export", str(run), "--which", "low"], capfd)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", '{"a":' * 5000, "null"])
def test_a_damaged_manifest(text: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "manifest.json").write_bytes(text.encode("latin-1"))
    assert "manifest.json" in one_line(["export", str(run), "--which", "low"], capfd)


@pytest.mark.parametrize(
    "name", ["../step_000001/config.json", "/etc/hostname", "link", "a\0b", "folder/../../x"]
)
def test_a_checkpoint_may_not_list_files_elsewhere(name: str, run: Path) -> None:
    folder = run / "checkpoints" / "step_000002"
    (folder / "link").symlink_to("/etc/hostname")
    index = json.loads((folder / "checkpoint.json").read_text())
    index["files"][name] = [1, 2]
    (folder / "checkpoint.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"checkpoint\.json"):
        export(run, "2")


def test_only_what_was_checked_is_exported(run: Path) -> None:
    folder = run / "checkpoints" / "step_000002"
    (folder / "adapter.bin").write_text("put here later")
    out = export(run, "2")
    listed = set(json.loads((folder / "checkpoint.json").read_text())["files"])
    assert {p.name for p in out.iterdir()} == listed - {"trainer_state.pt"}


def test_a_whole_checkpoint_of_another_models_weights(run: Path) -> None:
    """Checksums that are right say nothing of weights that never fitted: resume and export ask."""
    folder = run / "checkpoints" / "step_000002"
    edit_weights(folder, lambda w: {f"_orig_mod.{k}": v for k, v in w.items()})
    index = json.loads((folder / "checkpoint.json").read_text())
    index["files"]["model.safetensors"] = save_load.size_and_crc(folder / "model.safetensors")
    (folder / "checkpoint.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="export: .*_orig_mod"):
        export(run, "2")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="resume: .*_orig_mod"):
        train(parse_config(copy.deepcopy(TINY), [f"output={run}", "train.steps=3"]))
    assert (run / "metrics.jsonl").read_bytes() == before


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
KNOWN = sorted({*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG,
                errno.ENOENT, errno.EMFILE, errno.ESTALE, errno.EINVAL})  # fmt: skip


@pytest.mark.parametrize("number", KNOWN)
@pytest.mark.parametrize("form", ["OSError", "safetensors", "torch", "text"])
def test_only_a_full_disk_is_called_one(
    number: int, form: str, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = os.strerror(number)

    def fail(*_: Any, **__: Any) -> None:
        if form == "OSError":
            raise OSError(number, text)
        if form == "safetensors":
            raise SafetensorError(f"Error while serializing: I/O error: {text} (os error {number})")
        if form == "text":
            raise RuntimeError(f"rank 1: [Errno {number}] {text}: 'x'")
        try:
            raise OSError(number, text)
        except OSError:
            raise RuntimeError(
                "[enforce fail at inline_container.cc:672] . unexpected pos"
            ) from None

    monkeypatch.setattr(Policy, "save", fail)
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path, 1, policy, None)
    said = str(caught.value)
    assert ("GiB free" in said) == (number in FULL)
    assert ("make room" in said) == (number in FULL - {errno.EFBIG})
    assert ("ulimit -f" in said) == (number == errno.EFBIG)  # room does not help there
    assert text in said and len(said.splitlines()) == 1
    assert str(remedy_of(number)) in said


@pytest.mark.parametrize(
    "error", [ValueError("odd\nvalue"), TypeError("x"), KeyError("k"), MemoryError()]
)
def test_other_failures_say_what_failed(
    error: Exception, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path, 1, policy, None)
    said = str(caught.value)
    assert "make room" not in said and "GiB" not in said and len(said.splitlines()) == 1
    assert ("memory" if isinstance(error, MemoryError) else type(error).__name__) in said
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("seed", range(12))
def test_only_names_of_checkpoints_are_taken_from_a_manifest(
    seed: int, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Drawn names, some with what a terminal obeys: a line that shows nothing but text."""
    rng = random.Random(seed)
    odd = ["\0", "\x1b[31m", "\n", "..", "/", " ", "é", "\u2028", "x" * 300, "-", "%", "step_1"]
    drawn = "".join(rng.sample(odd, rng.randrange(1, 4)))
    path = f"checkpoints/{rng.choice(['step_', 'step_000002', ''])}{drawn}"
    edit_json(run / "checkpoints" / "manifest.json", **{"siri-low": {"path": path}})
    said = one_line(["export", str(run), "--which", "low"], capfd)
    assert ("manifest.json" in said or "is missing" in said) and said.rstrip("\n").isprintable()
    assert not (run / "export").exists()


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "model.safetensors", "adapter_config.json",
     "pytorch_model.bin", "model-00001-of-00002.safetensors", "adapter_model.safetensors"],
)  # fmt: skip
def test_what_the_model_is_loaded_from_must_be_listed(
    name: str, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = run / "checkpoints" / "step_000002"
    index = json.loads((folder / "checkpoint.json").read_text())
    if index["files"].pop(name, None) is None:
        (folder / name).write_bytes(b"{}")
    (folder / "checkpoint.json").write_text(json.dumps(index))
    again = ["train", str(run / "config.yaml"), f"output={run}"]
    for command in (["export", str(run), "--which", "2"], ["eval", str(folder)], again):
        said = one_line(command, capfd)
        assert name in said and "checkpoint.json lists" in said
        assert str(run / "checkpoints" / "step_000001") in said  # the newest good one
    assert not (run / "export").exists() and not (folder / "eval.json").exists()


def test_files_that_a_user_puts_beside_are_no_damage(run: Path) -> None:
    folder = run / "checkpoints" / "step_000002"
    for name in ("README.md", "eval.json", "notes.txt", "chat.log"):
        (folder / name).write_text("mine")
    assert save_load.problem(folder) is None


@pytest.mark.parametrize("where", ["", "step_000099", "step_000002/x", "x", "a/b"])
def test_an_export_does_not_go_among_the_checkpoints(
    where: str, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = run / "checkpoints" / where
    before = sorted(run.rglob("*"))
    said = one_line(["export", str(run), "--which", "2", "--out", str(out)], capfd)
    assert "--out" in said and "give another folder" in said or "elsewhere" in said
    assert sorted(run.rglob("*")) == before


def test_an_export_into_an_empty_folder(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "empty"
    out.mkdir()
    assert main(["export", str(run), "--which", "2", "--out", str(out)]) == 0
    assert (out / "model.safetensors").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "run"]


@pytest.mark.draw(1)
@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", [1, 9])
def test_an_eval_that_is_asked_to_end_does_so_in_a_line(
    signum: int, when: int, run: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """In the first decoding steps, and in a later one."""
    seen = []

    def update(self: Any, *args: Any) -> None:
        seen.append(args)
        if len(seen) == when:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr("siri_train.commands.eval.Progress.update", update)
    folder = run / "checkpoints" / "step_000002"
    before = signal.getsignal(signum)
    assert main(["eval", str(folder), "data.eval.0.size=40"]) == 128 + signum
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and f"ended by {signal.Signals(signum).name}" in said[0]
    assert not (folder / "eval.json").exists() and signal.getsignal(signum) == before
    monkeypatch.undo()
    assert main(["eval", str(folder)]) == 0 and (folder / "eval.json").is_file()
