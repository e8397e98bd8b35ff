"""The table at the end of a run."""

from __future__ import annotations

import math

from siri_train.report import summary_table
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
