"""The page of a run: complete, half-written and broken folders."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_train.report import summary_table, write_report
from siri_train.report.charts import SPECS, figures, spots
from siri_train.report.data import read_run_folder
from siri_train.schedule import LengthSchedule
from tests.train.report_page import (
    SUMMARY,
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


def test_complete_folder(demo):
    path = write_report(demo)
    assert path == demo / "report.html"
    page = check(path)
    for words in (
        "demo", "siri-low", "siri-high", "constant-cap", "29.0 points more than constant-cap "
        "(61.0 % → 90.0 %) and 33 % fewer tokens", "Accuracy against length",
        "Cap and response length", "Entropy", "Held-out accuracy",
        "Groups all right or all wrong", "Throughput", "Backtracking",
        "Gradient norm", "Clipped tokens", "Configuration of SIRI", "SIRI, step 0",
        "constant, step 59", "60 steps", "2 cycles", "400 held-out questions, 2 samples each",
    ):  # fmt: skip
        assert words in page.text.replace(" :", ":") or words in page.text.replace("  ", " "), words
    assert "What is missing" not in page.text
    assert "mark" in {tag for tag, _ in page.tags}
    assert not list(demo.glob(".report*"))
    # wide and narrow drawings of the plane, of the two first charts, of SPECS and of the words
    specs = [spec for spec in SPECS if not spec.optional or spec.metrics[-1][0] == "ratio_max"]
    plots = [attrs for tag, attrs in page.tags if tag == "svg" and "role" in attrs]
    assert len(plots) == 2 * (1 + 2 + len(specs) + 1)
    steps, charts = page.data["steps"], page.data["charts"]
    assert [line["label"] for line in charts[0]["lines"]][:2] == ["SIRI mean", "SIRI cap"]
    cap = charts[0]["lines"][1]
    assert dict(zip(steps[cap["x"]], cap["y"], strict=True))[15] == 16


def test_control_is_grey_and_last(demo):
    folder = read_run_folder(demo)
    assert [run.name for run in folder.runs] == ["siri", "constant"]
    chart = figures(folder)[0][0].chart
    assert [line.css for line in chart.lines] == ["siri", "cap", "control", "control"]
    assert [span[2] for span in chart.spans] == ["compression", "expansion"] * 2
    assert [span[:2] for span in chart.spans][:2] == [(0, 15), (15, 30)]
    assert [(x, css) for x, css, _ in chart.marks] == [(60, "high"), (45, "low")]


def test_single_run_folder(tmp_path):
    make_run(tmp_path / "one", "cosine")
    page = check(write_report(tmp_path / "one"))
    assert "summary.json is missing" in page.text
    assert "Cap and response length" in page.text


def test_empty_folder(tmp_path):
    page = check(write_report(tmp_path))
    for words in (
        "metrics.jsonl is missing", "eval.jsonl is missing", "Nothing recorded yet",
        "config.yaml is missing", "manifest.json is missing", "rollouts/ holds no",
    ):  # fmt: skip
        assert words in page.text


def test_running_run_labels_its_latest_ends(tmp_path):
    rows = [evaluation(0, "start", 0.5, 30), evaluation(9, "siri-low", 0.6, 20)]
    rows += [evaluation(27, "siri-low", 0.7, 18), evaluation(30, None, 0.7, 19)]
    jsonl(tmp_path / "eval.jsonl", rows)
    named = spots(read_run_folder(tmp_path))[1]
    assert [(spot.label, spot.tokens) for spot in named] == [("start", 30), ("siri-low", 18)]
    check(write_report(tmp_path))


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_partial_values_leave_gaps(tmp_path):
    rows = [{"step": t, "cap": 32, "phase": "compression"} for t in range(6)]
    for step, value in enumerate([0.5, None, math.nan, "high", math.inf, 0.7]):
        rows[step]["entropy"] = value
    rows.append({"step": "six"})
    jsonl(tmp_path / "metrics.jsonl", rows)
    folder = read_run_folder(tmp_path)
    charts, missing = figures(folder)
    entropy = next(one.chart for one in charts if one.chart.title == "Entropy")
    assert [y for _, y in entropy.lines[0].points] == [0.5, None, None, None, None, 0.7]
    assert "Gradient norm" in missing
    assert any("1 row(s) without a step number" in note for note in folder.notes)
    page = check(write_report(tmp_path))
    assert "No values, so no chart: " in page.text and "Gradient norm" in page.text


def test_half_written_and_repeated_lines(tmp_path):
    schedule = LengthSchedule("cosine", 32, 16, 4)
    rows = [metric(schedule, t) for t in (0, 1, 2)] + [{**metric(schedule, 1), "entropy": 0.1}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 3, "ent')
    folder = read_run_folder(tmp_path)
    assert [row["step"] for row in folder.runs[0].metrics] == [0, 1, 2]
    assert folder.runs[0].metrics[1]["entropy"] == 0.1  # the resumed run's row wins
    assert any("last line is half-written" in note for note in folder.notes)
    (tmp_path / "metrics.jsonl").write_text("[]\n" + text)
    assert any("line(s) 1 hold no JSON object" in note for note in read_run_folder(tmp_path).notes)
    check(write_report(tmp_path))


@pytest.mark.draw(5)
@pytest.mark.parametrize("name", ["summary.json", "checkpoints/manifest.json"])
@pytest.mark.parametrize("content", ["", "{", "3", "null", '"x"', "[[[", "[1, null, {}]", "{}"])
def test_broken_json_files(demo, name, content):
    target = demo / ("siri/" + name if "manifest" in name else name)
    target.write_text(content)
    check(write_report(demo))


@pytest.mark.parametrize(
    "row",
    [
        {"step": 1},
        {"step": 1, "budgets": None, "accuracy": 0.5},
        {"step": 1, "budgets": [8, 4], "accuracy": [0.5], "accuracy_interval": [[0.6, 0.4]]},
        {"step": 1, "budgets": ["a", 4], "accuracy": ["b", None], "tokens": "many"},
        {"step": 10**30, "budgets": [8], "accuracy": [0.5], "tokens": 5.0},
        {"step": 1, "name": 5, "budgets": [8], "accuracy": [7.5], "tokens": -3},
    ],
)
def test_odd_evaluations(tmp_path, row):
    jsonl(tmp_path / "eval.jsonl", [row])
    check(write_report(tmp_path))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
KEYS = sorted([*metric(LengthSchedule("cosine", 32, 16, 4), 0), "token_groups", "ranks"])
ALARM_KEYS = ("step", "alarm", "state", "since", "age", "cause", "action")


@pytest.mark.costly
@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(KEYS), anything), max_size=6),
    st.lists(
        st.fixed_dictionaries(
            {"step": st.integers(0, 9)},
            optional={key: anything for key in evaluation(0, None, 0.5, 1) if key != "step"},
        ),
        max_size=4,
    ),
    st.lists(st.dictionaries(st.sampled_from(sorted(SUMMARY[2])), anything), max_size=3),
    st.lists(st.dictionaries(st.sampled_from(sorted(rollout(""))), anything), max_size=3),
    st.lists(st.dictionaries(st.sampled_from(ALARM_KEYS), anything), max_size=3),
)
def test_any_json_makes_a_page(metrics, evals, summary, rollouts, alarms):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jsonl(folder / "metrics.jsonl", [{"step": t, **row} for t, row in enumerate(metrics)])
        jsonl(folder / "eval.jsonl", evals)
        jsonl(folder / "alarms.jsonl", alarms + summary)
        manifest = {"cycles": alarms, "siri-low": summary and summary[0]}
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "manifest.json").write_text(json.dumps(manifest))
        jsonl(folder / "rollouts" / "step_000000.jsonl", rollouts)
        (folder / "summary.json").write_text(json.dumps(summary))
        check(write_report(folder))
        summary_table(summary)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 1e300])
def test_a_number_for_a_name_makes_a_page(number, tmp_path):
    rows = [{**row, "name": number, "run": number} for row in SUMMARY]
    (tmp_path / "summary.json").write_text(json.dumps([{**SUMMARY[0], "name": "start"}, *rows]))
    check(write_report(tmp_path))
    assert str(number) in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_alarms_tell_cause_and_action(demo):
    alarm = {"step": 7, "alarm": "all-truncated", "value": 1.0, "cause": "too short a cap",
             "action": "raise schedule.min_len"}  # fmt: skip
    jsonl(demo / "siri" / "alarms.jsonl", [alarm] * 60)
    page = check(write_report(demo))
    assert "all-truncated" in page.text
    assert "(SIRI, step 7, 60 times): too short a cap; raise schedule.min_len" in page.text


def test_long_responses_are_cut(demo):
    text = "a" * 9_999 + "b"
    jsonl(demo / "siri" / "rollouts" / "step_000000.jsonl", [rollout(text)])
    page = check(write_report(demo))
    assert "4,000 characters left out here" in page.text  # the end is kept: there is the cut
    assert "a" * 1999 + "b" in page.text and "a" * 4001 not in page.text
