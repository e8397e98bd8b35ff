"""Intervals over questions and pass@k, against independent computations and by hand."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import combinations, product
from math import comb

import numpy as np
import pytest

from siri_train.statistics.intervals import (
    bootstrap,
    mean,
    share_interval,
    share_intervals,
    wilson,
)
from siri_train.statistics.pass_at_k import doubled, mean_pass_at, pass_at_k
from siri_train.statistics.resample import draw_questions, drawn_means


def drawn_seed() -> int:
    return random.SystemRandom().randrange(2**32)


def test_bootstrap_of_a_mean_is_near_all_possible_draws() -> None:
    """Four questions have 256 draws, which can be listed."""
    values = [0.0, 0.25, 0.5, 1.0]
    everything = np.array([np.mean(draw) for draw in product(values, repeat=4)])
    low, high = np.quantile(everything, [0.05, 0.95])
    seed = drawn_seed()
    found = bootstrap(values, draws=40_000, level=0.9, seed=seed)
    assert found == pytest.approx((low, high), abs=0.0626), seed  # one step of the sum, 1/16


def test_bootstrap_against_a_plain_loop() -> None:
    seed = drawn_seed()
    rng = np.random.default_rng(seed)
    values = rng.exponential(size=150)
    loop = [rng.choice(values, len(values)).mean() for _ in range(8000)]
    found = bootstrap(values, draws=8000, seed=seed)
    # Two estimates of a quantile from 8000 draws each: the standard error is 3 % of the spread.
    assert found == pytest.approx(np.quantile(loop, [0.025, 0.975]), abs=0.2 * np.std(loop)), seed
    median = bootstrap(values, lambda drawn: np.median(drawn, axis=0), draws=500, seed=seed)
    assert median.low <= np.median(values) <= median.high and median.low < median.high, seed
    # The loop over draws and the product of counts are the same draws.
    slow = bootstrap(values, lambda drawn: drawn.mean(), draws=500, seed=seed)
    assert slow == pytest.approx(bootstrap(values, draws=500, seed=seed), rel=1e-12), seed


def test_draws_are_the_same_for_the_same_seed_and_in_any_portions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = np.concatenate(list(draw_questions(7, 50, 3)))
    assert whole.shape == (50, 7) and (whole.sum(axis=1) == 7).all()
    monkeypatch.setattr("siri_train.statistics.resample._AT_ONCE", 40)
    portions = list(draw_questions(7, 50, 3))
    assert len(portions) == 10 and (np.concatenate(portions) == whole).all()
    assert (np.concatenate(list(draw_questions(7, 50, 4))) != whole).any()
    means = drawn_means([[float(q), 1.0] for q in range(7)], 50, 3)
    assert means == pytest.approx(np.stack([whole @ np.arange(7) / 7, np.ones(50)], axis=1))


@pytest.mark.parametrize(("n", "p", "samples"), [(30, 0.1, 1), (120, 0.97, 1), (60, 0.5, 4)])
def test_a_share_interval_covers_the_true_share(n: int, p: float, samples: int) -> None:
    """Questions differ, and each has ``samples`` answers."""
    seed = drawn_seed()
    rng = np.random.default_rng(seed)
    hits, trials = 0, 300
    for _ in range(trials):
        hard = rng.beta(4 * p, 4 * (1 - p), size=n) if samples > 1 else np.full(n, p)
        shares = rng.binomial(samples, hard) / samples
        low, high = share_interval(shares.tolist(), draws=400)
        hits += low <= p <= high
    assert 0.90 <= hits / trials, (hits, seed)  # 0.95 less four standard errors


def test_a_share_interval_is_never_empty_and_never_leaves_0_to_1() -> None:
    for n in (1, 2, 10, 500):
        for share in (0.0, 0.5, 1.0):
            low, high = share_interval([share] * n)
            assert 0 <= low < high <= 1 and low <= share <= high, (n, share)
    assert share_interval([1.0] * 50) == pytest.approx((50 / (50 + 1.96**2), 1), abs=1e-4)
    assert share_interval([0.0] * 50) == pytest.approx((0, 1.96**2 / (50 + 1.96**2)), abs=1e-4)
    assert share_interval([0.5])[1] > 0.9  # one question, however many samples
    # Less spread between questions, a narrower interval.
    one, two = share_interval([1.0, 0.0] * 50), share_interval([0.6, 0.4] * 50)
    assert two.high - two.low < one.high - one.low


def test_a_share_interval_is_the_farther_of_bootstrap_and_wilson() -> None:
    seed = drawn_seed()
    rng = np.random.default_rng(seed)
    shares = rng.integers(0, 5, size=(200, 3)) / 4
    for column, found in zip(shares.T, share_intervals(shares, seed=5), strict=True):
        drawn, score = bootstrap(column, seed=5), wilson(column.tolist())
        low, high = min(drawn.low, score.low), max(drawn.high, score.high)
        assert found == pytest.approx((low, high)), seed
        assert drawn == pytest.approx(score, abs=0.01), seed  # of 200 questions they agree


def test_wilson_by_its_definition() -> None:
    """Its bounds are the shares p0 whose score statistic is the quantile."""
    shares = [1.0] * 13 + [0.0] * 27
    for bound in wilson(shares):
        statistic = (13 / 40 - bound) / (bound * (1 - bound) / 40) ** 0.5
        assert abs(statistic) == pytest.approx(1.959964, abs=1e-5)
    assert wilson(shares, 0.5).low > wilson(shares).low


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        ([], {}, "none of them empty"),
        ([[1.0]], {}, "takes 1 axis,"),
        ([1.0, float("nan")], {}, "not finite"),
        ([1.0, 2.0], {"level": 95}, "takes a share between 0 and 1"),
        ([1.0, 2.0], {"draws": 0}, "takes at least 1 of each"),
        (["a"], {}, "takes rows of numbers"),
    ],
)
def test_what_the_bootstrap_refuses(values: list, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        bootstrap(values, mean, **options)


def test_shares_outside_0_to_1_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 0 to 1"):
        share_interval([0.5, 80.0])


def test_pass_at_k_against_all_choices() -> None:
    for n in range(1, 7):
        for c in range(n + 1):
            answers = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                chosen = [any(choice) for choice in combinations(answers, k)]
                assert pass_at_k(n, c, k) == pytest.approx(sum(chosen) / len(chosen), abs=1e-12)


def test_pass_at_k_of_many_samples_against_fractions() -> None:
    seed = drawn_seed()
    rng = random.Random(seed)
    for _ in range(20):
        n = rng.randrange(1, 400)
        c, k = rng.randrange(n + 1), rng.randrange(1, n + 1)
        wrong = Fraction(1)
        for i in range(k):
            wrong *= Fraction(max(n - c - i, 0), n - i)
        assert pass_at_k(n, c, k) == pytest.approx(float(1 - wrong), abs=1e-12), (n, c, k, seed)


def test_pass_at_k_is_unbiased() -> None:
    """The mean over binomial counts is 1 - (1-p)^k."""
    n, p = 9, 0.3
    weights = [Fraction(3, 10) ** c * Fraction(7, 10) ** (n - c) for c in range(n + 1)]
    for k in (1, 2, 5, 9):
        chances = [float(w) * len(list(combinations(range(n), c))) for c, w in enumerate(weights)]
        expected = sum(w * pass_at_k(n, c, k) for c, w in enumerate(chances))
        assert expected == pytest.approx(1 - (1 - p) ** k)


def test_means_of_pass_at_k_over_questions() -> None:
    right, ks = [0, 1, 4, 4, 2], list(doubled(4))
    assert ks == [1, 2, 4] and list(doubled(1)) == [1] and list(doubled(6)) == [1, 2, 4, 6]
    expected = [sum(pass_at_k(4, c, k) for c in right) / 5 for k in ks]
    assert mean_pass_at(4, right, ks) == pytest.approx(expected)
    assert mean_pass_at(4, right, ks)[0] == pytest.approx(11 / 20)  # pass@1 is the accuracy
    assert mean_pass_at(4, right, ks)[-1] == pytest.approx(4 / 5)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_what_pass_at_k_refuses(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="takes c from 0 to n and k from 1 to n"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize("n", [1, 2, 64, 1024])
def test_pass_at_every_k_equals_exact_fractions(n: int) -> None:
    """With drawn counts, for every k up to n: no binomial overflows or cancels."""
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    right = [0, n, *(rng.randrange(n + 1) for _ in range(4))]
    ks = range(1, n + 1)
    found = mean_pass_at(n, right, ks)
    wrong = {c: Fraction(1) for c in right}
    for k, value in zip(ks, found, strict=True):
        for c in wrong:  # after k - 1 wrong answers the next is wrong with this chance
            wrong[c] *= Fraction(max(n - c - k + 1, 0), n - k + 1)
        if k in (1, 2, n // 2, n - 1, n) or rng.random() < 0.1:
            exact = 1 - sum(wrong[c] for c in right) / len(right)
            assert value == pytest.approx(float(exact), rel=1e-12, abs=1e-14), (n, k, seed)
            direct = [1 - Fraction(comb(n - c, k), comb(n, k)) for c in right]
            assert sum(direct) / len(right) == exact
