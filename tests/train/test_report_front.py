"""The Pareto front on the page: dominated points, steps, and hypervolumes by a grid."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path

import pytest

from siri_train.report import write_report
from siri_train.report.charts import colours
from siri_train.report.data import read_run_folder
from siri_train.report.eval_sets import eval_sets
from siri_train.report.front import front_table, nadir, on_front, placed
from siri_train.report.pareto import Spot, plane, steps
from siri_train.report.questions import all_records
from tests.train.report_content import write_folder
from tests.train.report_page import check, evaluation, jsonl

SEEDS = [time.time_ns() + k for k in range(5)]


def draw(rng: random.Random, folder: Path) -> Path:
    """Runs whose evaluations lie on a coarse grid, so that many are equal in one of the two."""
    for name in ("siri", "constant", "third")[: rng.randint(1, 3)]:
        rows = [
            evaluation(step, None, rng.randint(0, 10) / 10, rng.randint(1, 12))
            for step in range(rng.randint(1, 12))
        ]
        jsonl(folder / name / "eval.jsonl", rows)
    return folder


@pytest.mark.parametrize("seed", SEEDS)
def test_dominated_by_the_definition(seed: int, tmp_path: Path) -> None:
    folder = read_run_folder(draw(random.Random(seed), tmp_path))
    points = placed(folder)
    best = {
        id(one.one)
        for one in points
        if not any(
            two.tokens <= one.tokens and two.accuracy >= one.accuracy
            and (two.tokens, two.accuracy) != (one.tokens, one.accuracy)
            for two in points
        )
    }  # fmt: skip
    assert {id(one.one) for one in on_front(points)} == best, seed
    page = check(write_report(tmp_path))
    dots = [attrs["class"] for tag, attrs in page.tags
            if tag == "circle" and "less" in str(attrs.get("class"))]  # fmt: skip
    beaten = sum("beaten" in str(css) for css in dots)
    assert len(dots) == 2 * len(points), seed  # wide and narrow; nothing is named here
    assert beaten == 2 * (len(points) - len(best)), seed


@pytest.mark.parametrize("seed", SEEDS)
def test_hypervolume_by_counting_cells(seed: int, tmp_path: Path) -> None:
    folder = read_run_folder(draw(random.Random(seed), tmp_path))
    points, table = placed(folder), front_table(folder, colours(folder))
    assert table is not None
    most, least = nadir(points)
    shown = {one["label"]: one["value"] for one in table["volumes"]}
    for place, run in enumerate(folder.runs):
        own = [(one.tokens, one.accuracy) for one in points if one.run == place]
        cells = 0
        for x in range(int(most)):  # cells of one token by a tenth
            for y in range(round(10 * least), 10):
                cells += any(a <= x and round(10 * b) >= y + 1 for a, b in own)
        assert shown[run.label] == pytest.approx(cells / 10, abs=1e-9), seed


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_figures_beside_the_plane_are_those_of_the_logs(seed: int, tmp_path: Path) -> None:
    write_folder(tmp_path, seed)
    folder = read_run_folder(tmp_path)
    table = front_table(folder, colours(folder))
    assert table is not None
    text = re.sub(r"\s+", " ", check(write_report(tmp_path)).text)
    for point in table["points"]:
        assert f"{point['label']} {point['tokens']} {point['accuracy']}" in text, seed
    for volume in table["volumes"]:
        low, high = map(float, re.findall(r"[\d.]+", volume["text"])[1:])
        assert low <= high and f"{volume['label']} {volume['text']}" in text, seed
    best = on_front(placed(folder))
    assert [float(point["tokens"]) for point in table["points"]] == pytest.approx(
        [one.tokens for one in best], abs=0.06
    )


def test_steps_stay_in_the_box() -> None:
    rng = random.Random(SEEDS[0])
    for _ in range(200):
        points = sorted((rng.random(), rng.random()) for _ in range(rng.randint(1, 9)))
        box = (0.2, 0.9, 0.3, 0.8)
        for one, two in steps(points, box):
            assert one[0] == two[0] or one[1] == two[1]
            for x, y in (one, two):
                assert box[0] <= x <= box[1] and box[2] <= y <= box[3]


def test_a_close_up_shows_the_front_and_not_the_start() -> None:
    def spot(tokens: float, accuracy: float, label: str = "") -> Spot:
        return Spot(tokens, accuracy, None, "siri", f"{label} {tokens}", label)

    named = [spot(40, 0.3, "start"), spot(20, 0.9, "siri-low"), spot(20.01, 0.91, "siri-high")]
    path = [spot(40, 0.3), spot(30, 0.6), spot(15, 0.89), spot(9, 0.5)]
    picture = str(plane([("siri", path)], named, 720, 440, "x"))
    low, high, below, above = map(
        float, re.search('data-limits="([^"]*)"', picture)[1].split()  # type: ignore[index]
    )  # fmt: skip
    assert low <= 15 < 20.01 <= high < 30 and below > 0.5 and above >= 0.91
    assert "on the front" in picture and '<polyline class="curve front"' in picture


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_a_control_of_the_summary_alone_is_on_the_front_or_keeps_others_off(
    seed: int, tmp_path: Path
) -> None:
    write_folder(tmp_path, seed)
    before = front_table(read_run_folder(tmp_path), {run.name: "siri" for run in
                                                     read_run_folder(tmp_path).runs})  # fmt: skip
    assert before is not None
    rng = random.Random(seed)
    tokens, accuracy = rng.uniform(1, 60), rng.random()
    row = {"name": "constant-9", "run": "controls/constant-9", "tokens": tokens}
    (tmp_path / "summary.json").write_text(json.dumps([{**row, "accuracy": accuracy}]))
    folder = read_run_folder(tmp_path)
    table = front_table(folder, colours(folder))
    assert table is not None and table["of"] == before["of"] + 1
    points = [(one.tokens, one.accuracy) for one in placed(folder)]
    beaten = any(t <= tokens and a >= accuracy for t, a in points)
    labels = [point["label"] for point in table["points"]]
    assert ("constant-9" in labels) == (not beaten), seed
    left = [one for one in on_front(placed(folder))
            if beaten or one.tokens < tokens or one.accuracy > accuracy]  # fmt: skip
    assert len(labels) == len(left) + (not beaten), seed


@pytest.mark.parametrize("seed", SEEDS)
def test_fronts_are_of_runs_with_the_same_questions(seed: int, tmp_path: Path) -> None:
    """By fingerprints, by the number of questions, or by the recipe: never across sets."""
    rng = random.Random(seed)
    by = rng.choice(["questions", "recipe", "fingerprint"])
    kinds = rng.randint(2, 3)
    of_run = {f"run{place}": place % kinds for place in range(rng.randint(kinds, 6))}
    for name, kind in of_run.items():
        rows = [evaluation(step, None, rng.randint(1, 9) / 10, rng.randint(9, 60))
                for step in range(rng.randint(1, 6))]  # fmt: skip
        counts = [rng.randint(0, 2) for _ in range(5)]
        for row in rows:
            row["questions"] = 400 + kind if by == "questions" else 400
        jsonl(tmp_path / name / "eval.jsonl", rows)
        source = kind if by == "recipe" else 0
        (tmp_path / name / "config.yaml").write_text(f"data: {{eval: {{seed: {source}}}}}\n")
        if by == "fingerprint":
            jsonl(tmp_path / name / "eval_questions.jsonl", [
                {"step": row["step"], "name": None, "set": None, "samples": 2, "budgets": [16, 32],
                 "fingerprint": str(kind), "ids": list("abcde"), "right": [counts, counts],
                 "tokens": [9.0] * 5} for row in rows])  # fmt: skip
    folder = read_run_folder(tmp_path)
    asked = eval_sets(folder, all_records(folder))
    expected = [
        tuple(place for place, run in enumerate(folder.runs) if of_run[run.name] == kind)
        for kind in dict.fromkeys(of_run[run.name] for run in folder.runs)
    ]
    assert [one.runs for one in asked] == expected, (seed, by)
    for one in asked:
        own = [point for point in placed(folder) if point.run in one.runs]
        table = front_table(folder, colours(folder), runs=one.runs)
        assert table is not None and table["of"] == len(own), (seed, by)
        assert len(table["points"]) == len({(p.run, p.one.step) for p in on_front(own)}), (seed, by)
        assert table["reference"].startswith(f"{nadir(own)[0]:,.1f} tokens"), (seed, by)
    page = check(write_report(tmp_path))
    text = re.sub(r"\s+", " ", page.text)
    assert f"{len(asked)} different sets of questions" in text
    titles = sum(tag == "svg" and "plot" in str(attrs.get("class"))
                 and "plane" in str(attrs.get("aria-labelledby"))
                 for tag, attrs in page.tags)  # fmt: skip
    assert titles == 2 * len(asked), (seed, by)
