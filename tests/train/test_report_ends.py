"""Accuracy at the ends of cycles, the entropy's band, and what is said instead of drawn."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from siri_train.report import write_report
from siri_train.report.charts import colours, ends, figures, quiet
from siri_train.report.checkpoint_names import shown_name
from siri_train.report.data import read_run_folder
from siri_train.report.entropy_band import seen
from siri_train.report.held_out import ends_chart
from siri_train.report.many import MOST_SHOWN
from siri_train.report.svg import MOST_ENDS, extent
from siri_train.report.verdict import judge
from tests.train.report_content import write_folder, write_run
from tests.train.report_page import check, evaluation, jsonl, make_demo

SEEDS = [time.time_ns() + k for k in range(4)]


@pytest.mark.parametrize("seed", SEEDS)
def test_ends_are_those_of_the_logs(seed: int, tmp_path: Path) -> None:
    write_folder(tmp_path, seed)
    rows = {
        name: [json.loads(line) for line in (tmp_path / name / "eval.jsonl").open()]
        for name in ("siri", "constant", "short")
    }
    page = check(write_report(tmp_path))
    chart = next(c for c in page.data["charts"] if c["title"].startswith("Accuracy at both ends"))
    lines = {line["label"]: line for line in chart["lines"]}
    first = min(r["step"] for r in rows["siri"] if r["name"] in ("siri-low", "siri-high"))
    best = max(("constant", "short"), key=lambda name: rows[name][-1]["accuracy"][-1])
    for label, wanted in (
        ("compressed", [r for r in rows["siri"] if r["name"] == "siri-low"]),
        ("expanded", [r for r in rows["siri"] if r["name"] == "siri-high"]),
        (best, [r for r in rows[best] if r["step"] >= first]),
    ):
        line = lines.pop(label)
        assert page.data["steps"][line["x"]] == [row["step"] for row in wanted], (seed, label)
        shares = [row["accuracy"][-1] for row in wanted]
        assert line["y"] == pytest.approx(shares, rel=1e-5), (seed, label)
        bounds = [row["accuracy_interval"][-1] for row in wanted]
        drawn = [bar[1:] for bar in line["band"] or line["bars"]]
        assert drawn == [pytest.approx(pair, rel=1e-5) for pair in bounds], (seed, label)
    assert not lines, seed


def test_a_point_of_accuracy_can_be_seen(tmp_path: Path) -> None:
    rows = [evaluation(0, "start", 0.4, 30)]
    for step, name, share in ((15, "siri-low", 0.97), (30, "siri-high", 0.98)):
        row = evaluation(step, name, share, 20)
        row["accuracy_interval"] = [[share - 0.01, share + 0.01]] * 2
        row["accuracy"] = [share - 0.3, share]
        row["budgets"] = [16, 32]
        rows.append(row)
    jsonl(tmp_path / "eval.jsonl", rows)
    folder = read_run_folder(tmp_path)
    chart, text = ends_chart(folder, colours(folder))
    (_, (low, high)) = extent(chart) or pytest.fail("empty")
    assert high - low < 0.1 and "98.0 %" in text  # a point is a tenth of the height or more


def test_without_names_the_manifest_tells_the_ends(tmp_path: Path) -> None:
    make_demo(tmp_path / "d")
    path = tmp_path / "d" / "siri" / "checkpoints" / "manifest.json"
    cycles = [{"which": "siri-low", "step": 15}, {"which": "siri-high", "step": 30}, 3,
              {"which": "siri-low", "step": "x"}, {"which": ["a"]}]  # fmt: skip
    path.write_text(json.dumps({"cycles": cycles}))
    folder = read_run_folder(tmp_path / "d")
    chart, _ = ends_chart(folder, colours(folder))
    assert [[x for x, _ in line.points] for line in chart.lines] == [[15], [30], [15, 30, 45, 60]]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_band_is_that_of_the_first_cycle(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randint(8, 80)
    values = [rng.choice([None, rng.random()]) if rng.random() < 0.2 else rng.random()
              for _ in range(3 * size)]  # fmt: skip
    rows = [
        {"step": t, "cycle": t // size + 1, "entropy": v, "phase": "expansion"}
        for t, v in enumerate(values)
    ]
    kept = [(t, v) for t, v in enumerate(values) if v is not None]
    means = {}
    for k, (t, _) in enumerate(kept):
        near = [v for _, v in kept[max(0, k - 2) : k + 3]]
        means[t] = sum(near) / len(near)
    settled = [mean for t, mean in means.items() if size / 4 <= t < size]
    room = max((max(settled) - min(settled)) / 2, 0.15 * sum(settled) / len(settled))
    low, high = seen(rows).of_cycle or pytest.fail("no band")
    least = max(min(settled) - room, min(settled) / 3)  # where the room would reach down to nothing
    assert (low, high) == pytest.approx((least, max(settled) + room)), seed
    later = [mean for t, mean in means.items() if t >= size]
    below, above, steps = seen(rows).outside()
    assert steps == len(later) and below == sum(v < low for v in later), seed
    assert above == sum(v > high for v in later), seed
    assert seen(rows[:size]).of_cycle is None  # nothing to compare with the first cycle
    assert seen([{**row, "phase": "constant"} for row in rows]).of_cycle is None


def test_the_band_is_shaded_over_the_whole_run(tmp_path: Path) -> None:
    write_run(tmp_path, "cosine", random.Random(SEEDS[0]))
    folder = read_run_folder(tmp_path)
    figure = next(one for one in figures(folder)[0] if one.chart.title == "Entropy")
    band = seen(folder.runs[0].metrics).of_cycle
    assert band and figure.chart.lines[0].band == [(0.0, *band), (59.0, *band)]
    below, above, steps = seen(folder.runs[0].metrics).outside()
    told = f"{below} of the {steps} steps behind that cycle lie below it and {above} above"
    assert told in figure.text
    assert "stuck" not in figure.text


@pytest.mark.parametrize("seed", SEEDS)
def test_the_verdict_and_the_chart_have_one_band(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    cycle = 2 * rng.randint(6, 20)
    write_run(tmp_path, "cosine", rng, steps=rng.randint(2, 4) * cycle, cycle=cycle)
    folder = read_run_folder(tmp_path)
    finding = next(one for one in judge(folder).findings if one.key == "entropy")
    band = seen(folder.runs[0].metrics).of_cycle
    assert finding.figures["band"] == pytest.approx(band), seed


@pytest.mark.parametrize("seed", SEEDS)
def test_marks_are_of_the_run_whose_phases_are_shaded(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    wanted = []
    for name in "abc":
        write_run(tmp_path / name, "cosine", rng, steps=60)
        low, high = rng.sample(range(1, 60), 2)
        (tmp_path / name / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / name / "checkpoints" / "manifest.json").write_text(
            json.dumps({"siri-low": {"step": low}, "siri-high": {"step": high}})
        )
        wanted.append({(low, "low"), (high, "high")})
    found = {(step, name) for step, name, _ in ends(read_run_folder(tmp_path))}
    assert found == wanted[0], seed


@pytest.mark.parametrize("seed", SEEDS)
def test_a_name_of_the_headline_is_no_other_checkpoint(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    write_run(tmp_path / "siri", "cosine", rng, every=10)
    write_run(tmp_path / "constant", "constant", rng, every=10)
    evals = [json.loads(line) for line in (tmp_path / "siri" / "eval.jsonl").open()]
    low = [row["step"] for row in evals if row["name"] == "siri-low"]
    other = rng.choice([row["step"] for row in evals if row["name"] is None])
    said = {"run": "siri", "accuracy": 0.5, "tokens": 20.0}
    summary = [{**said, "name": "siri-low", "step": other},
               {**said, "name": "siri-low-scheduled", "step": low[-1]}]  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    folder = read_run_folder(tmp_path)
    run = next(run for run in folder.runs if run.name == "siri")
    steps = {one.step: shown_name(folder, run, one) for one in run.evals}
    assert [step for step, name in steps.items() if name == "siri-low"] == [other], seed
    assert [step for step, name in steps.items() if name == "siri-low-scheduled"] == low, seed
    assert (float(other), "low", "low") in ends(folder)
    text = check(write_report(tmp_path)).text
    assert not any(f"after {step} steps (siri-low)" in text for step in low), seed


def test_rounding_is_said_and_not_drawn(tmp_path: Path) -> None:
    write_run(tmp_path, "cosine", random.Random(SEEDS[0]))
    folder = read_run_folder(tmp_path)
    shown, missing = figures(folder)
    titles = [one.chart.title for one in shown]
    assert "Sampler against trainer" not in titles + missing
    (said,) = quiet(folder)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    largest = max(row["rollout_kl"] for row in rows)
    assert said.startswith("Sampler against trainer") and f"{largest:.1g}" in said
    assert said in check(write_report(tmp_path)).text
    ratios = next(one for one in shown if one.chart.title == "Largest ratios of a token")
    assert [line.label for line in ratios.chart.lines] == ["updates"]
    assert "Not drawn: “sampler”" in ratios.text
    for row in rows:
        row |= {"rollout_kl": 0.01, "probe_logprob_diff": 0.0}
    jsonl(tmp_path / "metrics.jsonl", rows)
    again = read_run_folder(tmp_path)
    assert "Sampler against trainer" in [one.chart.title for one in figures(again)[0]]
    assert quiet(again) == ["Probe of the weights: all values are exactly 0"]


def test_thirty_runs_stay_in_their_pictures(tmp_path: Path) -> None:
    rng = random.Random(SEEDS[0])
    for place in range(30):
        shape = "cosine" if place % 2 else "constant"
        write_run(tmp_path / f"run{place:02}", shape, rng, steps=12, cycle=6, every=6, questions=9)
    page = check(write_report(tmp_path))
    shown = [attrs for tag, attrs in page.tags if tag == "text" and "transform" not in attrs]
    assert min(float(str(attrs["y"])) for attrs in shown) >= 0
    legends = [str(attrs["class"]) for tag, attrs in page.tags
               if tag == "div" and str(attrs.get("class", "")).startswith("legend")]  # fmt: skip
    charts = page.data["charts"]
    drawn = [sum(not line.get("waiting") for line in chart["lines"]) for chart in charts]
    assert len(legends) == len(charts) and min(drawn) <= MOST_SHOWN < MOST_ENDS < max(drawn)
    for css, count in zip(legends, drawn, strict=True):
        assert "single" in css or ("many" in css) == (count > MOST_ENDS)
    assert page.data["waiting"] and len(page.data["waiting"]) == 30 - MOST_SHOWN
    assert f"{MOST_SHOWN} of 30 runs are drawn when the page opens" in " ".join(page.text.split())
    assert max(len(chart["lines"]) for chart in charts) == 60  # nothing is left out of the data
