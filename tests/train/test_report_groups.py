"""Token groups on the page: means by phase and correctness, and each group over the steps."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from siri_train.commands.tokens import tables
from siri_train.commands.tokens_text import as_json
from siri_train.report import write_report
from siri_train.report.charts import figures
from siri_train.report.data import read_run_folder
from siri_train.report.group_dots import group_values
from siri_train.report.word_rates import KINDS, MOST_GROUPS, group_names
from tests.train.report_content import GROUPS, write_folder, write_run
from tests.train.report_page import check, jsonl, make_run

SEEDS = [time.time_ns() + k for k in range(3)]


@pytest.mark.parametrize("seed", SEEDS)
def test_rates_are_words_over_tokens_of_a_phase(seed: int, tmp_path: Path) -> None:
    write_folder(tmp_path, seed)
    folder = read_run_folder(tmp_path)
    values = group_values(folder)
    assert [one["group"] for one in values] == list(GROUPS), seed
    names = {run.label: run.name for run in folder.runs}
    for panel in values:
        assert len(panel["rows"]) == 4, seed  # two phases of SIRI, one of each control
        for row in panel["rows"]:
            path = tmp_path / names[row["run"]] / "metrics.jsonl"
            rows = [json.loads(line) for line in path.open()]
            for kind in KINDS:
                key = "tokens" if kind == "all" else f"tokens_{kind}"
                found = [
                    (one["token_groups"][panel["group"]][kind], one[key])
                    for one in rows
                    if one["phase"] == row["phase"]
                ]
                there = [pair for pair in found if pair[0] is not None]
                words = sum(value * tokens for value, tokens in there)
                rate = words / sum(tokens for _, tokens in there)
                assert row[kind] == pytest.approx(rate), seed
    page = check(write_report(tmp_path))
    dots = [attrs for tag, attrs in page.tags
            if tag == "circle" and "cy" in attrs and "kind-" in str(attrs["class"])]  # fmt: skip
    assert len(dots) == 2 * len(GROUPS) * 4 * 3 + 3, seed  # and the three of the legend


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_dots_lie_at_their_values(seed: int, tmp_path: Path) -> None:
    write_run(tmp_path, "cosine", random.Random(seed))
    page = (write_report(tmp_path)).read_text(encoding="utf-8")
    picture = re.search(r'<svg class="plot dots".*?</svg>', page, re.S)
    assert picture
    found = re.findall(r'cx="([\d.]+)"[^>]*><title>([^,]+), [^:]*: ([\d.e+-]+) per', picture[0])
    assert len(found) == len(GROUPS) * 2 * 3
    for group in GROUPS:  # on a line through the panel's scale
        places = sorted((float(value), float(x)) for x, name, value in found if name == group)
        (v0, x0), (v1, x1) = places[0], places[-1]
        for value, x in places:
            assert x == pytest.approx(x0 + (value - v0) / (v1 - v0) * (x1 - x0), abs=1.5), seed


def test_each_group_over_the_steps(tmp_path: Path) -> None:
    write_run(tmp_path, "cosine", random.Random(SEEDS[0]), steps=20, cycle=10)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    page = check(write_report(tmp_path))
    titles = [one["title"] for one in page.data["charts"]]
    assert "Backtracking" not in titles  # the group has its own chart
    for group in GROUPS:
        chart = page.data["charts"][titles.index(f"Words: {group}")]
        assert [line["label"] for line in chart["lines"]] == list(KINDS)
        for line, kind in zip(chart["lines"], KINDS, strict=True):
            wanted = [row["token_groups"][group][kind] for row in rows]
            assert line["y"] == [None if v is None else pytest.approx(v, rel=1e-5) for v in wanted]


def test_old_runs_show_what_they_counted(tmp_path: Path) -> None:
    make_run(tmp_path, "cosine")
    folder = read_run_folder(tmp_path)
    (panel,) = group_values(folder)
    assert [(row["phase"], row["all"], row["right"]) for row in panel["rows"]] == [
        ("compression", pytest.approx(12.5), None), ("expansion", pytest.approx(12.5), None)
    ]  # fmt: skip
    titles = [one.chart.title for one in figures(folder)[0]]
    assert "Backtracking" in titles and not any(title.startswith("Words") for title in titles)


@pytest.mark.parametrize("groups", [
    None, 3, [], {}, {"a": None}, {"a": {"all": "x", "right": float("nan")}}, {"a": {"all": -2.0}},
    {"": {"all": 0}}, {f"g{k}": {"all": 1.0, "wrong": 0.0} for k in range(40)},
    {"<b>&": {"all": 1e99, "right": 1}},
])  # fmt: skip
def test_odd_groups_make_a_page(tmp_path: Path, groups: Any) -> None:
    rows = [{"step": step, "phase": "expansion", "token_groups": groups} for step in range(3)]
    jsonl(tmp_path / "metrics.jsonl", rows)
    drawn = len(group_names(read_run_folder(tmp_path)))
    assert drawn <= MOST_GROUPS
    check(write_report(tmp_path))
    more = len(groups) - drawn if isinstance(groups, dict) and len(groups) > drawn else 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (f"{more} more groups of words are not drawn" in text) == (more > 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_page_and_tokens_command_say_the_same(seed: int, tmp_path: Path) -> None:
    """Also of damaged records: what one leaves out the other does."""
    rng = random.Random(seed)
    write_run(tmp_path, "cosine", rng)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    for row in rng.sample(rows, len(rows) // 3):
        key = rng.choice(["tokens", "tokens_right", "tokens_wrong", "token_groups", "phase"])
        odd = rng.choice([None, "many", -3, [], {}, rng.choice(rows)[key]])
        row[key] = odd
    del rng.choice(rows)["token_groups"]
    jsonl(tmp_path / "metrics.jsonl", rows)
    command = as_json(tables([tmp_path])[0])["runs"][0]["groups"]
    panels = group_values(read_run_folder(tmp_path))
    assert {panel["group"] for panel in panels} == set(GROUPS), seed
    for panel in panels:
        for row in panel["rows"]:
            said = command[panel["group"]]["phases"][row["phase"]]
            for kind in KINDS:
                assert row[kind] == pytest.approx(said[kind]["per_1k"], rel=1e-9), (seed, kind)


def test_a_step_without_tokens_is_left_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": step, "phase": "expansion", "token_groups": {"a": {"all": float(step)}}}
        for step in range(4)
    ]
    for tokens, mean in (([1, 1, 1, None], 1.0), ([1, 1, 1, 1], 1.5), ([0, 0, 2, 6], 2.75)):
        for row, count in zip(rows, tokens, strict=True):
            row["tokens"] = count
        jsonl(tmp_path / "metrics.jsonl", rows)
        (panel,) = group_values(read_run_folder(tmp_path))
        assert panel["rows"][0]["all"] == pytest.approx(mean)


def test_a_group_that_nobody_says_is_told_and_not_drawn(tmp_path: Path) -> None:
    write_run(tmp_path, "cosine", random.Random(SEEDS[0]))
    path = tmp_path / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    gone, *others = GROUPS
    for row in rows:
        row["token_groups"][gone] = dict.fromkeys(KINDS, 0.0)
    jsonl(path, rows)
    titles = [one.chart.title for one in figures(read_run_folder(tmp_path))[0]]
    assert f"Words: {gone}" not in titles
    assert all(f"Words: {group}" in titles for group in others)
    assert f"no response holds one of {gone}" in check(write_report(tmp_path)).text
