"""The live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from rich.console import Console

from siri_train.monitor.figures import Figure, figures
from siri_train.monitor.live import LiveDisplay
from siri_train.monitor.progress import Progress
from siri_train.monitor.sparkline import ASCII, sparkline
from siri_train.train import train

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@contextmanager
def terminal(kind: str = "xterm-256color") -> Iterator[list[str]]:
    """Standard output is a pseudo-terminal inside; the list holds afterwards what it was sent."""
    reader, writer = os.openpty()
    chunks: list[bytes] = []
    written: list[str] = []

    def drain() -> None:
        while True:
            try:
                chunks.append(os.read(reader, 65536))
            except OSError:  # the other end is closed
                return

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch, os.fdopen(writer, "w", encoding="utf-8") as stream:
        # In the body of a test: pytest sets its own between a fixture and its test.
        patch.setattr(sys, "stdout", stream)
        patch.setenv("TERM", kind)
        patch.setenv("COLUMNS", "100")
        yield written
        assert sys.stdout is stream  # given back
    thread.join(60)
    assert not thread.is_alive()
    os.close(reader)
    written.append(b"".join(chunks).decode())


@pytest.mark.costly
def test_a_run_in_a_terminal_shows_cap_length_accuracy_and_time_left(tiny: Any) -> None:
    with terminal() as written:
        train(tiny("train.steps=4", "eval.every=2"))
    (raw,) = written
    assert "\x1b[" in raw and "\x1b[?25h" in raw  # drawn in place, the cursor shown again
    text = ESCAPES.sub("", raw)
    assert re.search(r"tiny .*step 1/4 .*ETA \d+ s", text)
    assert re.search(r"tiny .*step 4/4 .*in \d+ s", text)
    for wanted in (
        r"cap +40 tokens +24 █▅▁▅ 56",  # with its history and the lowest and highest value
        r"length +[\d.]+ tokens", r"accuracy +[\d.]+ %", r"held-out +[\d.]+ % at step 2",
        r"entropy +[\d.]+ nats", r"wait words +[\d.]+ per 1000 tokens", r"memory +[\d.]+ GiB peak",
        r"rollout +[\d,]+ tokens/s", r"train +[\d,]+ tokens/s", r"expansion, cycle 1 of 1",
    ):  # fmt: skip
        assert re.search(wanted, text), wanted
    assert "evaluation at step 2" in text  # printed above, not lost


def test_an_interrupted_run_gives_the_terminal_back(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from siri_train.trainer.run import Run

    def stop(self: Run, done: int, rollouts: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "after_step", stop)
    with terminal() as written, pytest.raises(KeyboardInterrupt):
        train(tiny("train.steps=4"))
    (raw,) = written
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l")


def test_elsewhere_plain_lines(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny("train.steps=2"))
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\r" not in out
    assert re.search(r"^tiny  step 2/2  compression, cycle 1 of 1  in \d+ s", out, re.M)
    shown = " ".join(out.split())
    for wanted in (
        r"cap 40 tokens", r"length [\d.]+ tokens", r"accuracy [\d.]+ %", r"truncated [\d.]+ %",
        r"held-out [\d.]+ % at step 0", r"entropy [\d.]+ nats", r"ETA|in \d+ s",
        r"\| siri-low \| 2 \|", r"start -> siri-low: accuracy [\d.]+ % -> [\d.]+ %",
    ):  # fmt: skip
        assert re.search(wanted, shown), wanted
    assert max(map(len, out.splitlines())) < 80 or str(tiny().run_dir) in out


def test_a_dumb_terminal_gets_lines() -> None:
    with terminal("dumb") as written:
        Progress("run", 2).update(1, "now", {"cap": Figure(5, "5 tokens")})
    assert written[0].strip() == "run  1/2  now  ETA 0 s  cap 5 tokens"


def drawn(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """What a display with and without figures sends to a terminal with this environment."""
    # The terminal's own settings are undone first, so that none is left behind.
    with terminal() as written, monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for shown in ({"cap": Figure(5, "5 tokens"), "length": Figure(4.5, "4")}, None):
            progress = Progress("a [long] name " + "x" * 20, 3)
            for done in (1, 2, 3):
                progress.update(done, "a note", shown)
            assert progress.display is None  # closed with the last step
            progress.close()
    return written[0]


def test_no_color_leaves_out_colours_and_draws_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colours.search(drawn(monkeypatch))
    plain = drawn(monkeypatch, NO_COLOR="1")
    assert not colours.search(plain) and "\x1b[?25h" in plain and "5 tokens" in plain


@pytest.mark.parametrize("width", [12, 30, 200])
def test_no_line_is_wider_than_the_window(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    text = ESCAPES.sub("", drawn(monkeypatch, COLUMNS=str(width)))
    lines = re.split(r"[\r\n]+", text)
    assert max(map(len, lines)) <= width
    assert any("3/3" in line for line in lines)
    assert any("a note" in line for line in lines)


def test_a_name_with_brackets_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a [long] name" in ESCAPES.sub("", drawn(monkeypatch))


def test_redirected_output_is_plain_whatever_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    progress = Progress("run", 2)
    progress.update(1, "now", {"cap": Figure(5, "5 tokens")})
    progress.update(2, "now", {"cap": Figure(5, "5 tokens")})
    progress.close()
    assert capsys.readouterr().out == (
        "run  1/2  now  ETA 0 s  cap 5 tokens\nrun  2/2  now  in 0 s  cap 5 tokens\n"
    )


def test_sparkline() -> None:
    assert sparkline([], 8) == ""
    assert sparkline([3, 3], 8) == "▄▄"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([7, 7, 0, 0, 7, 7], 3) == "█▁█"  # averaged, the whole history shows
    assert sparkline([0.0, 1.0], 8, "ab") == "ab"
    with pytest.raises(ValueError, match="width 0"):
        sparkline([1], 0)


def test_ascii_where_the_terminal_is_not_unicode() -> None:
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    display = LiveDisplay("run", 2, Console(file=raw, force_terminal=True, width=80))
    for done, value in ((1, 0.0), (2, 1.0)):
        display.show(done, "ETA 1 s", [], {"accuracy": Figure(value, f"{value:.0%}")})
    display.stop()
    raw.flush()
    text = ESCAPES.sub("", raw.buffer.getvalue().decode("ascii"))  # nothing else was written
    assert ASCII[0] + ASCII[-1] in text


def test_figures_of_a_step_without_accuracy() -> None:
    row = {"cap": 9, "response_len_mean": 4.4, "accuracy": None, "truncated_frac": 0.5}
    shown = figures(row, [])
    assert shown["accuracy"][:2] == (None, "-") and shown["length"].text == "4.4 tokens"
    assert "held-out" not in shown


def test_sampling_shows_responses_done_and_all_without_touching_the_histories(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    clock = [100.0]
    monkeypatch.setattr("siri_train.monitor.progress.time.monotonic", lambda: clock[0])
    shown = {"cap": Figure(56, "56"), "length": Figure(31.0, "31")}
    with terminal() as written:
        progress = Progress("run", 4)
        for done, text in ((1, "sampled 3/16"), (2, "sampled 9/16")):
            progress.update(done, "ALARM x", shown)
            for _ in range(3):
                clock[0] += 0.2
                progress.status(text)
        assert progress.display is not None
        assert progress.display.history["cap"].means == [56, 56]  # once a step
        progress.close()
    text = ESCAPES.sub("", written[0])
    assert re.search(r"2/4  ETA \d+ s  sampled 9/16\s+ALARM x", text) and "sampled 3/16" in text

    progress = Progress("plain", 4)  # no terminal: a line every few seconds
    for done in range(16):
        clock[0] += 1.0
        progress.status(f"sampled {done}/16")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[2] for line in lines] == [f"sampled {n}/16" for n in (4, 9, 14)]


@pytest.mark.costly
def test_the_loop_shows_what_is_being_sampled(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(Progress, "status", lambda self, text: seen.append(text))
    for ahead in ("false", "true"):
        seen.clear()
        out = f"output={tiny().run_dir}_{ahead}"
        train(tiny("train.steps=2", f"rollout.asynchronous={ahead}", out))
        assert seen == [f"sampled {done}/16" for _ in range(2) for done in range(1, 17)]
