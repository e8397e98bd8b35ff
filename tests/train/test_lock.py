"""One run a folder: who comes second is refused and writes nothing; what is stale is taken over."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from siri_train.cli import main
from siri_train.commands import demo
from siri_train.config.base import ConfigError
from siri_train.trainer import lock
from siri_train.trainer.lock import NAME, run_lock
from tests.train.conftest import TINY


def forked(work: Callable[[Callable[[], None]], None]) -> int:
    """A child that runs ``work(ready)`` and waits; returns its pid once it is ready."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            work(lambda: os.write(writer, b"r") and None)
            time.sleep(600)
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"r"
    os.close(reader)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def hold(folder: Path) -> Callable[[Callable[[], None]], None]:
    def work(ready: Callable[[], None]) -> None:
        with run_lock(folder):
            ready()
            time.sleep(600)

    return work


def content(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_the_second_is_refused_while_the_first_lives_and_not_after(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    pid = forked(hold(folder))
    try:
        with pytest.raises(ConfigError) as caught, run_lock(folder):
            pass
        said = str(caught.value)
        assert f"process {pid} on {socket.gethostname()}" in said and str(folder) in said
        assert "\n" not in said and "give another folder" in said
    finally:
        end(pid)  # SIGKILL: it gives nothing back
    assert (folder / NAME).exists()
    with run_lock(folder):
        assert json.loads((folder / NAME).read_text())["pid"] == os.getpid()
    assert not (folder / NAME).exists()


def test_what_is_empty_at_the_end_is_removed_and_nothing_else(tmp_path: Path) -> None:
    with run_lock(tmp_path / "a" / "b" / "c"):
        (tmp_path / "a" / "x").write_text("")
    assert content(tmp_path) == {"a": None, "a/x": b""}
    with pytest.raises(RuntimeError), run_lock(tmp_path / "a"):
        raise RuntimeError
    assert content(tmp_path) == {"a": None, "a/x": b""}


def _dead() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


STALE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "half": lambda: b'{"pid": 12',
    "no text": lambda: b"\xff\xfe\x00",
    "no object": lambda: b"[1, 2]",
    "nested": lambda: b"[" * 100_000,
    "pid a word": lambda: b'{"pid": "x", "host": "y"}',
    "a dead process": lambda: _told(pid=_dead(), ticks=5),
    "a number used again": lambda: _told(pid=os.getpid(), ticks=5),
    "beyond all numbers": lambda: _told(pid=10**30, ticks=5),
    "silent on another host": lambda: _told(host="far", pid=1, ticks=5),
}


def _told(**values: Any) -> bytes:
    return json.dumps({"host": socket.gethostname(), **values}).encode()


@pytest.mark.parametrize("locks", ["kernel", "none"])
@pytest.mark.parametrize("kind", STALE)
def test_a_stale_lock_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, locks: str
) -> None:
    if locks == "none":
        monkeypatch.setattr(fcntl, "flock", _refusing(errno.ENOSYS))
    path = tmp_path / NAME
    path.write_bytes(STALE[kind]())
    long_ago = time.time() - 2 * lock.SILENT
    os.utime(path, (long_ago, long_ago))
    with run_lock(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def _refusing(number: int) -> Callable[..., None]:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_of_the_kernel_a_living_process_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", _refusing(number))
    pid = forked(hold(tmp_path))
    try:
        with pytest.raises(ConfigError, match=f"process {pid} on"), run_lock(tmp_path):
            pass
    finally:
        end(pid)
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize("alive", [True, False])
def test_a_holder_on_another_machine_is_known_by_its_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    """The kernel's lock is free: it may reach this machine's processes only."""
    monkeypatch.setattr(lock, "BEAT", 0.2)
    path = tmp_path / NAME
    path.write_bytes(_told(host="far", pid=77, since="noon", command="siri-train train x"))
    ended = threading.Event()
    thread = threading.Thread(target=lock._beat, args=(path, ended))
    if alive:
        thread.start()
    try:
        if alive:
            with pytest.raises(ConfigError, match="process 77 on far") as caught, \
                    run_lock(tmp_path):  # fmt: skip
                pass
            assert f"remove {path}" in str(caught.value)
        else:
            with run_lock(tmp_path):
                pass
    finally:
        ended.set()
        if alive:
            thread.join()


def test_a_child_that_outlives_the_holder_does_not_keep_the_folder(tmp_path: Path) -> None:
    """A forked child has the descriptor, and with it the kernel's lock."""
    reader, writer = os.pipe()

    def work(ready: Callable[[], None]) -> None:
        with run_lock(tmp_path):
            child = os.fork()
            if child == 0:
                time.sleep(600)
            os.write(writer, f"{child}\n".encode())
            ready()
            time.sleep(600)

    end(forked(work))
    child = int(os.read(reader, 100))
    try:
        with run_lock(tmp_path):
            assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    finally:
        os.kill(child, signal.SIGKILL)


COMMANDS = {
    "train": ["train", "tiny.yaml", "output=held"],
    "anew": ["train", "tiny.yaml", "output=held", "--resume", "never"],
    "resume into": ["train", "tiny.yaml", "output=held", "--resume", "other"],
    "sft": ["sft", "tiny.yaml", "output=held"],
    "demo": ["demo", "--out", "held"],
    "a demo's run": ["demo", "--out", "above"],
    "through a link": ["train", "tiny.yaml", "output=link"],
}


@pytest.mark.parametrize("case", COMMANDS)
def test_every_command_that_writes_a_run_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    """What a living run has under way, a folder that is being written aside above all, stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "GRACE", 0.0)
    sections = {**TINY, "model": {"scratch": {}}, "sft": {"steps": 2, "batch_size": 4}}
    Path("tiny.yaml").write_text(yaml.safe_dump(sections))
    held = Path("above/constant" if case == "a demo's run" else "held")
    aside = held / "checkpoints" / ".step_000001.partial"
    aside.mkdir(parents=True)
    (aside / "model.safetensors").write_text("half")
    (held / "metrics.jsonl").write_text('{"step": 0}\n')
    Path("link").symlink_to(held)
    before = content(tmp_path)
    with run_lock(held):
        inside = content(tmp_path)
        assert main(COMMANDS[case]) == 1
        assert content(tmp_path) == inside
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"process {os.getpid()} on {socket.gethostname()}" in said
    assert content(tmp_path) == before


@pytest.mark.parametrize("how", ["folder", "pipe", "link to a file", "dead link", "loop"])
def test_what_has_the_locks_name_and_is_no_lock_is_left_alone(how: str, tmp_path: Path) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"
    folder.mkdir()
    path = folder / lock.NAME
    other.write_text("another program's")
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    else:
        target = {"link to a file": "../other", "dead link": "nowhere", "loop": lock.NAME}[how]
        path.symlink_to(target)
    with pytest.raises(ConfigError, match=r"siri-train\.lock: .*remove it") as caught:
        with lock.run_lock(folder):
            pass
    assert len(str(caught.value).splitlines()) == 1
    assert other.read_text() == "another program's" and [p.name for p in folder.iterdir()] == [
        lock.NAME
    ]
