"""The shares of false verdicts and of intervals that cover, as docs/evaluation.md has them."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest

from siri_train.statistics.intervals import bootstrap, share_interval
from siri_train.statistics.paired import paired_test, verdict

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
TRIALS = 400


def table(head: str) -> list[list[float]]:
    """The numbers of the page's table whose first column has this heading."""
    (body,) = re.findall(rf"^\| {head} \|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", PAGE, re.M)
    return [[float(n) for n in re.findall(r"[\d.]+", line)] for line in body.splitlines()]


FALSE = {
    (int(runs), luck): share / 100
    for runs, *shares in table("runs of each")
    for luck, share in zip((0.0, 0.03, 0.1), shares, strict=True)
}
COVERED = {(int(n), p / 100): (both / 100, alone / 100) for n, p, both, alone in table("questions")}


def near(found: int, share: float) -> bool:
    """Four standard errors of both simulations, and a count that is only there by chance."""
    error = (share * (1 - share) * (1 / TRIALS + 1 / 1000)) ** 0.5
    return abs(found / TRIALS - share) <= 4 * error + 3 / TRIALS


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "luck"), FALSE)
def test_false_verdicts_of_equal_methods(runs: int, luck: float) -> None:
    """Questions differ in difficulty; a run adds its own luck to each of them."""
    seed = random.SystemRandom().randrange(2**32)
    rng = np.random.default_rng(seed)
    called = 0
    for _ in range(TRIALS):
        hard = rng.uniform(size=100)
        a, b = (
            rng.binomial(4, np.clip(hard + luck * rng.normal(size=(runs, 1)), 0, 1)) / 4
            for _ in range(2)
        )
        called += verdict(paired_test(a, b, draws=1000, flips=1000)) != "no difference shown"
    assert near(called, FALSE[runs, luck]), (called / TRIALS, seed)


@pytest.mark.slow
@pytest.mark.parametrize(("questions", "share"), COVERED)
def test_intervals_that_cover(questions: int, share: float) -> None:
    seed = random.SystemRandom().randrange(2**32)
    rng = np.random.default_rng(seed)
    both = alone = 0
    for _ in range(TRIALS):
        right = (rng.random(questions) < share).astype(float)
        low, high = share_interval(right.tolist(), draws=1000)
        both += low <= share <= high
        low, high = bootstrap(right, draws=1000)
        alone += low <= share <= high
    wanted = COVERED[questions, share]
    assert near(both, wanted[0]) and near(alone, wanted[1]), (both, alone, seed)
