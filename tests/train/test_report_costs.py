"""Costs on the page: sums over the logs, prices, and what a point of accuracy took."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path

import pytest

from siri_train.report import write_report
from siri_train.report.cost_tables import cost_tables
from siri_train.report.costs import costs, device, price
from siri_train.report.data import Run, read_run_folder
from siri_train.report.held_out import best_control
from siri_train.report.scale import show
from siri_train.report.several import read_several
from tests.train.report_content import write_folder, write_run
from tests.train.report_page import check, evaluation, jsonl

SEEDS = [time.time_ns() + k for k in range(4)]


def rows_of(folder: Path, name: str, file: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name / file).open()]


@pytest.mark.parametrize("seed", SEEDS)
def test_costs_are_sums_of_the_logs(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    paid, ranks = rng.choice([None, 0.0, 3.25]), rng.choice([None, 1, 8])
    folder = read_run_folder(write_folder(tmp_path, seed, price=paid, ranks=ranks))
    found = costs(folder)
    assert [one.run.name for one in found] == [run.name for run in folder.runs]
    for one in found:
        rows = rows_of(tmp_path, one.run.name, "metrics.jsonl")
        tokens = sum(row["tokens"] + row["tokens_discarded"] for row in rows)
        seconds = sum(row["time_rollout"] + row["time_train"] for row in rows)
        assert one.whole.tokens == tokens and one.whole.steps == len(rows), seed
        assert one.whole.seconds == pytest.approx(seconds), seed
        assert one.whole.hours == pytest.approx(seconds * (ranks or 1) / 3600), seed
        assert one.ranks == (ranks is not None)
        if paid is None:
            assert one.whole.money is None
        else:
            assert one.whole.money == pytest.approx(paid * one.whole.hours), seed
        for key in ("steps", "tokens", "seconds", "hours"):
            parts = sum(getattr(cost, key) for cost in one.phases.values())
            assert parts == pytest.approx(getattr(one.whole, key)), (seed, key)
        evals = rows_of(tmp_path, one.run.name, "eval.jsonl")
        gained = evals[-1]["accuracy"][-1] - evals[0]["accuracy"][-1]
        assert one.gained == pytest.approx(gained), seed
        assert sum(one.changes.values()) == pytest.approx(gained), seed  # every end was evaluated


@pytest.mark.parametrize("seed", SEEDS)
def test_until_the_control_is_the_first_evaluation_as_good(seed: int, tmp_path: Path) -> None:
    folder = read_run_folder(write_folder(tmp_path, seed))
    finals = {name: rows_of(tmp_path, name, "eval.jsonl")[-1] for name in ("constant", "short")}
    goal = max(row["accuracy"][-1] for row in finals.values())
    control = best_control(folder)
    assert control is not None and control[1].evals[-1].best == goal
    for one in costs(folder):
        evals = rows_of(tmp_path, one.run.name, "eval.jsonl")
        step = next((row["step"] for row in evals if row["accuracy"][-1] >= goal), None)
        if step is None:
            assert one.reached is None, seed
            continue
        assert one.reached is not None and one.reached[1].step == step, seed
        before = rows_of(tmp_path, one.run.name, "metrics.jsonl")[:step]
        assert one.reached[0].tokens == sum(
            row["tokens"] + row["tokens_discarded"] for row in before
        )


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_the_page_shows_these_figures(seed: int, tmp_path: Path) -> None:
    folder = read_run_folder(write_folder(tmp_path, seed, price=2.0, ranks=4, device="cuda"))
    text = re.sub(r"\s+", " ", check(write_report(tmp_path)).text)
    for one in costs(folder):
        assert one.whole.money is not None
        money = f"{one.whole.money:,.2f}" if one.whole.money >= 0.1 else f"{one.whole.money:.2g}"
        assert f"{one.whole.tokens:,.0f}" in text and f" {money} " in text, seed
    assert "GPU hours" in text and "What it cost" in text and "one evaluation each" in text
    assert "price_per_gpu_hour is null" not in text


def test_units_and_notes(tmp_path: Path) -> None:
    rng = random.Random(1)
    write_run(tmp_path / "a", "cosine", rng, price=None, device="cpu")
    text = check(write_report(tmp_path)).text
    assert "process hours" in text and "price_per_gpu_hour is null" in text
    assert "one is assumed" in text and "money / point" not in text
    write_run(tmp_path / "b", "constant", rng, price=1.0, device="cpu", ranks=2)
    text = check(write_report(tmp_path)).text
    assert "The price is of a process hour" in text and "without money: a." in text
    write_run(tmp_path / "c", "constant", rng, price=1.0, device="auto", ranks=2)
    assert "An hour is one of a GPU" in check(write_report(tmp_path)).text


@pytest.mark.parametrize("config", [
    None, "", "{", "monitor: 3", "monitor: {price_per_gpu_hour: -1}", "device: [cpu]",
    "monitor: {price_per_gpu_hour: .nan}", "monitor: {price_per_gpu_hour: free}", "- a",
])  # fmt: skip
def test_odd_configurations_name_no_price(config: str | None) -> None:
    run = Run("x", Path("x"), config=config)
    assert price(run) is None and device(run) in ("", "gpu")


def test_gaps_are_said_and_a_lost_run_gains_nothing(tmp_path: Path) -> None:
    jsonl(tmp_path / "metrics.jsonl", [
        {"step": 0, "tokens": 5, "time_rollout": 1.0, "time_train": None, "phase": "compression"},
        {"step": 1, "tokens": "x", "time_rollout": -4, "time_train": 2.0, "phase": 7},
    ])  # fmt: skip
    folder = read_run_folder(tmp_path)
    (one,) = costs(folder)
    assert (one.whole.tokens, one.whole.seconds, one.whole.gaps) == (5, 3.0, 2)
    table = cost_tables(folder, {one.run.name: "siri"})
    assert table is not None and any("counted as 0" in note for note in table["notes"])
    assert table["runs"]["lines"][0]["cells"][-1] == "–" and not table["reached"]
    check(write_report(tmp_path))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_figure_that_no_step_has_is_not_zero(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    lost = rng.sample(["tokens", "time_rollout", "time_train"], rng.randint(1, 3))
    write_folder(tmp_path, seed, price=2.0)
    for path in tmp_path.glob("*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.open()]
        jsonl(path, [{k: v for k, v in row.items() if k not in lost} for row in rows])
    folder = read_run_folder(tmp_path)
    tables = cost_tables(folder, {run.name: "siri" for run in folder.runs})
    assert tables is not None
    timeless = {"time_rollout", "time_train"} <= set(lost)
    none = {"tokens": "tokens" in lost, "sampling": "time_rollout" in lost,
            "updates": "time_train" in lost, "hours": timeless, "money": timeless}  # fmt: skip
    for table in (tables["runs"], tables["phases"]):
        for line in table["lines"]:
            cells = dict(zip(table["head"], line["cells"], strict=True))
            assert {key: cells[key] == "–" for key in none} == none, (seed, lost, cells)
            for key in {"s / point", "money / point"} & set(cells):
                assert cells[key] == "–" or not timeless, (seed, cells)
    for text in tables["reached"]:
        assert not timeless or not re.search(r"\d s\b|money", text), (seed, text)
        assert ("tokens" in text) <= ("tokens" not in lost), (seed, text)


def test_runs_from_several_places_share_no_start(tmp_path: Path) -> None:
    jsonl(tmp_path / "a" / "metrics.jsonl", [{"step": 0, "tokens": 5}])
    jsonl(tmp_path / "b" / "metrics.jsonl", [{"step": 0, "tokens": 5}])
    jsonl(tmp_path / "a" / "eval.jsonl", [evaluation(0, "start", 0.1, 9)])
    jsonl(tmp_path / "b" / "eval.jsonl", [evaluation(1, "siri-low", 0.9, 9)])
    assert [one.gained for one in costs(read_run_folder(tmp_path))][1] == pytest.approx(0.8)
    folder = read_several([tmp_path / "a", tmp_path / "b"], "t")
    assert [one.gained for one in costs(folder)][1] is None


@pytest.mark.parametrize("seed", SEEDS)
def test_evaluations_have_a_cost_of_their_own(seed: int, tmp_path: Path) -> None:
    """Training and evaluations apart and together; what no record says is not recorded."""
    rng = random.Random(seed)
    ranks = rng.choice([1, 8])
    write_folder(tmp_path, seed, price=2.0, ranks=ranks)
    lost = {}
    for path in sorted(tmp_path.glob("*/eval.jsonl")):
        rows = [json.loads(line) for line in path.open()]
        for row in rows:
            row |= {"tokens_sampled": rng.randint(1, 10**6), "seconds": rng.uniform(0.1, 900)}
        lost[path.parent.name] = rng.choice([None, "tokens_sampled", "seconds"])
        if lost[path.parent.name]:
            del rng.choice(rows)[lost[path.parent.name]]
        jsonl(path, rows)
    folder = read_run_folder(tmp_path)
    tables = cost_tables(folder, {run.name: "siri" for run in folder.runs})
    assert tables is not None
    head, lines = tables["together"]["head"], tables["together"]["lines"]
    assert len(lines) == 3 * len(folder.runs)
    for place, one in enumerate(costs(folder)):
        rows = rows_of(tmp_path, one.run.name, "eval.jsonl")
        missing = lost[one.run.name]
        known = {key: sum(row.get(key, 0) for row in rows) for key in ("tokens_sampled", "seconds")}
        assert one.evals.tokens == (
            None if missing == "tokens_sampled" else known["tokens_sampled"]
        )
        if missing == "seconds":
            assert one.evals.seconds is None and one.evals.money is None, seed
        else:
            assert one.evals.hours == pytest.approx(known["seconds"] * ranks / 3600), seed
            assert one.evals.money == pytest.approx(known["seconds"] * ranks / 1800), seed
        cells = [dict(zip(head, line["cells"], strict=True)) for line in lines[3 * place :][:3]]
        assert [one["part"] for one in cells] == [
            "training", f"{len(rows)} evaluations", "together"
        ]  # fmt: skip
        for key, unknown in (("tokens", "tokens_sampled"), ("seconds", "seconds")):
            for cell in cells[1:]:
                assert (cell[key] == "not recorded") == (missing == unknown), (seed, cell)
        if missing != "tokens_sampled":
            both = one.whole.tokens + known["tokens_sampled"]
            assert cells[2]["tokens"] == show(both, "tokens"), seed
    check(write_report(tmp_path))
