"""The entropy's band: one in the chart and in the verdict, whatever a run has recorded of it."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path

import pytest

from siri_train.report.charts import figures
from siri_train.report.data import read_run_folder
from siri_train.report.entropy_band import WINDOW, seen
from tests.train.report_page import jsonl
from tests.train.verdict_runs import found, write_metrics

SEEDS = [time.time_ns() % 10**9 + place for place in range(6)]


def drawn(folder: Path, rng: random.Random, shape: str = "cosine") -> None:
    """A run with drifts, jumps and gaps; rows are lost, values are missing or no number."""
    cycle = 2 * rng.randint(4, 30)
    steps = rng.randint(cycle // 2, 4 * cycle)
    level, values = rng.uniform(0.01, 2.0), []
    for _ in range(steps):
        level *= rng.uniform(0.93, 1.06) * (rng.choice([0.1, 5]) if rng.random() < 0.02 else 1)
        values.append(level)
    write_metrics(folder, [20.0] * steps, cycle=cycle, shape=shape, entropy=values)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    gaps = rng.choice([0.0, 0.05, 0.4])
    for row in rows:
        if rng.random() < gaps:
            row["entropy"] = rng.choice([None, float("nan"), "x", float("inf")])
        if rng.random() < gaps:
            del row["entropy"]
    lost = rng.choice([0.0, 0.1])
    jsonl(folder / "metrics.jsonl", [row for row in rows if rng.random() >= lost])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_chart_and_the_verdict_say_the_same(seed: int, tmp_path: Path) -> None:
    """Whether there is a band, its ends, and how many steps lie outside."""
    rng = random.Random(seed)
    for place in range(6):
        folder = tmp_path / str(place)
        drawn(folder, rng)
        read = read_run_folder(folder)
        rows = read.runs[0].metrics
        finding = found(folder)[1]["entropy"]
        band = seen(rows).of_cycle
        assert (finding.status == "missing") == (band is None), (seed, place, finding.text)
        charts = [one for one in figures(read)[0] if one.chart.title == "Entropy"]
        if band is None:
            assert not any("Shaded" in one.text for one in charts), (seed, place)
            continue
        assert finding.figures["band"] == list(band), (seed, place)
        counts = seen(rows).outside()
        assert finding.figures["steps_below_above_of"] == list(counts), (seed, place)
        share = 1 - (counts[0] + counts[1]) / counts[2]
        assert f"inside at {100 * share:.0f} %" in finding.text, (seed, place)
        told = re.search(r"([\d,]+) of the ([\d,]+) steps .* and ([\d,]+) above", charts[0].text)
        assert told, (seed, place, charts[0].text)
        shown = tuple(int(one.replace(",", "")) for one in told.groups())
        assert shown == (counts[0], counts[2], counts[1]), (seed, place)


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_a_constant_cap_is_judged_by_its_first_third(seed: int, tmp_path: Path) -> None:
    """The mean over steps is made by hand here."""
    drawn(tmp_path, random.Random(seed), "constant")
    rows = read_run_folder(tmp_path).runs[0].metrics
    known = [(row["step"], row["entropy"]) for row in rows
             if isinstance(row.get("entropy"), float) and 0 < row["entropy"] < 1e9]  # fmt: skip
    half = WINDOW // 2
    means = []
    for place, (step, _) in enumerate(known):
        near = [value for _, value in known[max(0, place - half) : place + half + 1]]
        means.append((step, sum(near) / len(near)))
    first = max((rows[-1]["step"] + 1) // 3, 1)
    curve = seen(rows)
    assert (curve.part, curve.first) == ("third", first), seed
    assert list(curve.means) == pytest.approx([mean for _, mean in means]), seed
    if curve.band is not None:
        later = [mean for step, mean in means if step >= first]
        below, above, count = curve.outside()
        assert (below, above) == (sum(one < curve.band[0] for one in later),
                                  sum(one > curve.band[1] for one in later)), seed  # fmt: skip
        assert count == len(later), seed
