"""Figures of an ablation's rows: intervals over questions and seeds, Holm's correction."""

from __future__ import annotations

import random

import pytest

from siri_train.ablate.compare import (
    Row,
    Spread,
    between_seeds,
    figure_interval,
    holm,
    set_figures,
)
from siri_train.ablate.figures import Scores


def test_holm_is_closed_testing_with_bonferroni() -> None:
    """A hypothesis is rejected if every set of hypotheses with it is, each by Bonferroni."""
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    for _ in range(50):
        p_values = [draw.choice([draw.random(), draw.random() / 20]) for _ in range(5)]
        adjusted = [
            max(
                min(1.0, size * min(p_values[i] for i in range(5) if chosen >> i & 1))
                for chosen in range(32)
                if chosen >> place & 1
                for size in [bin(chosen).count("1")]
            )
            for place in range(5)
        ]
        assert holm(p_values) == pytest.approx(adjusted), seed
    assert holm([]) == []


def test_intervals_are_wider_where_seeds_differ() -> None:
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    one = [float(draw.random() < 0.5) for _ in range(200)]
    alone = figure_interval([one], between_seeds([[one]]))
    assert alone == figure_interval([one, one], Spread(0.0, 3)), seed
    apart = [one, [0.0] * 200, [1.0] * 200]
    spread = between_seeds([apart, [one, one], [one]])
    means = [sum(values) / 200 for values in apart]
    middle = sum(means) / 3
    assert spread.degrees == 3
    assert spread.variance == pytest.approx(sum((m - middle) ** 2 for m in means) / 3), seed
    low, high = figure_interval([one], spread)
    # Student's t with 3 degrees of freedom: 3.18 at 97.5 %.
    assert (high - low) / 2 == pytest.approx(3.18 * spread.variance**0.5, rel=0.25), seed
    low, high = figure_interval([one], spread, share=True)
    assert 0 <= low < alone.low and 1 >= high > alone.high, seed
    assert figure_interval([[1.0] * 50], Spread(0.0, 0), share=True).low < 1.0


def row_of(arm: str, checkpoint: str, runs: list[list[float]]) -> Row:
    found = {
        seed: Scores(4, "", [8], [values], [10 * value for value in values], 0, 0.0)
        for seed, values in enumerate(runs)
    }
    return Row(arm, "", checkpoint, found)


def test_checkpoints_of_the_same_runs_say_no_more_about_the_spread() -> None:
    """Two rows of an arm, an arm with the runs of another, and the start before any training."""
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    apart = [[float(draw.random() < share) for _ in range(100)] for share in (0.3, 0.7)]
    tests = {
        "one": [row_of("a", "siri-low", apart)],
        "two rows": [row_of("a", "siri-low", apart), row_of("a", "siri-high", apart)],
        "same runs": [row_of("a", "last", apart), row_of("b", "last", apart)],
        "start": [row_of("a", "last", apart), row_of("a", "start", [apart[0], apart[0]])],
    }
    for case in tests.values():
        set_figures(case)
    alone = tests["one"][0]
    assert alone.intervals[0] == (0.0, 1.0), "one degree of freedom: 12.7 standard errors"
    for name, case in tests.items():
        assert case[0].intervals == alone.intervals, (name, seed)
        assert case[0].tokens_interval == alone.tokens_interval, (name, seed)
    start = tests["start"][1]
    assert start.intervals[0].high - start.intervals[0].low < 0.3, seed
    other = [[1.0 - value for value in values] for values in apart]
    four = [row_of("a", "last", apart), row_of("b", "last", other)]
    set_figures(four)
    assert four[0].tokens_interval.high < alone.tokens_interval.high, seed
