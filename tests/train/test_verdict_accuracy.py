"""Did accuracy hold? Runs whose accuracy rose, fell by known points, or did not change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.train.verdict_runs import found, write_evals, write_metrics

QUESTIONS = 300


def answered(share: float, rng: np.random.Generator, like: np.ndarray | None = None) -> np.ndarray:
    """0 and 1 by chance; with ``like`` most questions are answered as there."""
    fresh = rng.random(QUESTIONS) < share
    if like is None:
        return fresh
    # the questions are as hard for both: of each the answer stays, or is drawn anew
    return np.where(rng.random(QUESTIONS) < 0.7, like, fresh)


def changed(before: np.ndarray, points: float, rng: np.random.Generator) -> np.ndarray:
    """Some answers turned, so that the expected accuracy moves by ``points``."""
    right, wrong = before.mean(), 1 - before.mean()
    churn = 0.03
    lose, gain = churn + max(-points, 0), churn + max(points, 0)
    flips = np.where(before, rng.random(QUESTIONS) < lose / right,
                     rng.random(QUESTIONS) < gain / wrong)  # fmt: skip
    return before ^ flips


def run(folder: Path, points: float, seed: int, by_question: bool = True) -> dict:
    """A run of two cycles against its start; the comparison at the expanded end."""
    rng = np.random.default_rng(seed)
    before = answered(0.7, rng)
    write_metrics(folder, [20.0] * 48)
    ends = {24: "siri-high", 48: "siri-high"}
    after = changed(before, points, rng)
    write_evals(folder, {0: {32: before}, 24: {32: after}, 48: {32: after}},
                names={0: "start", **ends}, by_question=by_question)  # fmt: skip
    one = found(folder)[1]["accuracy"]
    at = one.figures["comparisons"][0]
    assert at["against"] == "the start" and at["paired"] == by_question
    assert abs(at["difference"] - (after.mean() - before.mean())) < 1e-9
    assert f"{100 * after.mean():.1f} %" in one.text
    return at


@pytest.mark.parametrize("by_question", [True, False])
def test_held_is_not_said_of_a_fall(by_question: bool, tmp_path: Path) -> None:
    said = [run(tmp_path / str(seed), -0.06, seed, by_question)["said"] for seed in range(30)]
    assert said.count("held") <= 2 and said.count("rose") == 0
    if by_question:
        assert said.count("fell") >= 20


def test_no_difference_is_seldom_claimed(tmp_path: Path) -> None:
    said = [run(tmp_path / str(seed), 0.0, seed)["said"] for seed in range(60)]
    assert said.count("rose") + said.count("fell") <= 6
    assert said.count("held") >= 3  # and with 300 questions most are not told apart


def test_a_rise_is_claimed(tmp_path: Path) -> None:
    said = [run(tmp_path / str(seed), 0.12, seed)["said"] for seed in range(10)]
    assert said.count("rose") >= 9


def test_many_equal_controls_make_no_claim(tmp_path: Path) -> None:
    """Each of twelve comparisons at 5 % would claim a difference in nearly half of the verdicts."""
    false = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        top = tmp_path / str(seed)
        base = answered(0.7, rng)
        for name in ("siri", *(f"constant-{k}" for k in range(12))):
            shape = "cosine" if name == "siri" else "constant"
            write_metrics(top / name, [20.0] * 48, shape=shape)
            write_evals(top / name, {48: {32: answered(0.7, rng, base)}}, names={48: "siri-high"})
        one = found(top)[1]["accuracy"]
        assert len(one.figures["comparisons"]) == 12
        false += any(each["said"] in ("rose", "fell") for each in one.figures["comparisons"])
        assert "12 comparisons" in one.text and "of 12 other runs" in one.title
    assert false <= 1


def test_counts_in_the_title_are_those_of_the_figures(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    base = answered(0.7, rng)
    for name, points in (("siri", 0.0), ("a", -0.3), ("b", -0.3), ("c", 0.25), ("d", 0.0)):
        shape = "cosine" if name == "siri" else "constant"
        write_metrics(tmp_path / name, [20.0] * 48, shape=shape)
        now = changed(base, points, rng) if points else base
        write_evals(tmp_path / name, {48: {32: now, 16: now & (rng.random(QUESTIONS) < 0.5)}},
                    names={48: "siri-high"})  # fmt: skip
    verdict, findings = found(tmp_path)
    one = findings["accuracy"]
    assert one.status == "bad"
    said = {each["against"][0]: each["said"] for each in one.figures["comparisons"]
            if each["budget"] == 32}  # fmt: skip
    assert said == {"a": "rose", "b": "rose", "c": "fell", "d": "the same"}
    low = [each["said"] for each in one.figures["comparisons"] if each["budget"] == 16]
    worse, told = low.count("fell"), "Accuracy below 1, the same as 1 and above 2 of 4"
    short = f"; but at the expanded end within 16 tokens below {worse} of 4 other runs: "
    assert one.title.startswith(f"{told} other runs{short if worse else ''}")
    assert worse or one.title.endswith("of 4 other runs")
    assert len(verdict.others) == 4 and all("constant cap 52" in name for name in verdict.others)
    assert len(one.details) == 2 and "within 16 tokens" in one.details[1]
    assert len(one.table) == 1 + len(one.figures["comparisons"]) == 9


def test_named_sets_and_the_one_that_selects(tmp_path: Path) -> None:
    write_metrics(tmp_path, [20.0] * 48)
    config = (tmp_path / "config.yaml").read_text().replace("select: null", "select: pick")
    (tmp_path / "config.yaml").write_text(config)
    rows = []
    for step, name, shares in ((0, "start", (0.2, 0.3, 0.9)), (48, "siri-high", (0.8, 0.7, 0.1))):
        sets = {
            key: {"accuracy": [share], "accuracy_interval": [[share - 0.05, share + 0.05]],
                  "tokens": 20.0, "questions": 200, "samples": 1}
            for key, share in zip(("one", "two", "pick"), shares, strict=True)
        }  # fmt: skip
        rows.append({"step": step, "name": name, "budgets": [32], "set": "pick", "sets": sets,
                     **sets["pick"]})  # fmt: skip
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = found(tmp_path)[1]["accuracy"]
    by_set = {each["set"]: each["said"] for each in one.figures["comparisons"]}
    assert by_set == {"one": "rose", "two": "rose"}
    assert "rose by 60.0 points" in one.title and any("set two" in line for line in one.details)
    assert one.text.startswith("Held-out questions of the set one answered right:")
    assert (
        "Checkpoints are chosen on pick (200 questions) and reported on the others; the judgement "
        "is on one (200 questions)." in one.text
    )


def test_without_evaluations_or_with_one(tmp_path: Path) -> None:
    write_metrics(tmp_path / "none", [20.0] * 48)
    assert found(tmp_path / "none")[1]["accuracy"].status == "missing"
    write_metrics(tmp_path / "one", [20.0] * 48)
    write_evals(tmp_path / "one", {48: {32: answered(0.5, np.random.default_rng(0))}})
    one = found(tmp_path / "one")[1]["accuracy"]
    assert one.status == "missing" and "nothing to compare" in one.title


@pytest.mark.parametrize("seed", range(4))
def test_what_was_lost_behind_the_last_end_is_said(seed: int, tmp_path: Path) -> None:
    """The run ends between two ends, or its last evaluation has no name: it counts all the same."""
    rng = np.random.default_rng([seed, 7])
    before, top = answered(rng.uniform(0.2, 0.6), rng), answered(rng.uniform(0.6, 0.9), rng)
    last, lost = int(rng.integers(36, 48)), rng.random(QUESTIONS) < rng.uniform(0.05, 0.4)
    for name, now in (("lost", top & lost), ("kept", top)):
        write_metrics(tmp_path / name, [20.0] * last)
        write_evals(tmp_path / name, {0: {32: before}, 24: {32: top}, last: {32: now}},
                    names={0: "start", 24: "siri-high"})  # fmt: skip
    verdict, findings = found(tmp_path / "lost")
    one, points = findings["accuracy"], 100 * (top.mean() - (top & lost).mean())
    said = f"fell by {points:.1f} points from the expanded end to the last evaluation (step {last})"
    assert one.status == "bad" and said in one.title, one.title
    assert any(f"Against its expanded end, step 24: fell, −{points:.1f} points" in line
               for line in one.details), one.details  # fmt: skip
    assert verdict.ship[0].step == 24
    one = found(tmp_path / "kept")[1]["accuracy"]
    assert one.status != "bad" and "last evaluation" not in one.title
    assert "other run" not in one.title + one.text


@pytest.mark.parametrize("worse", [0, 1, 3])
def test_a_loss_at_the_low_budget_is_in_the_title(worse: int, tmp_path: Path) -> None:
    """And the sign is no longer good."""
    rng = np.random.default_rng(worse)
    base = answered(0.7, rng)
    for place, name in enumerate(("siri", "a", "b", "c")):
        write_metrics(tmp_path / name, [20.0] * 48, shape="constant" if place else "cosine")
        low = base & (rng.random(QUESTIONS) < (0.9 if 0 < place <= worse else 0.3))
        write_evals(tmp_path / name, {48: {32: base, 16: low}}, names={48: "siri-high"})
    one = found(tmp_path)[1]["accuracy"]
    said = "Accuracy the same as 3 of 3 other runs"
    if worse:
        below = [each for each in one.figures["comparisons"] if each["said"] == "fell"]
        least = min(below, key=lambda each: each["difference"])
        said += f"; but at the expanded end within 16 tokens below {worse} of 3 other runs: "
        said += f"{-100 * least['difference']:.1f} points below {least['against']}"
        said += " at worst" if worse > 1 else ""
        assert len(below) == worse
    assert one.title == said
    assert one.status == ("unclear" if worse else "good")
