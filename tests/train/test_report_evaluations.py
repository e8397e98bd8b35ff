"""The page's table of evaluated checkpoints, sets in it, and the table of ``siri-train eval``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from siri_train.cli import main
from siri_train.commands.compare import compare
from siri_train.report import write_report
from siri_train.report.data import read_run_folder
from siri_train.report.eval_table import evaluation_table
from siri_train.report.evaluations import evaluations
from siri_train.terminal.table import aligned
from siri_train.train import train
from tests.train.report_page import check, jsonl


def row(step: int, accuracy: float | None, tokens: float, **more: Any) -> dict[str, Any]:
    return {
        "step": step, "name": None, "budgets": [8, 16], "accuracy": [0.1, accuracy],
        "accuracy_interval": [[0, 1], [0, 1]], "tokens": tokens, "tokens_at": [7.0, tokens],
        "truncated_frac": [0.5, 0.0], "backtrack_per_1k": 0.0, **more,
    }  # fmt: skip


def state(table: dict[str, Any]) -> list[tuple[str, ...]]:
    """Steps, budget and front of each line, with the set where there is one."""
    names = [text for text, _ in table["head"]]
    wanted = [n for n in ("set", "steps", "budget", "front") if n in names]
    for line in table["lines"]:
        assert len(line["cells"]) == len(names)
        assert line["dominated"] == (line["cells"][-1] == "dominated")
    return [tuple(line["cells"][names.index(n)] for n in wanted) for line in table["lines"]]


def test_dominated_checkpoints_are_marked_among_all_runs(tmp_path: Path) -> None:
    jsonl(tmp_path / "siri" / "eval.jsonl", [row(0, 0.5, 20.0), row(9, 0.6, 12.0)])
    jsonl(tmp_path / "constant" / "eval.jsonl", [row(0, 0.5, 20.0), row(9, 0.7, 19.0)])
    folder = read_run_folder(tmp_path)
    table = evaluations(folder)
    assert table is not None
    assert [line[:3] for line in state(table) if line[1] == "16"] == [
        ("0", "16", "dominated"), ("9", "16", "on it"),
        ("0", "16", "dominated"), ("9", "16", "on it"),
    ]  # fmt: skip
    assert all(front == "" for _, budget, front in state(table) if budget == "8")
    page = check(write_report(tmp_path))
    marked = [tag for tag, given in page.tags if tag == "tr" and given.get("class") == "dominated"]
    assert len(marked) == 2 and "All evaluated checkpoints" in page.text
    assert evaluations(replace(folder, runs=[])) is None


def test_every_set_has_its_lines_and_its_front(tmp_path: Path) -> None:
    def sets(one: float, two: float | None) -> dict[str, Any]:
        return {"set": "math", "sets": {"aime": row(3, one, 12.0), "math": row(7, two, 30.0)}}

    rows = [row(0, 0.9, 1.0, **sets(0.2, 0.5)), row(9, 0.9, 1.0, **sets(0.3, None))]
    jsonl(tmp_path / "eval.jsonl", rows)
    folder = read_run_folder(tmp_path)
    run = folder.runs[0]
    assert [one.best for one in run.evals] == [0.2, 0.3]  # the curves show the first set
    assert [one.step for one in run.evals] == [0, 9]
    table = evaluations(folder)
    assert table is not None
    assert [line for line in state(table) if line[2] == "16"] == [
        ("aime", "0", "16", "dominated"), ("math", "0", "16", "on it"),
        ("aime", "9", "16", "on it"), ("math", "9", "16", ""),
    ]  # fmt: skip
    check(write_report(tmp_path))


@pytest.mark.parametrize(
    "sets", [3, [], {}, {"a": 3}, {"a": None, "b": {"tokens": "x"}}, {"a": {"sets": {"b": {}}}}]
)
def test_odd_sets_make_a_page(tmp_path: Path, sets: object) -> None:
    jsonl(tmp_path / "eval.jsonl", [row(0, 0.5, 20.0, sets=sets, set=7)])
    check(write_report(tmp_path))


def test_table_of_an_evaluation_by_hand() -> None:
    one = {
        "accuracy": [0.25, 0.5], "accuracy_interval": [[0.2, 0.3], [0.4, 0.6]],
        "pass_at": {"1": [0.25, 0.5], "2": [0.4, 0.75]}, "tokens_at": [7.0, 1234.5],
        "truncated_frac": [0.5, 0.0], "questions": 1000,
    }  # fmt: skip
    text = evaluation_table({"budgets": [8, 2048], "samples": 2, **one})
    assert text.splitlines()[0].split() == (
        "| budget | accuracy | pass@2 | mean tokens | truncated | questions |".split()
    )
    assert "|  2,048 | 50.0 % ± 10.0 | 75.0 % |     1,234.5 |     0.0 % | 1,000 x 2 |" in text
    both = evaluation_table({"budgets": [8, 2048], "samples": 2, **one, "sets": {"a": one}})
    assert [line.split()[1] for line in both.splitlines()[2:]] == ["a", "a"]
    narrow = evaluation_table({"budgets": [8, 2048], "samples": 2, **one, "sets": {"a": one}}, 60)
    assert max(map(len, narrow.splitlines())) <= 60 and narrow.count("| a   |") == 4
    assert aligned(["a|b"], [["c"]], left=(0,)) == "| a\\|b |\n| ---- |\n| c    |"


def test_eval_writes_what_compare_reads(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = "[{kind: embedded, size: 6, seed: 1, name: a}, {kind: embedded, size: 5, seed: 2, "
    folder = train(tiny(f"data.eval={sets}name: b}}]", "eval.samples=2", "checkpoint.every=2"))
    saved = sorted((folder / "checkpoints").glob("step_*"))[-2:]
    for checkpoint in saved:
        capsys.readouterr()
        assert main(["eval", str(checkpoint)]) == 0
        shown = capsys.readouterr()
        printed = json.loads(shown.out[shown.out.index("{") :])
        assert printed == json.loads((checkpoint / "eval.json").read_text())
        assert "| a " in shown.err and "| pass@2 |" in shown.err
    found = compare(saved, "b")
    assert [len(point.record.ids) for point in found.points] == [5, 5, 5]  # and the run's start
    assert [point.step for point in found.points] == [0, *(int(path.name[5:]) for path in saved)]
    accuracy = [point.accuracy for point in found.points]
    assert accuracy[2] == pytest.approx(printed["sets"]["b"]["accuracy"][-1])
    # The run has evaluated the same checkpoint with the same seed.
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    at = {one["step"]: one for one in rows}[found.points[2].step]
    assert at["sets"]["b"]["accuracy"] == printed["sets"]["b"]["accuracy"]
    compare([folder, *saved])  # a run beside its checkpoints
