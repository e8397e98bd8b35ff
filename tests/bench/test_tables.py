"""Markdown and plots say what the JSON says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.reports.behind import asked_for, behind
from bench.reports.tables import amount, everything, exponent, growth, summary
from bench.reports.write import write_results
from bench.results_io import RESULTS

MEASURED = sorted(RESULTS.glob("*/kernels.json"))


def entry(seconds, mib=1.0, parts=("logprobs", "d_hidden", "d_weight")):
    error = {"relative": 1e-3, "max": 2e-3, "rms": 1e-3, "bias": -1e-5}
    times = {"median": seconds, "p20": seconds, "p80": seconds, "all": [seconds]}
    return {"seconds_cold": times, "peak_mib": mib, "errors": {part: error for part in parts}}


def result():
    case = {"tokens": 8, "dim": 4, "vocab": 9, "mode": "both"}
    common = {
        "missing": {"QuACK": "ImportError: no quack"},
        "settings": {"ours": "tail=1e-2"},
        "limit_seconds": 0.5,
        "yardsticks": {"product": {"seconds_cold": {"median": 1.0}}},
    }
    eager = {"errors_eager": {"bfloat16": entry(1.0)["errors"]}}
    wrong = {"errors": entry(1.0)["errors"], "wrong": "d_hidden is 3e-1; not timed"}
    rows = {
        "head: 8 x 4 x 9": {
            "case": case, **common, **eager,
            "contenders": {"ours": entry(2.0), "eager": entry(4.0, 64.0), "CCE": wrong},
        },
    }  # fmt: skip
    for n in (1, 2, 4):
        contenders = {"ours": entry(3.0 * n, 5.0), "eager": entry(2.0 * n**2, 7.0 * n)}
        rows[f"growth: {n}"] = {"case": {**case, "tokens": n}, **common, "contenders": contenders}
    loss = {"ours": entry(1e-3, parts=("d_logprobs",)), "eager": entry(2e-3, parts=("d_logprobs",))}
    rows["loss: 32 tokens"] = {"case": {"tokens": 32}, **common, "contenders": loss}
    return {
        "device": "x", "cores": 2, "threads": 1, "clock": "cold", "torch": "2.13", "commit": "abc",
        "versions": {"trl": "1.16.0", "verl": "not installed"}, "rows": rows,
        "not_measured": {"head: real": "no real model"},
        "rates": {"product_flop_per_s": 1e9, "copy_bytes_per_s": 1e9},
    }  # fmt: skip


def test_ratios_wrong_and_missing():
    text = everything(result())
    assert "| ours | 2 s | 2 s to 2 s | 0.50 | 2.00 | 4.00 | 1.0 MiB |" in text
    assert "| CCE | d_hidden is 3e-1; not timed |" in text
    assert "- head: real: no real model" in text
    assert "- head, QuACK: ImportError: no quack" in text and "- head, ours: tail=1e-2" in text
    assert "trl 1.16.0" in text and "verl not" not in text
    short = summary(result())
    assert "| 8 x 4 x 9 | eager | 4 s | 1.00 | 2.00 | 64 MiB | 1.0e-03 |" in short
    assert "| 32 tokens | ours | 1 ms | 0.50 | 1.00 |" in short and "CCE" not in short


def test_exponents():
    assert exponent([(n, 3.0 * n**1.5) for n in (1, 2, 4, 8)]) == pytest.approx(1.5)
    assert exponent([(1, 1.0), (2, 2.0)]) is None and exponent([(1, 0.0)] * 4) is None
    series = growth(result())
    assert exponent(series["ours"]["time"]) == pytest.approx(1)
    assert exponent(series["eager"]["time"]) == pytest.approx(2)
    assert exponent(series["ours"]["memory"]) == pytest.approx(0)
    assert "| eager | 2.00 | 1.00 | 4 | 32 s | 28 MiB |" in everything(result())


def test_where_another_is_faster():
    table = behind(result())
    line = "| growth: 1 | 3 s | 1.50 | eager | 1.50 | 5.0 MiB | 7.0 MiB | 7.0 MiB |"
    assert table.splitlines()[2:] == [line]  # at 2 tokens ours takes 6 s, eager 8
    assert asked_for(result(), "ours, tail=0") is None
    made = result()
    for row, seconds in zip(made["rows"].values(), (6.0, 3.0, 8.0), strict=False):
        row["contenders"]["ours, tail=0"] = entry(seconds)
    said = "`tail=0` takes 1.00 to 1.50 times eager's time, forward and backward."
    assert behind(made) == f"{table}\n{said}\n"
    assert asked_for(made, "ours, tail=0") == (1.0, 1.5)
    for row in made["rows"].values():
        row["contenders"]["ours"] = entry(1e-4)
    assert behind(made) == f"None: ours is the fastest in every row.\n\n{said}\n"


def test_units():
    assert [amount(x) for x in (2.5, 0.0025, 2.5e-6, None)] == ["2.5 s", "2.5 ms", "2.5 us", ""]


@pytest.mark.costly
def test_plots_from_the_json_alone(tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib (pip install '.[bench]')")
    (tmp_path / "kernels.json").write_text(json.dumps(result()))
    write_results(tmp_path)
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert {
        "kernels.md",
        "summary.md",
        "speed.svg",
        "memory.svg",
        "error.svg",
        "growth.svg",
    } <= set(first)
    write_results(tmp_path)
    assert first == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


@pytest.mark.parametrize("path", MEASURED, ids=lambda p: p.parent.name)
def test_committed_tables_are_those_of_the_json(path: Path):
    measured = json.loads(path.read_text(encoding="utf-8"))
    tables = {"kernels.md": everything, "summary.md": summary, "behind.md": behind}
    for name, table in tables.items():
        text = table(measured)
        said = (path.parent / name).read_text(encoding="utf-8")
        assert said == text, f"{name}: run python -m bench tables {path.parent}"
