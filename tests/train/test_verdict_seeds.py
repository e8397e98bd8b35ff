"""Runs of one method with several seeds are judged as one, by all of them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from siri_train.report.several import read_several
from siri_train.report.verdict import judge
from siri_train.report.verdict.compared import DRAWS_OF_SEEDS
from siri_train.report.verdict.seeds import scatter, student
from siri_train.statistics.paired import paired_test
from tests.train.report_page import jsonl
from tests.train.verdict_runs import found, keep, write_evals, write_metrics

SEEDS = [time.time_ns() % 10**9 + place for place in range(4)]
QUESTIONS = 200


def runs(folder: Path, rng: np.random.Generator, *, flat: bool, seeds: int, spread: float) -> dict:
    """Two methods with some seeds each, as an ablation lays them out or side by side."""
    base = rng.random(QUESTIONS)
    answers: dict[str, list[np.ndarray]] = {}
    for arm, level in (("moving", 0.75), ("still", 0.55)):
        for seed in range(seeds):
            place = folder / f"{arm}-{seed}" if flat else folder / arm / "m" / f"seed-{seed}"
            right = base < level + rng.uniform(-spread, spread)
            shape = "cosine" if arm == "moving" else "constant"
            write_metrics(place, [20.0] * 48, shape=shape)
            write_evals(place, {0: {52: base < 0.2}, 48: {52: right}}, names={48: "siri-high"})
            settings = yaml.safe_load((place / "config.yaml").read_text())
            settings |= {"seed": seed, "output": str(place), "name": place.name}
            (place / "config.yaml").write_text(yaml.safe_dump(settings))
            keep(place, 48)
            answers.setdefault(arm, []).append(right)
    return answers


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("seed", SEEDS[:2])
def test_all_seeds_count(seed: int, flat: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 5))
    answers = runs(tmp_path, rng, flat=flat, seeds=count, spread=0.08)
    verdict, findings = found(tmp_path)
    assert f"{count} seeds" in verdict.run and len(verdict.others) == 1, (seed, verdict)
    one = findings["accuracy"]
    row = next(row for row in one.figures["comparisons"] if row["against"] != "the start")
    both = [[list(map(float, one)) for one in answers[arm]] for arm in ("moving", "still")]
    wanted = paired_test(*both, draws=DRAWS_OF_SEEDS)
    assert row["seeds"] == [count, count] and row["paired"], seed
    assert row["difference"] == pytest.approx(wanted.difference), seed
    assert row["interval"] == pytest.approx([wanted.low, wanted.high], abs=1e-9), seed
    mean = np.mean([one.mean() for one in answers["moving"]])
    assert f"{100 * mean:.1f} %" in one.text and f"means over {count} seeds" in one.text, seed
    assert any(f"over {count} seeds each" in line for line in one.details), (seed, one.details)
    best = max(range(count), key=lambda place: answers["moving"][place].mean())
    top = answers["moving"][best].mean()
    assert top - verdict.ship[0].accuracy < 0.011, (seed, verdict.ship)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_lucky_first_seed_decides_nothing(seed: int, tmp_path: Path) -> None:
    """Seeds that scatter widely about one mean: no claim, though the first ones differ much."""
    rng = np.random.default_rng(seed)
    base = rng.random(QUESTIONS)
    for arm, levels in (("moving", (0.8, 0.5, 0.65)), ("still", (0.5, 0.8, 0.65))):
        for place, level in enumerate(levels):
            folder = tmp_path / arm / f"seed-{place}"
            write_metrics(folder, [20.0] * 48, shape="cosine" if arm == "moving" else "constant")
            write_evals(folder, {48: {52: base < level}}, names={48: "siri-high"})
    one = found(tmp_path)[1]["accuracy"]
    assert [row["said"] for row in one.figures["comparisons"]] == ["not told apart"], seed
    for arm in ("moving", "still"):
        for place in (1, 2):
            shutil.rmtree(tmp_path / arm / f"seed-{place}")
    assert found(tmp_path)[1]["accuracy"].figures["comparisons"][0]["said"] == "rose", seed


@pytest.mark.parametrize("seed", SEEDS)
def test_the_layout_changes_nothing(seed: int, tmp_path: Path) -> None:
    made = []
    for name, flat in (("flat", True), ("arms", False)):
        runs(tmp_path / name, np.random.default_rng(seed), flat=flat, seeds=3, spread=0.1)
        made.append(found(tmp_path / name)[1]["accuracy"].figures["comparisons"])
    for rows in made:
        for row in rows:
            row.pop("against")
    assert made[0] == made[1], seed


def test_a_run_of_the_same_seed_is_no_other_seed(tmp_path: Path) -> None:
    runs(tmp_path, np.random.default_rng(0), flat=True, seeds=2, spread=0.05)
    path = tmp_path / "moving-1" / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(settings | {"seed": 0}))
    verdict, _ = found(tmp_path)
    assert verdict.run == "moving-0" and "moving-1" in verdict.others
    path.write_text(yaml.safe_dump(settings | {"train": {"steps": 47}}))
    assert found(tmp_path)[0].run == "moving-0"
    path.write_text(yaml.safe_dump(settings))
    assert found(tmp_path)[0].run == "moving-0 and moving-1 (2 seeds)"


@pytest.mark.parametrize("seed", SEEDS)
def test_the_worst_seed_gives_the_sign(seed: int, tmp_path: Path) -> None:
    """An alarm or a bad figure in any seed is not hidden behind the first one."""
    rng = np.random.default_rng(seed)
    ill = int(rng.integers(0, 3))
    for place in range(3):
        folder = tmp_path / "siri" / f"seed-{place}"
        write_metrics(folder, [20.0] * 48, rollout_kl=0.5 if place == ill else 1e-4)
        if place == ill:
            row = {"step": 30, "alarm": "entropy-collapse", "state": "raised", "since": 30}
            jsonl(folder / "alarms.jsonl", [row])
    findings = found(tmp_path)[1]
    assert findings["mismatch"].status == findings["entropy"].status == "bad", seed
    assert f"seed-{ill}" in findings["mismatch"].title, (seed, findings["mismatch"].title)
    assert "1 of 3 seeds" in findings["mismatch"].title, (seed, findings["mismatch"].title)
    assert findings["alarms"].status == "bad" and "seed-" in findings["alarms"].title, seed
    assert set(findings["mismatch"].figures["seeds"]) == {f"seed-{k}" for k in range(3)}
    assert findings["groups"].title.endswith("(all 3 seeds)") and not findings["groups"].details


def test_runs_that_are_compared_are_put_together_too(tmp_path: Path) -> None:
    runs(tmp_path, np.random.default_rng(4), flat=True, seeds=2, spread=0.05)
    folders = [tmp_path / f"{arm}-{seed}" for arm in ("moving", "still") for seed in (0, 1)]
    verdict = judge(read_several(folders, "both"))
    assert set(verdict.findings[1].figures["seeds"]) == {"moving-0", "moving-1"}
    assert verdict.run == "moving-0 and moving-1 (2 seeds)" and len(verdict.others) == 1
    arms = tmp_path / "arms"
    runs(arms, np.random.default_rng(4), flat=False, seeds=2, spread=0.05)
    verdict = judge(read_several([arms, tmp_path / "moving-0"], "both"))
    assert verdict.run == "moving/m (2 seeds)" and len(verdict.others) == 2


def test_students_t() -> None:
    """Against draws of it."""
    rng = np.random.default_rng(1)
    for degrees in (1, 2, 3, 4, 5, 7, 12, 40):
        drawn = np.quantile(np.abs(rng.standard_t(degrees, 400_000)), 0.95)
        assert student(degrees) == pytest.approx(drawn, rel=0.02), degrees
    assert scatter([0.5]) == 0.0
    assert scatter([0.4, 0.6]) == pytest.approx(12.706 * 0.1, rel=1e-3)
