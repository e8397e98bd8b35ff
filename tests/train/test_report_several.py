"""Several runs on one page: from anywhere, or the arms and seeds of an ablation."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from pathlib import Path

import pytest

from siri_train.cli import main
from siri_train.commands.compare import compare
from siri_train.commands.compare_text import comparison_text
from siri_train.report import write_report
from siri_train.report.alarm_lanes import alarm_list
from siri_train.report.charts import colours, figures
from siri_train.report.data import read_run_folder
from siri_train.report.many import MOST_RUNS
from siri_train.report.questions import all_records, by_evaluation
from siri_train.report.several import read_several
from tests.train.browser import BROWSER, browser
from tests.train.report_content import write_run
from tests.train.report_page import check, evaluation, jsonl, make_demo
from tests.train.report_runs import make, metrics
from tests.train.silent_page import work_to_open


def runs_in(folder: Path, names: list[str]) -> list[Path]:
    for place, name in enumerate(names):
        jsonl(folder / name / "metrics.jsonl", metrics(random.Random(place), 6, 4))
    return [folder / name for name in names]


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_short_and_different(tmp_path, seed):
    rng = random.Random(seed)
    names = ["run", "siri", "constant", "a<b>"]
    paths = {tmp_path / rng.choice("xyz") / rng.choice("uvw") / rng.choice(names) for _ in range(9)}
    for path in paths:
        jsonl(path / "metrics.jsonl", metrics(random.Random(1), 3, 2))
    folder = read_several([*sorted(paths), *sorted(paths)], "t")
    labels = [run.name for run in folder.runs]
    assert len(labels) == len(set(labels)) == len(paths)
    for run in folder.runs:
        same = [other for other in paths if other.name == run.folder.name]
        assert (run.name == run.folder.name) == (len(same) == 1)
    assert len(colours(folder)) == len(paths)


def test_runs_over_the_limit_are_named(tmp_path):
    paths = runs_in(tmp_path, [f"r{i:02d}" for i in range(MOST_RUNS + 2)])
    folder = read_several(paths, "t")
    assert len(folder.runs) == MOST_RUNS
    left = ", ".join(f"r{i:02d}" for i in range(MOST_RUNS, MOST_RUNS + 2))
    assert folder.notes[0] == f"More than {MOST_RUNS} runs; left out: {left}."
    note = read_run_folder(tmp_path).notes[0]
    assert note.startswith(folder.notes[0]) and "siri-train compare" in note


def test_compare_writes_one_page(tmp_path, capsys):
    one, two = make_demo(tmp_path / "one"), make_demo(tmp_path / "two")
    page = tmp_path / "both.html"
    assert main(["compare", str(one), str(two), "--page", str(page)]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(page) and err.count("\n") == 1 and "eval_questions.jsonl" in err
    checker = check(page)
    labels = [run["label"] for run in checker.data["axes"]["runs"]]
    assert labels == ["one/siri", "two/siri", "one/constant", "two/constant"]
    assert "No comparison question by question" in checker.text
    for label in labels:
        assert f"{label} mean" in {line["label"] for line in checker.data["charts"][0]["lines"]}
    first = page.read_bytes()
    assert main(["compare", str(one), str(two), "--page", str(page)]) == 0
    assert page.read_bytes() == first


def test_the_page_has_the_tests_where_the_questions_are_the_same(tmp_path, capsys):
    for name, right in (("one", 0.9), ("two", 0.4)):
        rng = random.Random(name)
        make(tmp_path / name, 3)
        jsonl(tmp_path / name / "eval.jsonl", [evaluation(40, None, right, 20.0)])
        counts = [sum(rng.random() < right for _ in range(4)) for _ in range(60)]
        jsonl(tmp_path / name / "eval_questions.jsonl", [{
            "step": 40, "name": None, "set": None, "samples": 4, "budgets": [16, 32],
            "fingerprint": "f", "ids": [f"q{i}" for i in range(60)], "right": [counts, counts],
            "tokens": [20.0 + rng.random() for _ in range(60)],
        }])  # fmt: skip
    # all columns, whatever the width of the terminal is
    text = comparison_text(compare([tmp_path / "one", tmp_path / "two"]))
    page = tmp_path / "page.html"
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two"), "--page", str(page)]) == 0
    assert capsys.readouterr().err == ""
    assert "60 questions" in text
    assert text in check(page).text


@pytest.mark.parametrize("given, words", [
    (["nowhere"], "not a folder"), (["empty"], "metrics.jsonl"),
])  # fmt: skip
def test_what_cannot_be_compared_is_one_line(tmp_path, capsys, given, words):
    (tmp_path / "empty").mkdir()
    paths = [str(tmp_path / one) for one in given]
    assert main(["compare", *paths, "--page", str(tmp_path / "p.html")]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err and not (tmp_path / "p.html").exists()


def ablation(folder: Path, arms: list[str], seeds: int, steps: int = 12) -> Path:
    for arm in arms:
        for seed in range(seeds):
            path = folder / arm / f"seed-{seed}"
            make(path, seed + 100 * len(arm), steps, 4)
            rows = [evaluation(t, None, 0.5 + seed / 20, 30 - seed) for t in range(0, steps + 1, 4)]
            jsonl(path / "eval.jsonl", rows)
    return folder


def test_an_arm_is_the_mean_of_its_seeds(tmp_path):
    folder = ablation(tmp_path / "abl", ["siri", "other", "grid/caps"], 3)
    read = read_run_folder(folder)
    assert sorted(run.name for run in read.runs) == ["grid/caps", "other", "siri"]
    run = next(run for run in read.runs if run.name == "siri")
    each = [
        [json.loads(line) for line in (folder / "siri" / f"seed-{s}" / "metrics.jsonl").open()]
        for s in range(3)
    ]
    for step, row in enumerate(run.metrics):
        for key in ("entropy", "response_len_mean", "tokens", "time_train", "accuracy"):
            assert row[key] == pytest.approx(sum(seed[step][key] for seed in each) / 3)
        counts = [seed[step]["response_len_hist"]["counts"] for seed in each]
        assert row["response_len_hist"]["counts"] == pytest.approx(
            [sum(part) / 3 for part in zip(*counts, strict=True)])  # fmt: skip
        assert row["step"] == step and row["phase"] == each[0][step]["phase"]
    for one in run.evals:
        assert one.best == pytest.approx(0.55) and one.tokens == pytest.approx(29)
        assert one.best_interval == pytest.approx((0.5, 0.6))
    page = check(write_report(folder))
    assert "siri 3" in page.text and "mean of an arm's seeds" in page.text


@pytest.mark.parametrize("seed", [time.time_ns() + k for k in range(4)])
def test_a_seed_that_ends_is_no_jump_of_the_mean(tmp_path, seed):
    """Each seed is flat at a level of its own, so any slope within a stretch would be false."""
    rng = random.Random(seed)
    levels = [rng.uniform(0, 9) for _ in range(rng.randint(2, 4))]
    lengths = [rng.randint(41, 120) for _ in levels]
    for place, (level, steps) in enumerate(zip(levels, lengths, strict=True)):
        path = tmp_path / "arm" / f"seed-{place}"
        make(path, place, steps, 20)
        jsonl(path / "metrics.jsonl", [{**row, "grad_norm": level}
                                       for row in metrics(rng, steps, 20)])  # fmt: skip
        jsonl(path / "eval.jsonl", [evaluation(t, None, 0.1 * place, 20.0)
                                    for t in range(0, steps + 1, 20)])  # fmt: skip
    read = read_run_folder(tmp_path)
    (run,) = read.runs
    (chart,) = (one.chart for one in figures(read)[0] if one.chart.title == "Gradient norm")
    (line,) = chart.lines
    drawn = [(x, y) for x, y in line.points if y is not None]
    assert [x for x, _ in drawn] == list(range(max(lengths))), seed
    for x, y in drawn:  # the running mean too
        alive = [level for level, steps in zip(levels, lengths, strict=True) if x < steps]
        assert y == pytest.approx(sum(alive) / len(alive)), (seed, x)
        assert dict(run.counts)[max(s for s, _ in run.counts if s <= x)] == len(alive), (seed, x)
    gaps = {x for x, y in line.points if y is None}
    assert gaps == {end - 0.5 for end in set(lengths) - {max(lengths)}}, seed
    common = min(lengths) // 20
    assert [one.step for one in run.evals] == [20 * k for k in range(common + 1)], seed
    assert [one.step for one in run.partial] == [
        20 * k for k in range(common + 1, max(lengths) // 20 + 1)
    ], seed
    page = check(write_report(tmp_path))
    text = " ".join(page.text.split())
    assert ("not all of its" in text) == (len(set(lengths)) > 1), seed
    known = page.data["axes"]["runs"][0]
    assert known.get("counts", [[0, len(levels)]]) == [list(one) for one in run.counts], seed


def test_a_seed_that_has_not_begun_and_gaps_are_no_harm(tmp_path):
    folder = ablation(tmp_path / "abl", ["a", "b"], 2)
    shutil.rmtree(folder / "a" / "seed-1")
    (folder / "a" / "seed-1").mkdir()
    path = folder / "b" / "seed-1" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]) + '{"step": 5, "en')
    read = read_run_folder(folder)
    assert [len(run.metrics) for run in read.runs] == [12, 12]
    check(write_report(folder))


@pytest.mark.parametrize("seed", range(4))
def test_an_alarm_that_one_seed_cleared_still_holds_in_another(tmp_path, seed):
    rng = random.Random(seed)
    folder = ablation(tmp_path, ["a"], 2, 40)
    told = {"alarm": "drift", "cause": "c", "action": "d"}
    since, later = rng.sample(range(20), 2)
    rows = [{"step": step, "state": state, "since": since, **told}
            for step, state in ((since, "raised"), (30, "cleared"))]  # fmt: skip
    jsonl(folder / "a" / "seed-0" / "alarms.jsonl", rows)
    jsonl(folder / "a" / "seed-1" / "alarms.jsonl",
          [{"step": later, "state": "raised", "since": later, **told}])  # fmt: skip
    listed = {line["name"]: line for line in alarm_list(read_run_folder(folder))}
    assert listed["drift (seed-1)"]["on"] and not listed["drift (seed-0)"]["on"]
    assert f"since step {later}" in listed["drift (seed-1)"]["text"]
    assert f"steps {since} to 30, cleared" in listed["drift (seed-0)"]["text"]


@pytest.mark.parametrize("seed", range(3))
def test_the_questions_of_one_seed_are_not_those_of_the_mean(tmp_path, seed):
    rng = random.Random(seed)
    for arm in ("a", "b"):
        for place in range(2):
            write_run(tmp_path / arm / f"seed-{place}", "cosine", rng)
    assert by_evaluation(read_run_folder(tmp_path / "a" / "seed-0").runs[0])
    folder = read_run_folder(tmp_path)
    assert [run.seeds for run in folder.runs] == [2, 2]
    assert all_records(folder) == {"a": {}, "b": {}}
    text = re.sub(r"\s+", " ", check(write_report(tmp_path)).text)
    assert "the ranges over the seeds overlap" in text and "half the range over the seeds" in text
    assert "paired on the same" not in text and "95 % intervals over the questions" not in text


def test_many_arms_are_limited_and_the_rest_named(tmp_path):
    folder = tmp_path / "abl"
    for arm in range(MOST_RUNS + 3):
        jsonl(folder / f"arm{arm:02d}" / "seed-0" / "metrics.jsonl",
              metrics(random.Random(arm), 5, 4))  # fmt: skip
    page = check(write_report(folder))
    assert len(page.data["axes"]["runs"]) == MOST_RUNS
    left = ", ".join(f"arm{place:02d}" for place in range(MOST_RUNS, MOST_RUNS + 3))
    assert f"More than {MOST_RUNS} arms; left out: {left}." in page.text


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_six_thousand_steps_open_at_once(tmp_path):
    """By the browser's own work, not by the clock: other programs may have the machine."""
    for place, name in enumerate(("siri", "constant", "third")):
        folder = tmp_path / name
        jsonl(folder / "metrics.jsonl", metrics(random.Random(place), 2000, 640))
        jsonl(folder / "eval.jsonl",
              [evaluation(t, None, 0.5, 20.0) for t in range(0, 2001, 40)])  # fmt: skip
    path = write_report(tmp_path)
    for width in (1200, 390):
        with browser() as page:
            assert work_to_open(page, path, width) < 2.0  # about 0.6 s
            corners = page.do("""Math.max(...[...document.querySelectorAll('polyline')]
              .map((one) => one.getAttribute('points').split(' ').length))""")
            assert corners < 1200  # what is drawn is thinned; the data are whole
            assert page.messages == []
