"""The chart of accuracy at every budget: its values are those of eval.jsonl."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path

import pytest

from siri_train.report import write_report
from siri_train.report.budgets import (
    MOST_DRAWN,
    budget_chart,
    budget_table,
    every_budget,
    methods,
)
from siri_train.report.data import read_run_folder
from siri_train.report.page import build_page
from siri_train.report.several import read_several
from tests.train.report_content import BUDGETS, write_folder
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


def test_each_named_checkpoint_has_its_own_curve(demo: Path) -> None:
    seed = time.time_ns()
    rng = random.Random(seed)
    budgets = sorted(rng.sample(range(4, 64), rng.randint(3, 12)))
    summary = json.loads((demo / "summary.json").read_text())
    names = [row["name"] for row in summary] + ["constant-20", "constant-24"]
    summary += [{**summary[0], "name": name} for name in names[4:]]
    wanted = {}
    for row in summary:
        one = curve(rng, 0, None, budgets)
        wanted[row["name"]] = one
        row |= {
            "budgets": budgets, "accuracy_at": one["accuracy"],
            "accuracy_at_interval": one["accuracy_interval"],
        }  # fmt: skip
    (demo / "summary.json").write_text(json.dumps(summary))
    chart = budget_chart(read_run_folder(demo))
    assert chart is not None, seed
    assert [line.label for line in chart.lines] == names, seed
    for line in chart.lines:
        one = wanted[line.label]
        points = list(zip(map(float, budgets), one["accuracy"], strict=True))
        assert list(line.points) == points, (seed, line.label)
        assert [bar[1:] for bar in line.bars] == [
            tuple(bounds) for bounds in one["accuracy_interval"]
        ], (seed, line.label)
    assert len({line.css for line in chart.lines}) == len(names), seed  # all can be told apart
    page = check(write_report(demo))
    assert "Accuracy at every budget" in page.text and "constant-24" in page.text


def test_without_a_summary_the_latest_of_each_name(demo: Path) -> None:
    (demo / "summary.json").unlink()
    rng = random.Random(0)
    rows = [curve(rng, step, "siri-low", [4, 8, 12, 16]) for step in (15, 45)]
    jsonl(demo / "siri" / "eval.jsonl", [*rows, curve(rng, 50, None, [4, 8, 12, 16])])
    chart = budget_chart(read_run_folder(demo))
    assert chart is not None
    assert [line.label for line in chart.lines] == ["siri-low", "SIRI, step 50"]
    assert [y for _, y in chart.lines[0].points] == rows[1]["accuracy"]


def test_of_named_sets_the_first_is_shown(demo: Path) -> None:
    (demo / "summary.json").unlink()
    rng = random.Random(1)
    selected, shown = (curve(rng, 45, "siri-low", [4, 8, 12]) for _ in range(2))
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
    odd = {"budgets": [12, 4, None, 8], "accuracy_at": [None, 0.1, 0.5, "x"]}
    summary += [{"name": "odd", **odd, "accuracy_at_interval": [[0, 1], [0, 0.2], 3]}]
    summary += [{"name": None, "budgets": 3}, {"name": "short", "budgets": [1, 2, 3]}]
    (demo / "summary.json").write_text(json.dumps(summary))
    chart = budget_chart(read_run_folder(demo))
    assert chart is not None
    assert [(line.label, list(line.points), list(line.bars)) for line in chart.lines] == [
        ("odd", [(4.0, 0.1), (8.0, None), (12.0, None)], [(4.0, 0.0, 0.2)])
    ]
    check(write_report(demo))


@pytest.mark.parametrize("seed", [time.time_ns() + k for k in range(3)])
def test_all_methods_and_the_best_at_each_budget(seed: int, tmp_path: Path) -> None:
    write_folder(tmp_path, seed)
    folder = read_run_folder(tmp_path)
    found = methods(folder)
    names = [one.name for one in found]
    assert names == ["start", "siri-low", "siri-high", "constant, step 60", "short, step 60"], seed
    chart = budget_chart(folder)
    assert chart is not None and [line.label for line in chart.lines] == names, seed
    table = budget_table(found)
    assert [line["budget"] for line in table] == [str(budget) for budget in BUDGETS], seed
    for place, line in enumerate(table):
        shares = {one.name: one.points[place][1] for one in found}
        assert shares[line["name"]] == max(shares.values()), seed  # type: ignore[type-var]
        best = next(one for one in found if one.name == line["name"])
        for other in found:
            if other is best:
                continue
            assert best.record is not None and other.record is not None
            both = zip(best.record.right[place], other.record.right[place], strict=True)
            gaps = [a - b for a, b in both]
            mean = sum(gaps) / len(gaps)
            spread = (sum((g - mean) ** 2 for g in gaps) / (len(gaps) - 1) / len(gaps)) ** 0.5
            close = mean <= 1.96 * spread
            assert (other.name in line["close"]) == close, (seed, place, other.name)
    text = re.sub(r"\s+", " ", check(write_report(tmp_path)).text)
    for line in table:
        close = "; ".join(line["close"]) or "none"
        assert f"{line['budget']} {line['name']} {line['accuracy']} {close}" in text, seed


def test_without_records_of_questions_intervals_are_compared(tmp_path: Path) -> None:
    write_folder(tmp_path, 5)
    for path in tmp_path.glob("*/eval_questions.jsonl"):
        path.unlink()
    found = methods(read_run_folder(tmp_path))
    for line in budget_table(found):
        budget = float(line["budget"])
        best = next(one for one in found if one.name == line["name"])
        for other in found:
            bounds = best.bounds(budget), other.bounds(budget)
            if other is not best and None not in bounds:
                overlap = bounds[1][1] >= bounds[0][0]  # type: ignore[index]
                assert (other.name in line["close"]) == overlap


def test_an_entry_without_a_run_is_found_by_its_figures(tmp_path: Path) -> None:
    write_folder(tmp_path, 7)
    summary = []
    for name in ("siri", "constant"):  # as the page of several runs has them
        row = [json.loads(line) for line in (tmp_path / name / "eval.jsonl").open()][-1]
        summary.append({"name": f"{name} last", "step": row["step"], "budgets": BUDGETS,
                        "accuracy_at": row["accuracy"]})  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    found = methods(read_run_folder(tmp_path))
    assert [one.name for one in found] == ["siri last", "constant last", "short, step 60"]
    assert all(one.record is not None for one in found)


@pytest.mark.parametrize("seed", [time.time_ns() + k for k in range(3)])
def test_curves_of_many_runs_differ_and_the_rest_is_said(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    count = rng.randint(2, 12)
    for place in range(count):
        rows = [curve(rng, step, name, [8, 16, 32])
                for step, name in ((9, "siri-low"), (19, "siri-high"))]  # fmt: skip
        jsonl(tmp_path / f"run-{place}" / "eval.jsonl", rows)
    folder = read_several(sorted(tmp_path.iterdir()), "t")
    found = methods(folder)
    chart = budget_chart(folder, found)
    assert chart is not None and len(found) == 2 * count, seed
    looks = {(line.css, line.look) for line in chart.lines}
    assert len(looks) == len(chart.lines) == min(2 * count, MOST_DRAWN), seed
    told = f"Not drawn: {2 * count - MOST_DRAWN} more"
    assert (told in build_page(folder)) == (2 * count > MOST_DRAWN), seed


def test_runs_with_equal_results_are_not_taken_for_each_other(tmp_path: Path) -> None:
    rows = [curve(random.Random(1), 9, "siri-low", [8, 16, 32])]
    for name in ("one", "two"):
        jsonl(tmp_path / name / "eval.jsonl", rows)
    folder = read_several([tmp_path / "one", tmp_path / "two"], "t")
    assert [method.name for method in methods(folder)] == ["one siri-low", "two siri-low"]


@pytest.mark.parametrize("seed", [time.time_ns() + k for k in range(3)])
def test_every_figure_of_the_picture_is_in_a_table(seed: int, tmp_path: Path) -> None:
    folder = read_run_folder(write_folder(tmp_path, seed))
    found = methods(folder)
    table = every_budget(found)
    assert [line["name"] for line in table["lines"]] == [one.name for one in found], seed
    for one, line in zip(found, table["lines"], strict=True):
        shown = dict(zip(table["head"], line["cells"], strict=True))
        for budget, share in one.points:
            assert share is not None
            assert shown[f"{budget:,.0f}"].startswith(f"{100 * share:.1f} %"), seed
        assert sum(map(bool, line["cells"])) == len(one.points), seed
    assert "All figures of the picture" in build_page(folder)
