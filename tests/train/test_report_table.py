"""The table at the end of a run."""

from __future__ import annotations

import math
import random

import pytest

from siri_train.report import changes, summary_table
from siri_train.report.table import headline
from tests.train.report_page import SUMMARY


def test_summary_table():
    assert summary_table(SUMMARY).splitlines() == [
        "| checkpoint   | step |     accuracy | at low budget | tokens | points | tokens % |",
        "| ------------ | ---: | -----------: | ------------: | -----: | -----: | -------: |",
        "| start        |    0 | 60.0 % ± 3.0 |             - |   40.0 |   −1.0 |    +33.3 |",
        "| constant-cap |   60 | 61.0 % ± 3.0 |             - |   30.0 |      - |        - |",
        "| siri-low     |   45 | 90.0 % ± 2.0 |  85.0 % ± 5.0 |   20.0 |  +29.0 |    −33.3 |",
        "| siri-high    |   60 | 96.0 % ± 2.0 |             - |   28.0 |  +35.0 |     −6.7 |",
        "",
        "points, tokens %: change from constant-cap",
    ]


def test_without_a_control_the_start_is_what_others_are_compared_with():
    lines = summary_table([row for row in SUMMARY if row["name"] != "constant-cap"]).splitlines()
    assert (
        "| siri-low   |   45 | 90.0 % ± 2.0 |  85.0 % ± 5.0 |   20.0 |  +30.0 |    −50.0 |" in lines
    )
    assert lines[-1].endswith("change from start")
    assert summary_table(SUMMARY[2:]).count("change from") == 0


def test_what_training_took_has_columns():
    spent = {"trained_tokens": 1_090_000, "train_seconds": 41.25}
    lines = summary_table([*SUMMARY[:2], {**SUMMARY[2], **spent}]).splitlines()
    assert lines[0].endswith("| trained | seconds |")
    assert lines[4].endswith("|  1.09 M |    41.2 |") and lines[3].endswith("|       - |       - |")
    assert "response tokens and time of training" in lines[-1]


def test_sentences_speak_of_points():
    said = {one["name"]: one["text"] for one in headline(SUMMARY)}
    assert list(said) == ["siri-low", "siri-high", "constant-cap"]
    assert said["siri-low"] == (
        "90.0 % right with 20.0 tokens, 29.0 points more than constant-cap (61.0 % → 90.0 %) and "
        "33 % fewer tokens."
    )
    near = [SUMMARY[1], {**SUMMARY[2], "accuracy": 0.6, "accuracy_interval": [0.57, 0.63]}]
    assert (
        "1.0 points less than constant-cap (61.0 % → 60.0 %), within the intervals, and"
        in headline(near)[0]["text"]
    )
    same = [SUMMARY[1], {**SUMMARY[2], "accuracy": 0.6101}]
    assert (
        "61.0 % right with 20.0 tokens, as many as constant-cap, and 33 % fewer tokens."
        == (headline(same)[0]["text"])
    )
    assert headline(SUMMARY[2:]) == []


def test_summary_table_names_the_low_budget():
    rows = [{**row, "low_budget": 16} for row in SUMMARY]
    assert "| within 16 tokens |" in summary_table(rows)


def test_summary_table_with_holes():
    rows = [
        {"name": "start", "accuracy": 0, "tokens": None},
        {"name": "a|b\nc", "accuracy": math.nan, "tokens": 12000, "accuracy_interval": [1, 0]},
        {},
    ]
    lines = summary_table(rows).splitlines()
    assert len({len(line) for line in lines[:3]}) == 1
    assert "a\\|b c" in lines[3] and "12,000" in lines[3]
    assert "nan" not in summary_table(rows)
    assert summary_table([]).count("\n") == 1


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_width_breaks_a_cell(width):
    rng = random.Random()
    for _ in range(20):
        spent = {"trained_tokens": rng.randint(0, 10**9), "train_seconds": rng.random() * 1e6}
        rows = [{**row, "low_budget": 4096, **spent} for row in SUMMARY]
        rows[2]["name"] = "siri-" + "x" * rng.randint(0, 40)
        whole = summary_table(rows)
        text = summary_table(rows, width)
        assert max(map(len, text.splitlines())) <= width
        cells = {cell.strip() for line in whole.splitlines()[:6] for cell in line.split("|")}
        rest = text.replace("~", "")
        assert all(cell in rest for cell in cells if not cell.startswith("-"))
        assert "change from constant-cap" in " ".join(text.split())
        if max(map(len, whole.splitlines())) <= width:
            assert text == whole


def test_changes_name_both_figures():
    assert changes(SUMMARY) == [
        "start -> constant-cap: accuracy 60.0 % -> 61.0 %, mean tokens 40.0 -> 30.0",
        "start -> siri-low: accuracy 60.0 % -> 90.0 %, mean tokens 40.0 -> 20.0",
        "start -> siri-high: accuracy 60.0 % -> 96.0 %, mean tokens 40.0 -> 28.0",
    ]
    twice = [*SUMMARY, {**SUMMARY[2], "name": "siri-low-measured"}]
    assert changes(twice) == changes(SUMMARY)  # one checkpoint with two names
    assert changes(SUMMARY[1:]) == changes([]) == changes([{"name": "start"}, {"name": "a"}]) == []
