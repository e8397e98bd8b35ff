"""The command line as a user meets it: every command, and errors without a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from siri_train.cli import main
from tests.train.conftest import TINY


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(
        yaml.safe_dump({**TINY, "model": {"scratch": {}}, "sft": {"steps": 2, "batch_size": 4}})
    )
    return "tiny.yaml"


def test_sft_train_resume_eval_report_export(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sft", recipe]) == 0
    assert main(["train", recipe, "train.steps=3"]) == 0
    assert main(["train", recipe, "train.steps=4"]) == 0
    assert "continues from step 3" in capsys.readouterr().out
    run = Path("runs/tiny")
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4

    assert main(["eval", str(run / "checkpoints" / "step_000004"), "eval.samples=2"]) == 0
    graded = json.loads((run / "checkpoints" / "step_000004" / "eval.json").read_text())
    assert graded["budgets"] == [24, 56] and graded["samples"] == 2 and graded["questions"] == 16

    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").is_file()
    assert main(["export", str(run), "--which", "high"]) == 0
    AutoModelForCausalLM.from_pretrained(run / "export" / "siri-high")


def test_dry_run_shows_the_configuration_and_writes_nothing(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", recipe, "train.lr=0.5", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "lr: 0.5" in out and "AdamW moments" in out and "64 training and 16 held-out" in out
    # a CPU has no size to fit
    assert "hours: unknown" in out and "fit" not in out
    assert yaml.safe_load(out)["train"]["lr"] == 0.5
    assert not Path("runs").exists()


def test_overrides_may_stand_on_both_sides_of_an_option(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", recipe, "train.lr=0.5", "--dry-run", "train.steps=7"]) == 0
    shown = capsys.readouterr().out
    assert "lr: 0.5" in shown and "steps: 7" in shown
    for extra in ("oops", "--oops=1"):
        with pytest.raises(SystemExit):
            main(["train", recipe, "--dry-run", "train.steps=7", extra])
        assert f"unrecognized arguments: {extra}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["report", "run", "a.b=c"])


def test_schedule_shows_the_papers_cosine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["schedule", "--svg", "cap.svg"]) == 0
    out = capsys.readouterr().out
    # reference values of the paper's 640-step cosine at 0, 80, 160, 240, 320, ...
    for cap in ("16,384", "15,184", "12,288", "9,392", "8,192"):
        assert cap in out
    assert Path("cap.svg").read_text().lstrip().startswith("<svg")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["schedule.cycle=320"], "siri-low after 160 480 800"),  # the paper's ablation
        (["schedule.shape=step-up", "schedule.options={at: 360}"], "siri-high after 1,920"),
        (["schedule.shape=plateau"], "the run decides when the cap turns; shown are the latest"),
        (["schedule.shape=toggle", "reward.function=toggle"], "phases act through the reward togg"),
        (["schedule.max_len=60000"], "60,000"),  # more than train.token_budget
        (["schedule.shape=constant", "schedule.max_len=4096"], "4,096"),  # below min_len
    ],
)
def test_schedule_shows_any(
    overrides: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    svg = tmp_path / "cap.svg"
    assert main(["schedule", "siri-1.5b", *overrides, "--svg", str(svg)]) == 0
    assert expected in capsys.readouterr().out and svg.read_text().startswith("<svg")


def test_doctor_tells_what_works_and_what_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "ok  portable" in out and "ok  reference" in out and "torch" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "tiny.yaml", "train.stps=1"], "did you mean train.steps?"),
        (["train", "nowhere.yaml"], "no such file"),
        (["train", "tiny.yaml", "schedule.cycle=0"], "schedule.cycle"),
        (["train", "tiny.yaml", "schedule.min_len=99"], "min_len"),
        (["train", "tiny.yaml", "schedule.max_len=900"], "positions"),
        (["train", "tiny.yaml", "data.train=[{kind: file, path: q.jsonl}]"], "q.jsonl"),
        (["train", "tiny.yaml", "--resume", "nowhere"], "--resume"),
        (["sft", "tiny.yaml", "sft=null"], "no supervised stage"),
        (["eval", "nowhere"], "not a checkpoint"),
        (["report", "nowhere"], "not a folder"),
        (["export", "nowhere", "--which", "low"], "no run"),
        (["convert", "nowhere.gguf", "out"], "nowhere.gguf"),
        (["convert", "no_such_package:x.gguf", "out"], "no_such_package"),
    ],
)
def test_errors_are_one_clear_line(
    recipe: str, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error
    assert not Path("runs").exists()
