"""Paired tests of methods on the same questions: p-values, intervals, verdicts."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest

from siri_train.statistics.paired import Paired, paired_test, sign_flips, verdict


def drawn_seed() -> int:
    return random.SystemRandom().randrange(2**32)


def all_flips(differences: list[float]) -> float:
    """The p-value by its definition."""
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(s >= abs(sum(differences)) - 1e-9 for s in sums) / len(sums)


def test_sign_flips_against_all_choices_of_signs() -> None:
    seed = drawn_seed()
    rng = random.Random(seed)
    for n in (1, 2, 5, 9):
        differences = [rng.randrange(-4, 6) / 4 for _ in range(n)]
        exact = all_flips(differences)
        assert sign_flips(differences) == pytest.approx(exact), (differences, seed)
        many = [*differences, *[0.0] * 7]
        assert sign_flips(many) == pytest.approx(exact), "questions without a difference"


def test_drawn_signs_come_near_all_choices() -> None:
    seed = drawn_seed()
    differences = np.random.default_rng(seed).normal(0.3, 1, size=12).tolist()
    exact = all_flips(differences)
    assert sign_flips(differences, flips=4000, seed=seed) == pytest.approx(exact, abs=0.04), seed


def test_sign_flips_by_hand() -> None:
    assert sign_flips([1.0] * 5) == 2 / 32  # five questions cannot give less
    assert sign_flips([0.0] * 5) == 1.0
    assert sign_flips([0.1 + 0.2, -0.3]) == 1.0  # equal but for rounding
    assert sign_flips([1.0] * 100) == 1 / 10_001


def test_an_equal_method_is_rarely_called_higher_or_lower() -> None:
    """10 of 200 tests are expected to; 25 would be five standard errors more."""
    seed = drawn_seed()
    rng = np.random.default_rng(seed)
    called, covered = 0, 0
    for _ in range(200):
        hard = rng.uniform(size=60)
        a, b = (rng.binomial(4, hard) / 4 for _ in range(2))
        found = paired_test(a, b, draws=400, flips=400)
        called += verdict(found) != "no difference shown"
        covered += found.low <= 0 <= found.high
    assert called <= 25 and covered >= 175, (called, covered, seed)


def test_runs_that_differ_more_than_methods_give_no_verdict() -> None:
    """Every question says that a is better, but so does the luck of three runs each."""
    seed = drawn_seed()
    rng = np.random.default_rng(seed)
    called = alone = 0
    for _ in range(200):
        luck = rng.normal(0, 0.1, size=(2, 3))
        a, b = (0.5 + luck[m][:, None] + rng.normal(0, 0.05, size=(3, 40)) for m in range(2))
        called += verdict(paired_test(a, b, draws=400, flips=400)) != "no difference shown"
        one = paired_test(a[0], b[0], draws=400, flips=400)
        alone += verdict(one) != "no difference shown"
    # Expected: 10 at most of 200; with one run each the luck of the run is taken for the method.
    assert called <= 25 < alone, (called, alone, seed)


def test_a_difference_is_found_and_has_a_sign() -> None:
    rng = np.random.default_rng(drawn_seed())
    hard = rng.uniform(0, 0.7, size=200)
    a, b = np.minimum(hard + 0.2, 1), hard + rng.normal(0, 0.05, size=200)
    up, down = paired_test(a, b), paired_test(b, a)
    assert verdict(up) == "higher" and verdict(down) == "lower"
    assert up.difference == pytest.approx(float((a - b).mean())) and up.questions == 200
    assert (down.low, down.high) == pytest.approx((-up.high, -up.low), abs=1e-9)
    assert verdict(paired_test(a, a)) == "no difference shown"
    assert paired_test(a, a)[:4] == (0, 0, 0, 1)


def test_the_interval_of_one_pair_of_runs_is_the_bootstrap_of_differences() -> None:
    seed = drawn_seed()
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 5, size=(2, 80)) / 4
    loop = [np.mean(rng.choice(a - b, 80)) for _ in range(8000)]
    found = paired_test(a, b, draws=8000, seed=seed)
    wanted = np.quantile(loop, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(wanted, abs=0.2 * np.std(loop)), seed
    assert found.seeds == 1


def test_the_part_of_the_runs_is_students_interval() -> None:
    """Questions that do not differ leave only the spread between runs, as in a t-test."""
    seed = drawn_seed()
    means_a, means_b = [0.5, 0.6, 0.7], [0.3, 0.5]
    a, b = (np.repeat(np.array(m)[:, None], 30, axis=1) for m in (means_a, means_b))
    found = paired_test(a, b, draws=200_000, seed=seed)
    pooled = (0.02 + 0.02) / 3  # sums of squares 0.02 and 0.02, 3 degrees of freedom
    half = 3.182446 * (pooled * (1 / 3 + 1 / 2)) ** 0.5  # t of 97.5 %
    assert found.difference == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.2 - half, 0.2 + half), rel=0.05), seed
    assert found.seeds == 2 and found.p_value < 1e-3
    assert verdict(found) == "no difference shown"  # the questions agree, the runs do not


def test_a_verdict_needs_both() -> None:
    fine = Paired(0.1, 0.05, 0.15, 0.01, 100, 1)
    assert verdict(fine) == "higher" and verdict(fine, alpha=0.01) == "no difference shown"
    assert verdict(fine._replace(low=-0.01)) == "no difference shown"
    assert verdict(Paired(-0.1, -0.15, -0.05, 0.01, 100, 1)) == "lower"
    few = paired_test([1.0] * 5, [0.0] * 5)  # an interval from 1 to 1, and p 0.06
    assert (few.low, few.high) == (1, 1) and verdict(few) == "no difference shown"


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ([1.0, 2.0], [1.0], "takes the same questions"),
        ([[1.0, 2.0], [1.0]], [1.0, 2.0], "a: .*rows of numbers of one length"),
        ([1.0], [float("nan")], "b: got a value that is not finite"),
        ([], [], "a: got the shape"),
    ],
)
def test_what_a_paired_test_refuses(a: list, b: list, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        paired_test(a, b)


def test_rounding_is_no_difference() -> None:
    """The mean of three equal runs is not always their value to the last digit."""
    seed = drawn_seed()
    draw = random.Random(seed)
    samples = draw.choice([10, 20, 64])
    one = [draw.randint(0, samples) / samples for _ in range(200)]
    runs = draw.choice([3, 6, 7])
    for a, b in (([one] * runs, one), (one, [one] * runs), ([[0.1] * 50] * 3, [0.1] * 50)):
        found = paired_test(a, b)
        assert (found.difference, found.p_value) == (0.0, 1.0), seed
        assert found.low <= 0.0 <= found.high, seed
        assert verdict(found) == "no difference shown", seed
