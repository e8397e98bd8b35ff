"""Output that cannot be written or encoded is dropped or escaped; what writes it goes on."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_train.cli import main
from siri_train.commands.output import encodable, tolerant_output
from tests.torchrun import ROOT
from tests.train.test_checkpoint import rows


class Broken(io.RawIOBase):
    """Takes so many bytes, then fails with an error of the system."""

    def __init__(self, number: int, room: int) -> None:
        self.number, self.room, self.got = number, room, b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        taken = bytes(data[: max(0, self.room - len(self.got))])
        if not taken:
            raise OSError(self.number, os.strerror(self.number))
        self.got += taken
        return len(taken)


class Kept(io.BytesIO):
    """Stays readable when the text stream above it is collected."""

    def close(self) -> None: ...


NUMBERS = [errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EBADF, errno.ESTALE, errno.EAGAIN]


@pytest.mark.draw(6)
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("room", [0, 10])
def test_a_stream_that_fails_is_dropped(
    monkeypatch: pytest.MonkeyPatch, number: int, room: int
) -> None:
    raw = Broken(number, room)
    stream = io.TextIOWrapper(io.BufferedWriter(raw, 16), encoding="ascii", write_through=True)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    with tolerant_output():
        for _ in range(50):
            print("0123456789 名", flush=True)
            print("0123456789", file=sys.stderr)
    assert sys.stdout is stream
    assert raw.got == b"0123456789"[:room]
    raw.room = 10**6  # what is still buffered must not fail when it is collected


def no_stream() -> None:
    return None


def closed_stream() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


def no_reader() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


@pytest.mark.draw(2, "processes")
@pytest.mark.parametrize("make", [no_stream, closed_stream, no_reader])
def test_a_run_goes_on_without_output(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    config = tiny("train.steps=2", "eval.at_start=false")
    recipe.write_text(config.to_yaml())
    with monkeypatch.context() as patch:
        for name in ("stdout", "stderr"):
            patch.setattr(sys, name, make())
        assert main(["train", str(recipe)]) == 0
        assert main(["report", str(config.run_dir)]) == 0
        assert main(["report", str(tmp_path / "nowhere")]) == 1
    assert [row["step"] for row in rows(config.run_dir / "metrics.jsonl")] == [0, 1]


@given(st.text(alphabet=st.characters(), max_size=30), st.sampled_from(
    ["ascii", "latin-1", "cp1252", "koi8-r", "cp437", "utf-8"]
))  # fmt: skip
@settings(derandomize=True, max_examples=150)
def test_every_text_is_printed_in_every_encoding(text: str, encoding: str) -> None:
    raw = Kept()
    before = sys.stdout
    sys.stdout = io.TextIOWrapper(raw, encoding=encoding, newline="")
    try:
        with tolerant_output():
            print(text, end="", flush=True)
        assert sys.stdout.errors == "strict"  # as it was
    finally:
        sys.stdout = before
    assert raw.getvalue() == text.encode(encoding, "backslashreplace")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r"])
def test_a_schedule_is_drawn_in_what_the_terminal_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    raw = Kept()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        assert main(["schedule", "demo.yaml", "--svg", str(tmp_path / "s.svg")]) == 0
    shown = raw.getvalue().decode(encoding)
    assert "\\u" not in shown and "*" in shown and "siri-low" in shown


def test_what_can_be_encoded_stays() -> None:
    stream = io.TextIOWrapper(Kept(), encoding="utf-8")
    assert encodable("┤⠉▼ ±", stream) == "┤⠉▼ ±"


ENDINGS = {
    "no reader": 'sleep 0.1; exec {command} 2>err | true; exit "${{PIPESTATUS[0]}}"',
    "closed": "exec {command} >&- 2>err",
    "all closed": "exec {command} >&- 2>&- <&-",
    "a full disk": "exec {command} >/dev/full 2>err",
}


@pytest.mark.draw(2, "processes")
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_process_ends_as_if_it_had_been_read(tmp_path: Path, ending: str) -> None:
    """A whole process: what the interpreter does at its end is part of it."""
    page = tmp_path / "s.svg"
    command = f"{sys.executable} -m siri_train schedule demo.yaml --svg {page}"
    done = subprocess.run(
        ["bash", "-c", ENDINGS[ending].format(command=command)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    error = tmp_path / "err"
    assert done.returncode == 0, error.read_text() if error.exists() else ""
    assert not error.exists() or error.read_text() == ""
    assert page.read_text().startswith("<svg")
