"""The chart of accuracy at every budget: its values are those of eval.jsonl."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from siri_train.report import write_report
from siri_train.report.budgets import budget_chart
from siri_train.report.data import read_run_folder
from tests.train.report_page import check, jsonl, make_demo


def curve(rng: random.Random, step: int, name: str | None, budgets: list[int]) -> dict:
    accuracy = sorted(rng.random() for _ in budgets)
    return {
        "step": step, "name": name, "budgets": budgets, "accuracy": accuracy,
        "accuracy_interval": [[max(0.0, a - 0.05), min(1.0, a + 0.05)] for a in accuracy],
        "tokens": 20.0, "questions": 64, "samples": 1,
    }  # fmt: skip


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return make_demo(tmp_path / "demo")


def test_each_named_checkpoint_has_the_curve_of_its_own_evaluation(demo: Path) -> None:
    seed = time.time_ns()
    rng = random.Random(seed)
    budgets = sorted(rng.sample(range(4, 64), rng.randint(3, 12)))
    siri = [curve(rng, step, None, budgets) for step in (0, 15, 45, 60)]
    constant = [curve(rng, step, None, budgets) for step in (45, 60)]
    jsonl(demo / "siri" / "eval.jsonl", siri)
    jsonl(demo / "constant" / "eval.jsonl", constant)
    chart = budget_chart(read_run_folder(demo))
    assert chart is not None, seed
    wanted = {"siri-low": siri[2], "siri-high": siri[3], "constant-cap": constant[1]}
    drawn = {line.label: line for line in chart.lines}
    # the summary's start names no run: it is the first that has an evaluation of step 0
    assert set(drawn) == {*wanted, "start"}, seed
    for name, row in wanted.items():
        assert list(drawn[name].points) == list(
            zip(map(float, budgets), row["accuracy"], strict=True)
        ), (seed, name)
        assert [bar[1:] for bar in drawn[name].bars] == [
            tuple(bounds) for bounds in row["accuracy_interval"]
        ], (seed, name)
    page = check(write_report(demo))
    assert "Accuracy at every budget" in page.text


def test_without_a_summary_the_latest_of_each_name(demo: Path) -> None:
    (demo / "summary.json").unlink()
    rng = random.Random(0)
    rows = [curve(rng, step, "siri-low", [4, 8, 12, 16]) for step in (15, 45)]
    jsonl(demo / "siri" / "eval.jsonl", [*rows, curve(rng, 50, None, [4, 8, 12, 16])])
    chart = budget_chart(read_run_folder(demo))
    assert chart is not None and [line.label for line in chart.lines] == ["siri-low"]
    assert [y for _, y in chart.lines[0].points] == rows[1]["accuracy"]


def test_of_named_sets_the_first_is_shown(demo: Path) -> None:
    rng = random.Random(1)
    selected, shown = (curve(rng, 45, None, [4, 8, 12]) for _ in range(2))
    sets = {"test": {k: shown[k] for k in ("accuracy", "accuracy_interval", "tokens")}}
    row = {**selected, "set": "validation", "sets": {**sets, "validation": {}}}
    jsonl(demo / "siri" / "eval.jsonl", [row])
    chart = budget_chart(read_run_folder(demo))
    assert chart is not None and [y for _, y in chart.lines[0].points] == shown["accuracy"]


def test_two_budgets_are_no_curve(demo: Path) -> None:
    assert budget_chart(read_run_folder(demo)) is None
    assert "Accuracy at every budget" not in check(write_report(demo)).text


def test_odd_rows_leave_gaps(demo: Path) -> None:
    summary = json.loads((demo / "summary.json").read_text())
    summary += [{"name": "gone", "step": 999}, {"name": None, "step": None, "run": 3}]
    (demo / "summary.json").write_text(json.dumps(summary))
    row = {"step": 45, "name": None, "budgets": [4, 8, 12], "accuracy": [0.1, None, "x"]}
    jsonl(demo / "siri" / "eval.jsonl", [row])
    chart = budget_chart(read_run_folder(demo))
    assert chart is not None
    assert [(line.label, list(line.points)) for line in chart.lines] == [
        ("siri-low", [(4.0, 0.1), (8.0, None), (12.0, None)])
    ]
    check(write_report(demo))
