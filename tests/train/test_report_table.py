"""The table at the end of a run."""

from __future__ import annotations

import math

from siri_train.report import summary_table
from tests.train.report_page import SUMMARY


def test_summary_table():
    assert summary_table(SUMMARY).splitlines() == [
        "| checkpoint   | step |     accuracy | at low budget | tokens | accuracy vs start "
        "| tokens vs start |",
        "| ------------ | ---: | -----------: | ------------: | -----: | ----------------: "
        "| --------------: |",
        "| start        |    0 | 60.0 % ± 3.0 |             - |   40.0 |                 - "
        "|               - |",
        "| constant-cap |   60 | 61.0 % ± 3.0 |             - |   30.0 |            +1.7 % "
        "|         −25.0 % |",
        "| siri-low     |   45 | 90.0 % ± 2.0 |  85.0 % ± 5.0 |   20.0 |           +50.0 % "
        "|         −50.0 % |",
        "| siri-high    |   60 | 96.0 % ± 2.0 |             - |   28.0 |           +60.0 % "
        "|         −30.0 % |",
    ]


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
