"""Did the length follow the cap? Runs that do, at a known lag, and runs that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from siri_train.report.verdict.lagged import follows
from tests.train.verdict_runs import found, write_evals, write_metrics

T = 24


def noise(kind: str, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths that know nothing of the cap: white, slow, wandering, or falling by learning."""
    fresh = rng.standard_normal(steps)
    if kind == "walk":
        values = np.cumsum(fresh)
    elif kind == "learning":
        values = 12 * np.exp(-np.arange(steps) / rng.uniform(4, steps / 3)) + 0.5 * fresh
    else:
        values = np.zeros(steps)
        for step in range(steps):
            values[step] = float(kind) * (values[step - 1] if step else 0.0) + fresh[step]
    return 20 * np.exp(0.15 * (values - values.mean()) / values.std())


def answer(cap: np.ndarray, lag: int) -> np.ndarray:
    """A length that is a share of the cap ``lag`` steps before."""
    return 0.4 * np.concatenate([np.full(lag, cap[0]), cap])[: len(cap)]


def caps(steps: int, cycle: int = T) -> np.ndarray:
    return 36 + 16 * np.cos(2 * np.pi * np.arange(steps) / cycle)


def test_a_length_that_follows_is_found_at_its_lag(tmp_path: Path) -> None:
    claimed, inside = 0, 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        lag = int(rng.integers(0, T // 3))
        lengths = answer(caps(4 * T), lag) * np.exp(0.1 * rng.standard_normal(4 * T))
        write_metrics(tmp_path / str(seed), lengths)
        one = found(tmp_path / str(seed))[1]["length"]
        claimed += one.status == "good"
        low, high = one.figures["lag_interval"]
        inside += low <= lag <= high
        assert abs(one.figures["lag"] - lag) <= 2 and one.figures["correlation"] > 0.7
        assert f"{one.figures['correlation']:.2f}" in one.title
        assert one.figures["tokens_at_short_caps"] < one.figures["tokens_at_long_caps"]
    assert claimed >= 11 and inside >= 10


@pytest.mark.parametrize("cycles", [3, 4])
def test_noise_seldom_passes_for_an_answer(cycles: int) -> None:
    claims = runs = 0
    for kind in ("0", "0.5", "0.8", "0.95", "walk", "learning"):
        for seed in range(20):
            rng = np.random.default_rng(seed)
            series = np.log(noise(kind, cycles * T, rng))
            one = follows(np.log(caps(cycles * T)), series, T, 150, seed)
            assert one is not None
            claims += one.p_value < 0.02 and one.correlation >= 0.4
            runs += 1
    assert claims / runs <= 0.08, f"{claims} of {runs}"


def test_one_cycle_is_no_claim_and_learning_is_no_answer(tmp_path: Path) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        write_metrics(tmp_path / str(seed), noise("learning", T + T // 2, rng))
        assert found(tmp_path / str(seed))[1]["length"].status == "unclear"


def test_where_it_stopped(tmp_path: Path) -> None:
    right = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        last = int(rng.integers(2, 4))
        lengths = answer(caps(4 * T), 2)
        lengths[last * T + 2 :] = 14.0
        lengths *= np.exp(0.05 * rng.standard_normal(4 * T))
        write_metrics(tmp_path / str(seed), lengths)
        one = found(tmp_path / str(seed))[1]["length"]
        if one.figures.get("last_cycle_followed") == last:
            right += 1
            assert one.title == f"Length followed the cap until cycle {last} of 4"
            assert one.status == "unclear"
    assert right >= 6


def test_what_cannot_be_judged_is_said(tmp_path: Path) -> None:
    fixed = tmp_path / "fixed"
    write_metrics(fixed, [20.0] * 48, shape="constant")
    assert found(fixed)[1]["length"].title == "Length and cap: not judged, the cap did not move"
    free = tmp_path / "free"
    write_metrics(free, [6.0] * 48, truncated_frac=0.0)
    one = found(free)[1]["length"]
    assert (one.status, one.figures["bound"]) == ("unclear", False) and "6.0 tokens" in one.text
    for steps in (1, 5, 23):
        short = tmp_path / f"short-{steps}"
        write_metrics(short, [20.0] * steps)
        assert found(short)[1]["length"].status == "missing"
    still = tmp_path / "still"
    write_metrics(still, [20.0] * 72)
    assert found(still)[1]["length"].status == "missing"


def test_gaps_and_nan_change_little(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    lengths = answer(caps(4 * T), 3) * np.exp(0.05 * rng.standard_normal(4 * T))
    lengths[rng.integers(0, 4 * T, 8)] = np.nan
    write_metrics(tmp_path, lengths)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    kept = [line for place, line in enumerate(lines) if place not in (5, 6, 40)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    findings = found(tmp_path)[1]
    assert abs(findings["length"].figures["lag"] - 3) <= 2
    assert findings["state"].figures["missing_rows"] == 3
    assert "files damaged" in findings["state"].title


def test_long_cycles_are_averaged() -> None:
    rng = np.random.default_rng(0)
    leader = np.log(caps(1920, 640))
    series = np.log(answer(caps(1920, 640), 120)) + 0.2 * rng.standard_normal(1920)
    one = follows(leader, series, 640, 100)
    assert one is not None and abs(one.lag - 120) <= 30 and one.p_value < 0.02
    assert all(each is not None and each[1] < 0.05 for each in one.cycles[:2])


def test_noise_of_one_cycle_is_no_movement_with_the_cap(tmp_path: Path) -> None:
    """The largest correlation with noise, over some lags, is often above 0.4."""
    told = []
    for seed in range(12):
        rng = np.random.default_rng([seed, 3])
        write_metrics(tmp_path / str(seed), 20 * np.exp(0.05 * rng.standard_normal(T)))
        told.append(found(tmp_path / str(seed))[1]["length"].title)
    assert sum("moved together" in title for title in told) <= 1, told


@pytest.mark.parametrize("seed", range(4))
def test_a_lag_is_as_sure_as_the_lengths_are(seed: int, tmp_path: Path) -> None:
    """Lengths that are the same within 2 % name no step; one that is shorter does."""
    rng = np.random.default_rng(seed)
    answers = np.arange(100) < 50
    flat = {24: 19.0, 36: 20.0, 40: 19.9 + 0.1 * rng.random(), 44: 21.0, 48: 22.0}
    for name, tokens in (("flat", flat), ("sharp", {**flat, 40: 17.0})):
        write_metrics(tmp_path / name, [20.0] * 48)
        write_evals(tmp_path / name, {step: {32: answers} for step in tokens}, tokens=tokens,
                    names={24: "siri-high", 36: "siri-low", 48: "siri-high"})  # fmt: skip
    words = "behind the compressed end"
    one = found(tmp_path / "flat")[1]["turns"]
    assert one.title == f"Responses were shortest 0 to 4 steps {words} (the same within 2 %)"
    assert found(tmp_path / "sharp")[1]["turns"].title == f"Responses were shortest 4 steps {words}"
