"""The page of a run: complete, half-written, broken and hostile folders."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_train.report import summary_table, write_report
from siri_train.report.charts import figures, spots
from siri_train.report.data import number, read_run_folder
from siri_train.report.markup import data_block, fill, fingerprint
from siri_train.schedule import LengthSchedule

HOSTILE = '<script>alert("x")</script>&\'\x00\ud800</pre></title>\u202e'
VOID = {"meta", "link", "br", "hr", "img", "input"}


PAPER = "https://arxiv.org/abs/2509.25176"
NUMBERS = set("points d x y x1 x2 y1 y2 cx cy width height transform viewbox".split())


class Checker(HTMLParser):
    """Collects what the tests ask about and refuses tags that do not nest."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.data: dict = {}

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"{tag} repeats an attribute"
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data + " "
        elif self.open:
            self.scripts[-1] += data


def check(path: Path) -> Checker:
    """The page parses, nests, refers to nothing outside and draws only finite numbers.

    Its policy allows one style sheet and one script by their hashes and nothing else, and nothing
    in the page needs more: no handlers, no styles in attributes, no addresses but the paper's.
    """
    page = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    idents = [attrs["id"] for _, attrs in checker.tags if "id" in attrs]
    assert len(idents) == len(set(idents))
    kinds = [attrs.get("type") for tag, attrs in checker.tags if tag == "script"]
    assert kinds == ["application/json", None]
    style, data, script = checker.scripts
    policy = next(a["content"] or "" for _, a in checker.tags if "http-equiv" in a)
    assert policy == (
        f"default-src 'none'; style-src {fingerprint(style)}; script-src {fingerprint(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"\beval\b|new Function|innerHTML|document\.write|import\(", script)
    assert not {"img", "link", "iframe", "object", "base"} & {tag for tag, _ in checker.tags}
    for tag, attrs in checker.tags:
        assert not {"src", "style", "srcset", "action"} & set(attrs), (tag, attrs)
        assert not any(key.startswith("on") for key in attrs)
        assert attrs.get("href", PAPER) == PAPER
        if "aria-labelledby" in attrs:
            assert set((attrs["aria-labelledby"] or "").split()) <= set(idents)
        for key in NUMBERS & set(attrs) if tag != "meta" else ():
            numbers = re.fullmatch(r"[-\d., MVh%]+|translate\([-\d. ]+\)", attrs[key] or "")
            assert numbers, (tag, key, attrs[key])
        if "data-limits" in attrs:
            low, high, below, above = map(float, (attrs["data-limits"] or "").split())
            assert low < high and below < above and math.isfinite(high - low + above - below)
    checker.data = json.loads(data, parse_constant=lambda word: pytest.fail(f"{word} in the data"))
    return checker


def metric(schedule: LengthSchedule, step: int) -> dict:
    wave = math.cos(step / 3)
    return {
        "step": step, "cycle": schedule.cycle_index(step), "phase": schedule.phase(step),
        "cap": schedule(step), "reward_mean": 0.6, "accuracy": 0.6 + 0.1 * wave,
        "accuracy_finished": 0.8, "truncated_frac": 0.1, "response_len_mean": 20 + wave,
        "response_len_p50": 19, "response_len_p95": 28, "groups_all_zero": 0.1,
        "groups_all_one": 0.3, "entropy": 0.7, "loss": 0.0, "grad_norm": 0.5 + 0.1 * wave,
        "lr": 1e-3, "clip_frac_low": 0.01, "clip_frac_high": 0.02, "ratio_max": 1.1,
        "rollout_kl": None, "dense_row_frac": None, "tail_mass_max": None,
        "backtrack_per_1k": 12.5, "tokens": 1000, "rollout_tokens_per_s": 9000.0,
        "train_tokens_per_s": 12000.0, "time_rollout": 0.1, "time_train": 0.1,
        "peak_memory_gb": 0.5,
    }  # fmt: skip


def evaluation(step: int, name: str | None, accuracy: float, tokens: float) -> dict:
    return {
        "step": step, "name": name, "budgets": [32, 16], "accuracy": [accuracy, accuracy - 0.2],
        "accuracy_interval": [[accuracy - 0.03, accuracy + 0.02], [0.1, 0.9]], "tokens": tokens,
        "tokens_at": [tokens, 12.0], "truncated_frac": [0.01, 0.3], "backtrack_per_1k": 20.0,
        "questions": 400, "samples": 2,
    }  # fmt: skip


def rollout(text: str) -> dict:
    return {
        "prompt": "2 + 2 = ?", "response": text, "reward": 1.0, "truncated": False,
        "tokens": 7, "answer": "4", "gold": "4",
    }  # fmt: skip


SUMMARY = [
    {"name": "start", "step": 0, "accuracy": 0.6, "accuracy_interval": [0.57, 0.63],
     "tokens": 40.0, "path": "start"},
    {"name": "constant-cap", "step": 60, "accuracy": 0.61, "accuracy_interval": [0.58, 0.64],
     "tokens": 30.0, "path": "c", "run": "constant"},
    {"name": "siri-low", "step": 45, "accuracy": 0.9, "accuracy_interval": [0.88, 0.92],
     "tokens": 20.0, "path": "l", "run": "siri", "accuracy_low_budget": 0.85,
     "accuracy_low_budget_interval": [0.8, 0.9]},
    {"name": "siri-high", "step": 60, "accuracy": 0.96, "accuracy_interval": [0.94, 0.98],
     "tokens": 28.0, "path": "h", "run": "siri"},
]  # fmt: skip


def jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(folder: Path, shape: str, steps: int = 60) -> None:
    schedule = LengthSchedule(shape, 32, 16, 30)
    jsonl(folder / "metrics.jsonl", [metric(schedule, t) for t in range(steps)])
    rows = [evaluation(t, None, 0.6 + t / 200, 40 - t / 4) for t in range(0, steps + 1, 15)]
    jsonl(folder / "eval.jsonl", rows)
    jsonl(folder / "rollouts" / "step_000000.jsonl", [rollout("Wait, it is 4.")])
    jsonl(folder / "rollouts" / "step_000059.jsonl", [rollout("It is 4.")] * 70)
    (folder / "config.yaml").write_text(f"schedule:\n  shape: {shape}\n")
    manifest = {"siri-low": {"step": 45}, "siri-high": {"step": 60}, "cycles": []}
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    make_run(folder / "siri", "cosine")
    make_run(folder / "constant", "constant")
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    return folder


def test_complete_folder(demo):
    path = write_report(demo)
    assert path == demo / "report.html"
    page = check(path)
    for words in (
        "demo", "siri-low", "siri-high", "constant-cap", "50 % fewer tokens than the start at "
        "50 % higher accuracy", "Accuracy against length", "Cap and response length", "Entropy",
        "Held-out accuracy", "Groups that teach nothing", "Throughput", "Backtracking",
        "Gradient norm", "Clipped tokens", "Configuration of SIRI", "SIRI, step 0",
        "constant, step 59", "60 steps", "2 cycles", "400 held-out questions, 2 samples each",
    ):  # fmt: skip
        assert words in page.text.replace(" :", ":") or words in page.text.replace("  ", " "), words
    assert "What is missing" not in page.text
    assert ("mark", {}) in page.tags
    assert not list(demo.glob(".report*"))
    # wide and narrow drawings of the plane and of ten charts
    plots = [attrs for tag, attrs in page.tags if tag == "svg" and "role" in attrs]
    assert len(plots) == 2 * (1 + 10)
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
KEYS = sorted(metric(LengthSchedule("cosine", 32, 16, 4), 0))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(KEYS), anything), max_size=6),
    st.lists(st.fixed_dictionaries({"step": st.integers(0, 9)}, optional={
        key: anything for key in evaluation(0, None, 0.5, 1) if key != "step"
    }), max_size=4),
    st.lists(st.dictionaries(st.sampled_from(sorted(SUMMARY[2])), anything), max_size=3),
    st.lists(st.dictionaries(st.sampled_from(sorted(rollout(""))), anything), max_size=3),
)  # fmt: skip
def test_any_json_makes_a_page(metrics, evals, summary, rollouts):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jsonl(folder / "metrics.jsonl", [{"step": t, **row} for t, row in enumerate(metrics)])
        jsonl(folder / "eval.jsonl", evals)
        jsonl(folder / "alarms.jsonl", summary)
        jsonl(folder / "rollouts" / "step_000000.jsonl", rollouts)
        (folder / "summary.json").write_text(json.dumps(summary))
        check(write_report(folder))
        summary_table(summary)


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


def test_alarms_tell_cause_and_action(demo):
    alarm = {"step": 7, "alarm": "all-truncated", "value": 1.0, "cause": "too short a cap",
             "action": "raise schedule.min_len"}  # fmt: skip
    jsonl(demo / "siri" / "alarms.jsonl", [alarm] * 60)
    page = check(write_report(demo))
    assert "all-truncated" in page.text
    assert "(SIRI, step 7, 60 times): too short a cap; raise schedule.min_len" in page.text


def test_long_responses_are_cut(demo):
    text = "a" * 10_000
    jsonl(demo / "siri" / "rollouts" / "step_000000.jsonl", [rollout(text)])
    page = check(write_report(demo))
    assert "and 6,000 more characters" in page.text
    assert "a" * 4001 not in page.text


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
    "Groups that teach nothing": ["groups_all_zero", "groups_all_one"],
    "Clipped tokens": ["clip_frac_low", "clip_frac_high"],
    "Cap and response length": ["response_len_mean", "cap"],
    "Throughput": ["rollout_tokens_per_s", "train_tokens_per_s"],
}  # fmt: skip
VALUE = st.none() | st.floats(allow_nan=True) | st.integers(-5, 10**6) | st.floats(0, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(
    st.fixed_dictionaries({key: VALUE for keys in KEY_OF.values() for key in keys}),
    min_size=1, max_size=60,
), st.integers(0, 10**6))  # fmt: skip
def test_data_in_the_page_are_those_of_the_run(rows, first):
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
    checker.feed(fill("headline.html", headings=["accuracy"], rows=[row]))
    checker.close()
    assert checker.open == []
    names = {tag for tag, _ in checker.tags}
    assert names <= {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "span"}
    assert all(set(attrs) <= {"class", "scope"} for _, attrs in checker.tags)


def test_readable_without_its_script(demo):
    """What a mail's preview shows: every chart a picture with words, and no tools that do nothing."""
    page = check(write_report(demo))
    pictures = [attrs for tag, attrs in page.tags if tag == "svg" and "role" in attrs]
    assert all(attrs["role"] == "img" for attrs in pictures)
    assert "SIRI mean: from 21 to" in page.text and "siri-low: 90.0 %" in page.text
    assert [attrs for tag, attrs in page.tags if tag == "form"] == [
        {"class": "tools card", "hidden": None}
    ]
    curves = [attrs for tag, attrs in page.tags if tag == "polyline"]
    assert len(curves) > 40


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
