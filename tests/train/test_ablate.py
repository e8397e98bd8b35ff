"""``siri-train ablate``: runs in processes of their own, continued, compared, told."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from siri_train.ablate import runs as ablate_runs
from siri_train.ablate.compare import holm
from siri_train.cli import main
from siri_train.config.yaml_core import write_yaml
from tests.torchrun import ROOT
from tests.train.conftest import TINY
from tests.train.forked import Forked
from tests.train.test_checkpoint import rows

Ablate = Callable[..., int]
TWO = ("--vary", "schedule.shape=cosine,constant")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    raw = copy.deepcopy(TINY)
    raw["eval"] = {"every": 0, "at_start": False}
    path = tmp_path / "tiny.yaml"
    path.write_text(write_yaml(raw))
    return path


@pytest.fixture
def ablate(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usual_signals: None
) -> Ablate:
    """``ablate("--vary", ..., out="name")``: the command, whose runs are forks of this process."""
    monkeypatch.setattr(ablate_runs, "Popen", Forked)
    monkeypatch.setenv("COLUMNS", "1000")  # tables and sentences in one piece

    def call(*words: str, out: str = "out") -> int:
        return main(["ablate", str(recipe), *words, "--out", str(tmp_path / out)])

    return call


def told(out: Path) -> dict[str, Any]:
    return json.loads((out / "ablate.json").read_text())


def logs(out: Path) -> dict[str, Any]:
    """Every log of every run but for times: what must not depend on how the runs were made."""
    return {
        str(path.relative_to(out)): rows(path)
        for name in ("metrics.jsonl", "eval.jsonl", "eval_questions.jsonl")
        for path in sorted(out.rglob(name))
    }


def test_it_trains_compares_and_does_nothing_twice(
    ablate: Ablate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table's figures against the folders of the runs."""
    out = tmp_path / "out"
    assert ablate(*TWO, "--seeds", "2", "--jobs", "2") == 0
    console = capsys.readouterr().out
    found = told(out)
    assert [(row["arm"], row["checkpoint"]) for row in found["rows"]] == [
        ("shape=cosine", "siri-low"), ("shape=cosine", "siri-high"), ("shape=constant", "last"),
    ]  # fmt: skip
    assert found["against"] == "shape=cosine@siri-high"
    for row in found["rows"]:
        step = {"siri-low": 2, "siri-high": 4, "last": 4}[row["checkpoint"]]
        folders = [out / row["arm"] / f"seed-{seed}" for seed in (0, 1)]
        evals = [
            next(e for e in rows(folder / "eval.jsonl") if e["step"] == step) for folder in folders
        ]
        assert row["budgets"] == [24, 56] and row["steps"] == [step, step]
        for place in range(2):
            mean = sum(e["accuracy"][place] for e in evals) / 2
            low, high = row["accuracy_interval"][place]
            assert row["accuracy"][place] == pytest.approx(mean) and low <= mean <= high
        assert row["tokens"] == pytest.approx(sum(e["tokens"] for e in evals) / 2)
        assert row["tokens_interval"][0] <= row["tokens"] <= row["tokens_interval"][1]
        sampled = [
            m["tokens"] + m["tokens_discarded"]
            for folder in folders
            for m in rows(folder / "metrics.jsonl")
            if m["step"] < step
        ]
        assert row["trained_tokens"] == sum(sampled) / 2
    reference = found["rows"][1]
    others = [row for row in found["rows"] if row is not reference]
    assert reference["difference"] is None and reference["verdict"] == "reference"
    for row in others:
        wanted = row["accuracy"][-1] - reference["accuracy"][-1]
        assert row["difference"]["difference"] == pytest.approx(wanted)
        assert row["tokens_difference"]["difference"] == pytest.approx(
            row["tokens"] - reference["tokens"]
        )
    assert [row["p_value_holm"] for row in others] == holm(
        [row["difference"]["p_value"] for row in others]
    )
    page = (out / "ablate.md").read_text()
    for line in page.splitlines():
        if line.startswith("| shape="):
            assert line in console
    assert "corrected for 2 tests (Holm)" in page and "Equal steps, seeds 0, 1." in page
    drawn = ET.fromstring((out / "ablate.svg").read_text())
    labels = {element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"shape=cosine, siri-low", "shape=cosine, siri-high", "shape=constant, last"} <= labels

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl")}
    assert ablate(*TWO, "--seeds", "2", "--against", "shape=constant") == 0
    assert capsys.readouterr().out.count(": is finished") == 4
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl")} == before
    assert told(out)["against"] == "shape=constant@last"
    assert ablate(*TWO, "--seeds", "2", "--show", "--at", "last,best") == 0
    assert "best was chosen by the questions" in capsys.readouterr().out

    assert ablate(*TWO, "--seeds", "2", "--show", "--at", "siri-low-lagged") == 0
    assert "no finished run has such a checkpoint yet" in capsys.readouterr().out
    # A note names a reference without a row; one that cannot be is refused before any run.
    against = ("--show", "--against", "shape=constant@siri-low")
    assert ablate(*TWO, "--seeds", "2", *against) == 0
    text = capsys.readouterr().out
    assert "shape=constant@siri-low has no row, so the differences are from shape=cosine@" in text
    for name, message in (
        ("shape=constan", "did you mean shape=constant?"),
        ("shape=constant@hig", "takes one of start, "),
    ):
        assert ablate(*TWO, "--against", name, out="none") == 1
        error = capsys.readouterr().err
        assert error.startswith(f"siri-train ablate: --against: got '{name}'") and message in error
        assert not (tmp_path / "none").exists()

    assert ablate(*TWO, "--seeds", "2", "train.lr=0.002") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "shape=cosine seed 0 was begun with other settings" in error
    assert "train.lr was 0.001, is now 0.002" in error

    # Damaged files: odd entries have no name; without the answers there is nothing to test.
    summary = out / "shape=cosine" / "seed-0" / "summary.json"
    summary.write_text(
        json.dumps(["x", 3, {}, {"name": "siri-low", "step": []}, *json.loads(summary.read_text())])
    )
    assert ablate(*TWO, "--seeds", "2", "--show") == 0
    (out / "shape=cosine" / "seed-1" / "eval_questions.jsonl").unlink()
    capsys.readouterr()
    assert ablate(*TWO, "--seeds", "2", "--show") == 1
    assert "seed-1: has no evaluation by question" in capsys.readouterr().err


@pytest.mark.slow
def test_two_at_a_time_give_what_one_gives(ablate: Ablate, tmp_path: Path) -> None:
    assert ablate(*TWO, "--seeds", "2", "--jobs", "1", out="one") == 0
    assert ablate(*TWO, "--seeds", "2", "--jobs", "2", out="two") == 0
    assert logs(tmp_path / "one") == logs(tmp_path / "two")
    one, two = ((tmp_path / name / "ablate.json").read_text() for name in ("one", "two"))

    def timeless(text: str) -> Any:
        found = json.loads(text)
        for row in (*found["rows"], *found["runs"]):
            row.pop("seconds")
        return found

    assert timeless(one) == timeless(two)


@pytest.mark.costly
def test_at_equal_tokens_runs_end_with_the_step_that_reaches_them(
    ablate: Ablate, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--method", "siri,constant-min", "--match", "tokens")
    assert ablate(*words, "train.steps=3") == 0

    def sampled(arm: str) -> list[int]:
        return [
            row["tokens"] + row["tokens_discarded"]
            for row in rows(out / arm / "seed-0" / "metrics.jsonl")
        ]

    budget, other = sum(sampled("siri")), sampled("constant-min")
    assert len(sampled("siri")) == 3
    assert sum(other[:-1]) < budget <= sum(other)
    assert told(out)["rows"][-1]["steps"] == [len(other)]
    # The same again changes nothing; another kind of match is another ablation.
    assert ablate(*words, "train.steps=3") == 0
    assert sampled("constant-min") == other
    assert ablate("--method", "siri,constant-min", "train.steps=3") == 1


@pytest.mark.costly
def test_a_killed_run_is_reported_and_continued(
    ablate: Ablate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert ablate(*TWO, out="whole") == 0
    killed = kill_when(
        lambda: len(lines(out / "shape=cosine" / "seed-0" / "metrics.jsonl")) >= 2,
        lambda: child_of(out / "shape=cosine" / "seed-0"),
        signal.SIGKILL,
    )
    capsys.readouterr()
    status = ablate(*TWO)
    assert killed()
    text = capsys.readouterr().out
    assert status == 1 and "ended by signal 9" in text and "seed-0.log" in text
    assert "1 of 2 runs failed" in text and "| shape=constant | last" in text
    assert ablate(*TWO) == 0
    assert logs(out) == logs(whole)


@pytest.mark.costly
def test_a_signal_stops_the_runs_with_checkpoints(
    ablate: Ablate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert ablate(*TWO, out="whole") == 0
    asked = kill_when(
        lambda: len(lines(out / "shape=cosine" / "seed-0" / "metrics.jsonl")) >= 1,
        os.getpid,
        signal.SIGTERM,
    )
    assert ablate(*TWO, "--jobs", "2") == 143
    assert asked()
    error = capsys.readouterr().err
    assert error.startswith("siri-train: stopped; run the same command again")
    assert error.count("\n") == 1
    assert ablate(*TWO) == 0
    assert logs(out) == logs(whole)


def test_a_crash_is_told_with_the_end_of_its_log(
    ablate: Ablate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    bad = f"data.train.0={{kind: file, path: {tmp_path / 'empty.jsonl'}}}"
    assert ablate(bad, "--method", "siri,constant-max") == 1
    text = capsys.readouterr().out
    assert text.count("failed with status 1") == 2 and "empty.jsonl" in text
    assert "no finished run has such a checkpoint yet" in text and "2 of 2 runs failed" in text
    assert told(tmp_path / "out")["rows"] == []


def test_the_sweep_names_its_cap_and_how_it_was_chosen(
    ablate: Ablate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = (
        "data.eval=[{kind: embedded, size: 12, seed: 1, name: test}, "
        "{kind: embedded, size: 12, seed: 2, name: validation}]"
    )
    words = (sets, "eval.select=validation", "--method", "constant-best", "--caps", "24,56")
    assert ablate(*words, "train.steps=1", "--jobs", "2") == 0
    text = capsys.readouterr().out
    out = tmp_path / "out" / "constant-best"
    ends = {}
    for cap in (24, 56):
        (record,) = [
            row
            for row in rows(out / f"cap={cap}" / "seed-0" / "eval_questions.jsonl")
            if row["set"] == "validation" and row["step"] == 1
        ]
        ends[cap] = (sum(record["right"][-1]), -sum(record["tokens"]))
    best = max(ends, key=lambda cap: ends[cap])
    found = told(tmp_path / "out")
    assert (found["set"], found["chosen_by"]) == ("test", "validation")
    assert [row["member"] for row in found["rows"]] == [f"cap={best}"]
    assert [row["member"] for row in found["swept"]] == ["cap=24", "cap=56"]
    shown = {row["member"]: row["accuracy"][-1] for row in found["swept"]}
    assert shown[f"cap={best}"] == found["rows"][0]["accuracy"][-1]
    page = (tmp_path / "out" / "ablate.md").read_text()
    for cap in (24, 56):
        line = f"| constant-best (cap={cap}) | 1 | {100 * shown[f'cap={cap}']:.1f} % ("
        assert line in page.partition("## Every cap that was tried")[2]
    assert f"the cap {best} was chosen by the set validation" in text and "too high" not in text
    assert ablate(*words, "train.steps=1", "--set", "validation", "--show") == 0
    assert "so its accuracy is too high" in capsys.readouterr().out
    assert ablate(*words, "train.steps=1", "--set", "tests", "--show") == 1
    assert "--set: got 'tests'" in capsys.readouterr().err


def test_an_arm_equal_to_another_can_be_the_reference(
    ablate: Ablate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--vary", "schedule.cycle=4,04", "train.steps=1", "--against", "cycle=04")
    assert ablate(*words) == 0
    assert told(tmp_path / "out")["against"] == "cycle=4@last"
    assert "has no row" not in capsys.readouterr().out


def test_a_dry_run_writes_nothing(
    ablate: Ablate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablate("--method", "siri,constant-max", "--seeds", "3", "--dry-run") == 0
    text = capsys.readouterr().out
    assert "6 runs of 4 steps" in text and "schedule.shape=constant" in text
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(
    ablate: Ablate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.jsonl").touch()
    assert ablate(*TWO) == 1
    assert "holds a run or a demo" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_command_leaves_nothing_running_and_continues(
    ablate: Ablate, recipe: Path, tmp_path: Path
) -> None:
    """The command in processes of its own, as a user has it."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = [sys.executable, "-m", "siri_train", "ablate", str(recipe), *TWO, "train.steps=12"]
    words += ["--out", str(out)]
    first = out / "shape=cosine" / "seed-0"
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(lambda: len(lines(first / "metrics.jsonl")) >= 2 or process.poll() is not None)
    assert process.poll() is None
    process.kill()
    process.wait()
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ablate(*TWO, "train.steps=12", out="whole") == 0
    assert logs(out) == logs(whole)


def lines(path: Path) -> Sequence[str]:
    return path.read_text().splitlines() if path.exists() else []


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 300
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def child_of(folder: Path) -> int:
    """The process that holds a run's folder."""
    return int(json.loads((folder / ".siri-train.lock").read_text())["pid"])


def kill_when(when: Callable[[], bool], whom: Callable[[], int], signum: int) -> Callable[[], bool]:
    """Send a signal from a thread once ``when`` holds; whether it was sent."""
    sent: list[int] = []

    def watch() -> None:
        wait_for(when)
        os.kill(whom(), signum)
        sent.append(signum)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()

    def ended() -> bool:
        thread.join(timeout=60)
        return bool(sent)

    return ended
