"""The sign of accuracy is the worst that is shown; a lost peak and equal runs are said."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path

import numpy as np
import pytest

from siri_train.report.verdict.comparisons import LOST, PEAK
from siri_train.report.verdict.text import verdict_text
from tests.train.verdict_runs import found, keep, write_evals, write_metrics

SEEDS = [time.time_ns() % 10**9 + place for place in range(4)]
QUESTIONS = 300
STEPS = {12: "siri-low", 24: "siri-high", 36: "siri-low", 48: "siri-high"}


def drawn(folder: Path, rng: np.random.Generator) -> None:
    """A run and some controls whose accuracies at both ends and budgets are drawn apart."""
    base, kind = rng.random(QUESTIONS), rng.random()
    for place in range(rng.integers(1, 4)):
        name = f"constant-{place}" if place else "siri"
        write_metrics(folder / name, [20.0] * 48, shape="constant" if place else "cosine")
        answers = {}
        for step in (0, *STEPS):
            shares = rng.uniform(0.3, 0.9, 2) - (0.3 * (kind > 0.5) if place else 0.0)
            shares = shares if step else shares / 9
            answers[step] = {52: base < shares.max(), 20: base < shares.min()}
        write_evals(folder / name, answers, names={} if place else {0: "start", **STEPS})


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_that_fell_is_called_good(seed: int, tmp_path: Path) -> None:
    """Each place that lost is named in the title, with its budget, points and other run."""
    rng = np.random.default_rng(seed)
    statuses = set()
    for place in range(100):
        if place >= 12 and len(statuses) > 1:
            break
        folder = tmp_path / str(place)
        drawn(folder, rng)
        one = found(folder)[1]["accuracy"]
        statuses.add(one.status)
        rows = one.figures["comparisons"]
        fell = [row for row in rows if row["said"] == "fell"]
        first = [row for row in rows if (row["end"], row["budget"]) == ("expanded end", 52)]
        assert (one.status == "good") <= (not fell), (seed, place, one.title)
        bad = [row for row in fell if row["against"] == "the start"
               or (row in first and row["against"] != PEAK)
               or (row["against"] == PEAK and row["difference"] < -LOST)]  # fmt: skip
        assert (one.status == "bad") == bool(bad), (seed, place, one.title)
        for end, budget in {(row["end"], row["budget"]) for row in fell}:
            others = [row for row in fell if (row["end"], row["budget"]) == (end, budget)
                      and row["against"].startswith("constant")]  # fmt: skip
            if others and (end, budget) != ("expanded end", 52):
                worst = min(others, key=lambda row: row["difference"])
                told = f"at the {end} within {budget} tokens "
                points = f"{-100 * worst['difference']:.1f} points below {worst['against']}"
                part = one.title.partition(told)[2].partition(";")[0]
                assert points in part, (seed, place, one.title)
    assert len(statuses) > 1, seed


@pytest.mark.parametrize("seed", SEEDS)
def test_a_peak_that_was_lost(seed: int, tmp_path: Path) -> None:
    """A constant cap whose accuracy rises and falls back, by known points; and one that stays."""
    rng = np.random.default_rng(seed)
    base = rng.random(QUESTIONS)
    top, peak_at = rng.uniform(0.6, 0.9), int(rng.integers(3, 8))
    lost = rng.uniform(0.12, 0.3)
    for name, end in (("falls", top - lost), ("stays", top)):
        folder = tmp_path / name
        write_metrics(folder, [20.0] * 48, shape="constant")
        shares = np.interp(range(13), [0, peak_at, 12], [0.2, top, end])
        answers = {4 * k: {52: base < share} for k, share in enumerate(shares)}
        lengths = {step: 30.0 - step / 4 for step in answers}
        write_evals(folder, answers, names={0: "start"}, tokens=lengths)
        keep(folder, *answers)
        best = max((at[52].mean(), -lengths[step], step) for step, at in answers.items())[2]
        settings = (folder / "config.yaml").read_text() + "checkpoint: {best: accuracy}\n"
        (folder / "config.yaml").write_text(settings)
        manifest = {"cycles": [], "best": {"step": best}}
        (folder / "checkpoints" / "manifest.json").write_text(json.dumps(manifest))
        verdict, findings = found(folder)
        assert verdict.ship[0].step == best, (seed, name)
        one = findings["accuracy"]
        if name == "stays":
            assert "peaked" not in one.title and one.status == "good", (seed, one.title)
            continue
        rows = answers[best][52].mean(), answers[48][52].mean()
        told = re.search(
            r"it peaked at step (\d+) with ([\d.]+) % and has lost ([\d.]+) points since "
            r"\(([\d.]+) to ([\d.]+)\)", one.title)  # fmt: skip
        assert told, (seed, one.title)
        assert int(told[1]) == best == 4 * peak_at, (seed, one.title)
        assert told[2] == f"{100 * rows[0]:.1f}", (seed, one.title)
        assert told[3] == f"{100 * (rows[0] - rows[1]):.1f}", (seed, one.title)
        assert float(told[4]) < float(told[3]) < float(told[5]), (seed, one.title)
        assert one.status == "bad" and "rose by" in one.title, (seed, one.title)
        assert f"step_{best:06d}" in verdict_text(verdict)


def test_chance_is_seldom_called_a_lost_peak(tmp_path: Path) -> None:
    """The best of 25 noisy evaluations lies above the last one, whatever the run does."""
    seed, said = time.time_ns() % 10**9, 0
    for place in range(15):
        rng = np.random.default_rng([seed, place])
        hard = rng.random(QUESTIONS)
        folder = tmp_path / str(place)
        write_metrics(folder, [20.0] * 100, shape="constant")
        answers = {4 * k: {52: rng.random(QUESTIONS) < 0.2 + 0.6 * hard} for k in range(26)}
        write_evals(folder, answers, names={0: "start"})
        said += "peaked" in found(folder)[1]["accuracy"].title
    assert said <= 2, seed


@pytest.mark.parametrize("seed", SEEDS)
def test_a_later_end_below_an_earlier_one_is_said(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    base = rng.random(QUESTIONS)
    first, loss = rng.uniform(0.6, 0.9), rng.uniform(0.1, 0.4)
    shares = {0: 0.1, 12: 0.5, 24: first, 36: 0.5, 48: first - loss}
    write_metrics(tmp_path, [20.0] * 48)
    write_evals(tmp_path, {step: {52: base < share} for step, share in shares.items()},
                names={0: "start", **STEPS})  # fmt: skip
    one = found(tmp_path)[1]["accuracy"]
    assert "it peaked at step 24" in one.title and one.status == "bad", (seed, one.title)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_on_every_question_is_called_so(seed: int, tmp_path: Path) -> None:
    """Also where few questions would not tell runs apart; one other answer is not the same."""
    rng = random.Random(seed)
    count = rng.choice([7, 40, 300])
    right = np.array([rng.random() < 0.6 for _ in range(count)])
    right[0], other = True, right.copy()
    other[rng.randrange(count)] ^= True
    for name, answers in (("siri", right), ("twin", right), ("near", other)):
        write_metrics(
            tmp_path / name, [20.0] * 48, shape="cosine" if name == "siri" else "constant"
        )
        write_evals(tmp_path / name, {48: {52: answers}}, names={48: "siri-high"})
    one = found(tmp_path)[1]["accuracy"]
    said = {row["against"].split()[0]: row for row in one.figures["comparisons"]}
    assert said["twin"]["said"] == "the same" and said["twin"]["interval"] == [0.0, 0.0], seed
    assert said["near"]["said"] != "the same", seed
    assert any(f"the same (equal on each of the {count} questions)" in line
               for line in one.details), (seed, one.details)  # fmt: skip
