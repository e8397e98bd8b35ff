"""What the report's page holds: the run's data, nothing that runs, few bytes, always the same."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_train.report import write_report
from siri_train.report.data import number
from siri_train.report.markup import data_block, fill
from siri_train.schedule import LengthSchedule
from tests.train.report_page import (
    HOSTILE,
    SUMMARY,
    Checker,
    check,
    evaluation,
    jsonl,
    make_demo,
    make_run,
    metric,
    rollout,
)


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return make_demo(tmp_path / "demo")


def test_hostile_strings_stay_text(demo):
    jsonl(demo / "siri" / "rollouts" / "step_000000.jsonl",
          [{key: HOSTILE for key in ("prompt", "response", "answer", "gold")},
           {"response": ["<b>"], "truncated": 1, "reward": None}])  # fmt: skip
    jsonl(
        demo / "siri" / "alarms.jsonl",
        [{"step": 3, "alarm": HOSTILE, "cause": HOSTILE, "action": "<i>stop</i>"}, {"x": "<u>"}],
    )
    (demo / "siri" / "config.yaml").write_text("name: </pre><script>1</script>\n")
    jsonl(demo / "siri" / "eval.jsonl", [evaluation(1, "<svg onload=alert(1)>", 0.5, 3)])
    summary = [{**SUMMARY[0], "name": '"><script>x</script>', "run": "<b>"}, *SUMMARY]
    (demo / "summary.json").write_text(json.dumps(summary))
    (demo / "siri").rename(demo / "a<b>&'\"")
    page = check(write_report(demo))
    assert '<script>alert("x")</script>' in page.text
    assert "stop" in page.text and "<i>stop</i>" in page.text
    assert "\x00" not in page.text and "\u202e" not in page.text
    assert not {"b", "u", "i"} & {t for t, a in page.tags if t != "b"}


def noisy(folder: Path, shape: str, steps: int) -> None:
    """A run whose every value differs in its last digit, which is what takes room in a page."""
    schedule = LengthSchedule(shape, 16384, 8192, 640)
    rows = []
    for step in range(steps):
        row = metric(schedule, step)
        for place, (key, value) in enumerate(row.items()):
            if isinstance(value, float):
                row[key] = value * (1 + 0.3 * math.sin(1e3 * step + place))
        # tokens as fractions: the longest numbers there are
        row["response_len_mean"] = row["cap"] * (0.6 + 0.1 * math.sin(1e3 * step))
        row["response_len_p50"], row["response_len_p95"] = row["cap"] * 0.517, row["cap"] * 0.953
        rows.append(row)
    jsonl(folder / "metrics.jsonl", rows)


@pytest.mark.costly
@pytest.mark.parametrize("runs, limit", [(1, 1_000_000), (3, 3_000_000)])
def test_paper_sized_runs_stay_small(tmp_path, runs, limit):
    for index in range(runs):
        noisy(tmp_path / f"run{index}", ("cosine", "constant", "stair")[index], 1920)
    path = write_report(tmp_path)
    page = check(path)
    assert path.stat().st_size < limit
    # nothing is thinned out of the data that a reader zooms into
    assert {len(line["y"]) for chart in page.data["charts"] for line in chart["lines"]} == {1920}


KEY_OF = {
    "Entropy": ["entropy"], "Gradient norm": ["grad_norm"],
    "Accuracy in training": ["accuracy", "accuracy_finished"],
    "Groups all right or all wrong": ["groups_all_zero", "groups_all_one"],
    "Clipped tokens": ["clip_frac_low", "clip_frac_high"],
    "Cap and response length": ["response_len_mean", "cap"],
    "Throughput": ["rollout_tokens_per_s", "train_tokens_per_s"],
}  # fmt: skip
VALUE = st.none() | st.floats(allow_nan=True) | st.integers(-5, 10**6) | st.floats(0, 1)


@pytest.mark.costly
@settings(max_examples=40, deadline=None)
@given(st.lists(
    st.fixed_dictionaries({key: VALUE for keys in KEY_OF.values() for key in keys}),
    min_size=1, max_size=9,
), st.integers(1, 90), st.integers(0, 10**6))  # fmt: skip
def test_data_in_the_page_are_those_of_the_run(drawn, count, first):
    rows = [drawn[t % len(drawn)] for t in range(count)]  # from 40 on the curves are means
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jsonl(folder / "metrics.jsonl", [{"step": first + t, **row} for t, row in enumerate(rows)])
        page = check(write_report(folder))
    titles = [attrs["data-chart"] for tag, attrs in page.tags if tag == "figure" and
              "data-chart" in attrs]  # fmt: skip
    assert titles == [str(index) for index in range(len(page.data["charts"]))]
    seen = 0
    for title, keys in KEY_OF.items():
        expected = [[number(row[key]) for row in rows] for key in keys]
        if not any(value is not None for values in expected for value in values):
            continue
        lines = [chart["lines"] for chart in page.data["charts"] if chart["title"] == title]
        assert len(lines) == 1, title
        for line, values in zip(lines[0], expected, strict=True):
            assert page.data["steps"][line["x"]] == [first + t for t in range(len(rows))]
            for shown, value in zip(line["y"], values, strict=True):
                assert shown == (None if value is None else pytest.approx(value, rel=1e-5, abs=0))
            seen += 1
    assert seen or all(number(value) is None for row in rows for value in row.values())


def test_the_same_run_gives_the_same_bytes(demo, tmp_path):
    first = write_report(demo).read_bytes()
    assert write_report(demo).read_bytes() == first  # the page itself is no part of the run
    elsewhere = tmp_path / "elsewhere" / "demo"
    shutil.copytree(demo, elsewhere)
    (elsewhere / "report.html").unlink()
    assert write_report(elsewhere).read_bytes() == first
    os.utime(elsewhere / "siri" / "metrics.jsonl", (0, 4e9))
    assert write_report(elsewhere).read_bytes() != first  # it says of when the data are


@given(st.recursive(st.text() | st.none() | st.integers(), st.lists, max_leaves=5))
def test_data_in_a_script_end_no_script(value):
    block = str(data_block([value, HOSTILE, "</script><!--\u2028\u2029]]>"]))
    assert not re.search("[<>&\u2028\u2029]", block) and block.isascii()
    assert json.loads(block)[0] == value


@given(st.text() | st.sampled_from([HOSTILE, "{{ 7 * 7 }}", "{% raw %}", "' onload=x '"]))
def test_templates_escape_whatever_they_are_given(text):
    """In text and in attributes; a name of jinja2's in the data stays a word."""
    row = {"name": text, "css": text, "run": text, "step": text, "cells": []}
    checker = Checker()
    checker.feed(fill("sections/headline.html", headings=["accuracy"], rows=[row], compared=text,
                      seeds=False))  # fmt: skip
    checker.close()
    assert checker.open == []
    names = {tag for tag, _ in checker.tags}
    assert names <= {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "span"}
    assert all(set(attrs) <= {"class", "scope"} for _, attrs in checker.tags)


def test_readable_without_its_script(demo):
    """Every chart is a picture with words, and no tools are shown that would do nothing."""
    page = check(write_report(demo))
    pictures = [attrs for tag, attrs in page.tags if tag == "svg" and "role" in attrs]
    assert all(attrs["role"] == "img" for attrs in pictures)
    assert "SIRI mean: from 21 to" in page.text and "siri-low: 90.0 %" in page.text
    assert [attrs for tag, attrs in page.tags if tag == "form"] == [
        {"class": "tools card", "id": name, "hidden": None} for name in ("tools", "browser")
    ]
    curves = [attrs for tag, attrs in page.tags if tag == "polyline"]
    assert len(curves) > 40


PIECES = ["wait", "Wait,", "hold on", "waiting", "<b>", "\n", "a  b", "&amp;", "{{ x }}"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map(" ".join))
def test_a_response_is_shown_letter_by_letter(text):
    """Marking words and escaping change no character, no space and no line."""
    with tempfile.TemporaryDirectory() as name:
        jsonl(Path(name) / "metrics.jsonl", [{"step": 0}])
        jsonl(Path(name) / "rollouts" / "step_000000.jsonl", [rollout(text)])
        path = write_report(Path(name))
        page = path.read_text(encoding="utf-8")
        check(path)
    shown = re.search(r"<h4>Response</h4>\n<pre>(.*?)</pre>", page, re.S)
    assert shown
    words = re.findall("<mark[^>]*>(.*?)</mark>", shown[1])
    assert words == re.findall(r"(?i)\b(?:wait|hold on)\b", text)
    assert html.unescape(re.sub("</?mark[^>]*>", "", shown[1])) == text


def test_a_summary_of_an_earlier_end_is_called_so(tmp_path: Path) -> None:
    make_run(tmp_path, "cosine", 60)
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    for steps, earlier in ((60, False), (90, True)):  # continued with more steps, not there yet
        (tmp_path / "config.yaml").write_text(
            f"schedule:\n  shape: cosine\ntrain:\n  steps: {steps}\n"
        )
        page = re.sub(r"\s+", " ", check(write_report(tmp_path)).text)
        assert ("of an earlier end of the run" in page) == earlier
