"""The display at any width: what a terminal shows, histories, cost, alarms."""

from __future__ import annotations

import io
import json
import random
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from siri_train.config.recipe import parse_config
from siri_train.monitor import live, progress
from siri_train.monitor.figures import KEYS, Figure, evaluation_parts, figures
from siri_train.monitor.live import LiveDisplay
from siri_train.monitor.sparkline import History, sparkline
from siri_train.monitor.training import TrainingProgress, alarm_line
from siri_train.schedule import LengthSchedule
from siri_train.trainer.metrics import METRIC_KEYS
from tests.train.conftest import TINY
from tests.train.report_page import evaluation, metric
from tests.train.screen import Screen

SCHEDULE = LengthSchedule("cosine", 16384, 8192, 640)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (live, progress):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr("siri_train.monitor.training.time", clock)
    return clock


def row(step: int, rng: random.Random | None = None) -> dict[str, Any]:
    found = metric(SCHEDULE, step)
    if rng is not None:
        found |= {"response_len_mean": rng.uniform(1, 40_000), "accuracy": rng.random()}
        found |= {"rollout_tokens_per_s": 10 ** rng.uniform(1, 7), "reward_mean": rng.gauss(0, 1)}
    return found


def display(width: int, encoding: str = "utf-8", label: str = "run") -> tuple[LiveDisplay, Any]:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="")
    console = Console(file=stream, force_terminal=True, width=width, legacy_windows=False)
    shown = LiveDisplay(label, 1920, console, unit="step")

    def text() -> str:
        stream.flush()
        return raw.getvalue().decode(encoding)

    return shown, text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_figure_is_whole_with_its_unit_and_scale(clock: Clock, width: int) -> None:
    rng = random.Random()
    shown, text = display(width)
    for step in range(640, 900):
        clock.now += 100
        found = row(step, rng)
        last = evaluation(step, None, 0.436, 7093.0)
        shown.show(step + 1, "ETA 12 h 03 min", ["expansion, cycle 2 of 3"], figures(found, [last]))
    shown.stop()
    screen = Screen(width).feed(text())
    lines = [line for line in screen.lines if line]
    assert max(map(cell_len, lines)) <= width and screen.cursor_shown
    assert len(lines) == 2 + len(KEYS) + 1  # drawn in place: each line once
    assert re.search(r"run  ━+─+  step 900/1920  ETA 12 h 03 min$", lines[0])
    assert lines[1] == "expansion, cycle 2 of 3"
    for name, figure in figures(found, [last]).items():
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert figure.text in line
        past = shown.history[name]
        assert re.search(
            rf"  {re.escape(figure.scale(past.low))} [▁-█]+ {re.escape(figure.scale(past.high))}$",
            line,
        ), line


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "utf-16"])
def test_no_encoding_crashes_it_and_no_line_is_too_wide(clock: Clock, encoding: str) -> None:
    rng = random.Random()
    for width in (1, 5, 12, 19, 30, 41, 59, 79, rng.randint(1, 200)):
        label = "a-run-with-a-long-name-" + ("数学" * 9 if encoding == "utf-8" else "x" * 18)
        shown, text = display(width, encoding, label)
        for step in range(3):
            clock.now += 10
            notes = ["compression, cycle 1 of 3", "alarms: " + ", ".join(["entropy-collapse"] * 9)]
            shown.show(step, "ETA 3 min 20 s", notes, figures(row(step, rng), []))
            shown.status("sampled 3/2048")
        shown.stop()
        screen = Screen(width).feed(text().lstrip("\ufeff").replace("\ufeff", ""))
        assert max(map(cell_len, screen.lines)) <= width
        drawn = [line.plain.rstrip() for line in shown.lines(width)]
        assert [line for line in screen.lines if line] == [line for line in drawn if line]
        if width >= 20:
            assert any("step 2/1920" in line for line in screen.lines)


def test_every_width_shows_whole_numbers_and_breaks_no_line(clock: Clock) -> None:
    """At 20 columns and more every figure with its number; below, those that fit."""
    seed = time.time_ns()
    rng = random.Random(seed)
    names = ["grad-norm-spike", "entropy-collapse", "length-explosion"]
    for width in range(10, 201):
        encoding = rng.choice(["utf-8", "utf-8", "ascii", "cp1252"])
        label = "".join(rng.choice("ab-数学" if encoding == "utf-8" else "ab-") for _ in range(30))
        shown, text = display(width, encoding, label[: rng.randint(1, 30)])
        for step in range(3):
            clock.now += 10
            found = figures(row(step, rng), [evaluation(step, None, rng.random(), 9.0)])
            alarms = f"alarms: {', '.join(f'{name} (new)' for name in rng.sample(names, 2))}"
            notes = ["compression, cycle 1 of 3", rng.choice(["", alarms])]
            shown.show(step, "ETA 12 h 03 min", notes, found)
            shown.status("sampled 3/2048")
        shown.stop()
        screen = Screen(width).feed(text())
        lines = [line for line in screen.lines if line]
        said = " ".join(lines)
        assert max(map(cell_len, lines)) <= width, (seed, width)
        drawn = [line.plain.rstrip() for line in shown.lines(width)]
        assert lines == [line for line in drawn if line], (seed, width)
        assert ("2/1920" in said) and (notes[1] in said or width < 30), (seed, width)
        if width < 20:
            for name, figure in found.items():
                number = figure.text.split(" ")[0]
                forms = (f"{name} {figure.text}", f"{name} {number}", f"{name} {number} %")
                there = [line for line in lines if line.startswith(f"{name} ")]
                assert all(line in forms for line in there), (seed, width, there)
                assert there or cell_len(forms[1]) > width - 2, (seed, width, name)
            continue
        assert "step 2/1920" in said and "ETA 12 h 03 min" in said, (seed, width)
        assert "compression, cycle 1 of 3" in said, (seed, width)
        for name, figure in found.items():
            number = figure.text.split(" ")[0]
            (line,) = [line for line in lines if line.startswith(f"{name} ")]
            assert number in line.split(), (seed, width, line)
            if width >= 35:
                assert figure.text in line, (seed, width, line)


def test_what_is_printed_stays_above_it(clock: Clock) -> None:
    shown, text = display(80)
    for step in range(5):
        clock.now += 10
        shown.show(step, "", [], {"cap": Figure(5, "5 tokens")})
        shown.live.console.print(f"said {step}")
    shown.stop()
    assert [line.split("  ")[0] for line in Screen(80).feed(text()).lines if line] == [
        *(f"said {step}" for step in range(5)), "run", "cap",
    ]  # fmt: skip


def test_a_window_that_became_narrower_shows_it_once(clock: Clock) -> None:
    shown, text = display(120)
    shown.show(1, "ETA 1 s", ["compression"], figures(row(0), []))
    sent = len(text())
    shown.console.width = 60
    clock.now += 10
    shown.show(2, "ETA 1 s", ["compression"], figures(row(1), []))
    shown.stop()
    screen = Screen(60).feed("garbage of broken lines\n" * 5).feed(text()[sent:])
    assert len([line for line in screen.lines if line]) == 2 + len(KEYS)


def test_drawing_takes_less_than_a_hundredth_of_the_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, _ = display(80)
    spent, drawn = 0.0, 0
    cost, pause = random.Random().uniform(0.001, 0.02), 0.05

    def refresh() -> None:
        nonlocal spent, drawn
        clock.now += cost
        spent, drawn = spent + cost, drawn + 1

    began = clock.now
    monkeypatch.setattr(shown.live, "refresh", refresh)
    for step in range(1900):
        clock.now += pause
        shown.show(step, "", [], {"cap": Figure(step, "5")})
    assert spent - cost <= 0.01 * (clock.now - began) and drawn > 20
    assert shown.history["cap"].high == 1899  # what is not drawn is in the history
    before = drawn
    shown.show(1920, "", [], {})
    assert drawn == before + 1  # the last state always is


def test_a_long_history_is_kept_in_little_room() -> None:
    rng = random.Random()
    for count in (1, 511, 512, 513, 1024, 5000, rng.randint(1, 9000)):
        values = [rng.gauss(0, 1) for _ in range(count)]
        past = History()
        for value in values:
            past.add(value)
        assert len(past.means) <= 512 and (past.low, past.high) == (min(values), max(values))
        each = -(-count // len(past.means)) if len(past.means) < count else 1
        each = 1 << (each - 1).bit_length()
        parts = [values[i : i + each] for i in range(0, count, each)]
        assert past.means == pytest.approx([sum(part) / len(part) for part in parts])
    assert sparkline([1, 2], 8, bounds=(0, 3)) == "▃▆"


def test_figures_are_of_keys_that_a_record_has() -> None:
    assert set(KEYS.values()) <= set(METRIC_KEYS)
    assert set(figures(row(0), [])) == set(KEYS)
    assert list(figures(row(0), [evaluation(3, None, 0.5, 9.0)])) != list(KEYS)
    assert figures({"cap": 7}, []) == {"cap": figures(row(0) | {"cap": 7}, [])["cap"]}


def test_an_evaluation_in_parts() -> None:
    both = {"accuracy": [0.1, 0.25, 0.5], "tokens": 1234.5}
    found = evaluation_parts({"budgets": [8, 16, 4096], "sets": {"a": both, "b": both}})
    assert [name for name, _ in found] == ["a", "b"]
    said = ["10.0 % within 8 tokens", "25.0 % within 16", "50.0 % within 4,096"]
    assert found[0][1] == [*said, "mean 1,234 tokens"]


def training(*overrides: str, schedule: LengthSchedule | None = None) -> TrainingProgress:
    config = parse_config(TINY, ["output=unused", "train.steps=8", *overrides])
    return TrainingProgress(config, schedule or config.schedule.build())


def test_a_log_has_short_lines_and_every_alarm(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = training("name=a-run-of-the-paper")
    raised = {"alarm": "grad-norm-spike", "state": "raised", "cause": "20 " * 30, "action": "lr"}
    going = SimpleNamespace(name="grad-norm-spike", since=2, age=0)
    for step in range(8):
        clock.now += 0.2  # too fast for a line each
        found = [raised] if step == 2 else []
        if step == 5:
            found = [{"alarm": "grad-norm-spike", "state": "cleared", "age": 3}]
        going.age = step - 2
        ongoing = [going] if 2 <= step < 5 else []
        shown.step(row(step), [evaluation(0, "start", 0.2, 30)], found, ongoing)
    out = capsys.readouterr().out
    assert "\r" not in out and "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 79
    (alarm,) = re.findall(r"^a-run-of-the-paper: ALARM grad-norm-spike at step 3: ", out, re.M)
    assert alarm and "; lr" in " ".join(out.split())
    assert "alarm grad-norm-spike is over after 3 steps" in out
    firsts = re.findall(r"^a-run-of-the-paper  step (\d)/8  ", out, re.M)
    assert firsts == ["1", "8"] and "cycle 1 of 2" in out


def test_alarms_without_a_state_are_told_once_while_they_last(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = training()
    old = {"alarm": "all-truncated", "cause": "c", "action": "a"}
    for step in range(7):
        shown.step(row(step), [], [old] if step in (1, 2, 3, 5) else [])
    told = re.findall(r"ALARM all-truncated at step (\d)", capsys.readouterr().out)
    assert told == ["2", "6"]


def test_the_line_of_alarms() -> None:
    def going(name: str, age: int) -> Any:
        return SimpleNamespace(name=name, since=0, age=age)

    assert alarm_line([]) == ""
    assert alarm_line([going("a", 12), going("b", 1)]) == "alarms: b (for 1 step), a (for 12 steps)"
    new = [{"alarm": "c", "state": "raised"}, {"alarm": "a", "state": "ongoing"}]
    assert alarm_line([going("a", 2)], new) == "alarms: c (new), a (for 2 steps)"
    many = alarm_line([going(f"n{i}", i) for i in range(9)])
    assert many.startswith("alarms: n0 (new), n1") and many.endswith(", 6 more")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), "cycle 1 of 2"),
        (("schedule.shape=constant",), "constant cap"),
        (("train.max_tokens=100000",), "cycle 1  "),
    ],
)
def test_phase_and_cycle(
    clock: Clock, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], said: str
) -> None:
    shown = training(*overrides)
    phase = "constant" if "constant" in said else "compression"
    shown.step(row(0) | {"phase": phase, "cycle": 1}, [])
    assert said in capsys.readouterr().out


def test_a_resumed_run_goes_on_with_its_history_and_its_times(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(TINY, ["output=unused", "train.steps=900"])
    schedule = config.schedule.build()
    rows = [metric(schedule, step) for step in range(600)]
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps(one) + "\n" for one in rows) + '{"step": 600, "ca')
    evaluations = [evaluation(0, "start", 0.1, 9.0), evaluation(300, None, 0.7, 9.0)]
    stream = io.StringIO()
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)
    monkeypatch.setattr(
        live, "Console", lambda: Console(file=stream, force_terminal=True, width=80)
    )
    shown = TrainingProgress(config, schedule, 600)
    shown.recall(log, evaluations)
    assert shown.left.seconds(600) == pytest.approx(0.2 * 300, rel=0.01)
    shown.step(metric(schedule, 600), evaluations)
    assert shown.display is not None
    assert shown.display.history["held-out"].low == pytest.approx(-0.1)
    assert sum(map(len, (shown.display.history["cap"].means,))) == 301  # of two steps each
    shown.close()
    assert "step 601/900" in stream.getvalue()
