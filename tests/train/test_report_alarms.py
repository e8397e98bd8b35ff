"""Alarms on the page: records become episodes, lanes and a list."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from siri_train.report import write_report
from siri_train.report.alarm_episodes import episodes
from siri_train.report.alarm_lanes import MOST_LANES, alarm_chart, alarm_list
from siri_train.report.charts import figures
from siri_train.report.data import read_run_folder
from tests.train.report_content import alarm_rows, write_run
from tests.train.report_page import check, jsonl

SEEDS = [time.time_ns() + k for k in range(6)]


def spans(rows: list[dict[str, Any]]) -> list[tuple[str, int, int | None]]:
    return [(one.name, one.since, one.until) for one in episodes(rows)]


@pytest.mark.parametrize("seed", SEEDS)
def test_episodes_are_those_that_were_written(seed: int) -> None:
    rng = random.Random(seed)
    steps, wanted, rows = rng.randint(3, 200), [], []
    for name in ("a", "b"):
        own = alarm_rows(rng, steps, name)
        rows += own
        since = None
        for row in own:
            if row["state"] == "raised":
                since = row["step"]
            elif row["state"] == "cleared":
                wanted.append((name, since, row["step"]))
                since = None
        wanted += [(name, since, None)] if since is not None else []
    rng.shuffle(rows)  # the order of lines tells nothing
    assert sorted(spans(rows), key=str) == sorted(wanted, key=str), seed
    again = rows + rng.sample(rows, len(rows) // 2)  # a resumed run wrote some once more
    assert spans(again) == spans(rows), seed


@pytest.mark.parametrize("seed", SEEDS)
def test_old_records_mark_their_own_steps(seed: int) -> None:
    rng = random.Random(seed)
    steps = sorted(rng.sample(range(40), rng.randint(1, 30)))
    found = episodes([{"step": step, "alarm": "x", "cause": "c"} for step in steps])
    covered = [step for one in found for step in range(one.since, one.until or 0)]
    assert covered == steps, seed
    assert all(two.since > (one.until or 0) for one, two in zip(found, found[1:], strict=False))


def test_a_killed_run_has_two_episodes() -> None:
    raised = {"alarm": "x", "state": "raised", "cause": "c", "action": "a"}
    rows = [{**raised, "step": 3, "since": 3}, {**raised, "step": 9, "since": 9}]
    assert spans(rows) == [("x", 3, 9), ("x", 9, None)]
    assert spans([{"alarm": "x", "state": "cleared", "step": 7, "since": 4}]) == [("x", 4, 7)]
    assert spans([{"alarm": "x", "state": "ongoing", "step": 7, "since": 3}]) == [("x", 3, None)]


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_lanes_and_list_hold_every_episode(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    write_run(tmp_path, "cosine", rng)
    folder = read_run_folder(tmp_path)
    chart = next(one.chart for one in figures(folder)[0] if one.chart.title == "Alarms")
    for line, name in zip(chart.lines, chart.y_names, strict=True):
        own = [one for one in episodes(folder.runs[0].alarms) if one.name == name]
        drawn = [x for x, y in line.points if y is not None]
        ends = [(one.since, 60 if one.until is None else one.until) for one in own]
        merged: list[list[float]] = []
        for a, b in ends:
            b = max(b, a + 1)
            if merged and a <= merged[-1][1]:
                merged[-1][1] = b
            else:
                merged.append([a, b])
        assert drawn == [x for pair in merged for x in pair], seed
    page = check(write_report(tmp_path))
    shown = next(one for one in page.data["charts"] if one["title"] == "Alarms")
    assert shown["lanes"] and [one["label"] for one in shown["lines"]] == list(chart.y_names)
    limits = [attrs["data-limits"] for _, attrs in page.tags if "data-lanes" in attrs]
    low, high = map(float, str(limits[0]).split()[:2])
    assert (low, high) == (0, 60), seed  # the steps of the other charts
    for told in alarm_list(folder):
        assert told["name"] in page.text and told["text"] in page.text, seed
        own = [one for one in episodes(folder.runs[0].alarms) if one.name == told["name"]]
        assert told["on"] == (own[-1].until is None), seed
        assert f"{own[-1].since} to {own[-1].until}" in told["text"] or told["on"]
        assert f"since step {own[-1].since}, for {59 - own[-1].since} steps" in told["text"] or (
            not told["on"]
        )


def test_many_alarms_and_many_bars_are_joined(tmp_path: Path) -> None:
    rows = [{"step": step, "alarm": "often", "cause": "c"} for step in range(0, 2000, 2)]
    rows += [{"step": 5, "alarm": f"rare {k}", "cause": "c"} for k in range(30)]
    jsonl(tmp_path / "alarms.jsonl", rows)
    jsonl(tmp_path / "metrics.jsonl", [{"step": step} for step in range(2000)])
    chart, text = alarm_chart(read_run_folder(tmp_path)) or pytest.fail("no chart")
    assert len(chart.lines) == MOST_LANES and f"{31 - MOST_LANES} more" in text
    often = chart.lines[-1]  # the one with the most steps is on top
    assert often.label == "often" and len(often.points) <= 3 * 150
    xs = [x for x, _ in often.points]
    assert xs == sorted(xs) and (xs[0], xs[-1]) == (0, 1999)
    listed = alarm_list(read_run_folder(tmp_path))
    assert len(listed) == 21 and listed[-1]["name"] == "11 more"
    check(write_report(tmp_path))


@pytest.mark.parametrize("row", [
    {}, {"step": "x"}, {"step": 1, "alarm": None}, {"step": 2, "alarm": "a", "state": 7},
    {"step": 3, "alarm": "a", "state": "raised", "since": "y", "age": None},
    {"step": 4, "alarm": "a", "state": "cleared", "since": 99}, {"step": -1, "alarm": "a"},
    {"step": 1e300, "alarm": ["b"]},
])  # fmt: skip
def test_odd_records_make_a_page(tmp_path: Path, row: dict[str, Any]) -> None:
    jsonl(tmp_path / "alarms.jsonl", [row, {"step": 1, "alarm": "a", "state": "raised"}, row])
    check(write_report(tmp_path))
