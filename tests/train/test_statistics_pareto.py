"""Fronts and hypervolumes against grids and definitions; the paper's ratio on its Table 1."""

from __future__ import annotations

import random

import numpy as np
import pytest

from siri_train.statistics.compression import (
    Result,
    accuracy_per_length,
    compression_rate,
    delta_accuracy,
)
from siri_train.statistics.pareto import front, hypervolume, hypervolume_interval

Points = list[tuple[float, float]]


def drawn_seed() -> int:
    return random.SystemRandom().randrange(2**32)


def dominated(points: Points, i: int) -> bool:
    tokens, accuracy = points[i]
    return any(t <= tokens and a >= accuracy and (t < tokens or a > accuracy) for t, a in points)


def test_front_by_hand() -> None:
    points = [(100, 0.5), (80, 0.5), (80, 0.4), (120, 0.7), (200, 0.7), (60, 0.1)]
    assert front(points) == [1, 3, 5]
    assert front([(1, 0.5)]) == [0] and front([]) == []
    assert front([(2, 0.5), (1, 0.5), (2, 0.5)]) == [1]
    assert front([(1, 0.5), (1, 0.5), (1, 0.4)]) == [0, 1]  # equal ones do not dominate each other


def test_front_against_its_definition() -> None:
    seed = drawn_seed()
    rng = random.Random(seed)
    for _ in range(100):
        count = rng.randrange(1, 12)
        # Few values, so that there are ties in either.
        points = [(rng.randrange(5) * 1.0, rng.randrange(5) / 4) for _ in range(count)]
        expected = [i for i in range(count) if not dominated(points, i)]
        assert front(points) == expected, (points, seed)


def test_hypervolume_by_hand() -> None:
    assert hypervolume([(60, 0.5)], (100, 0.0)) == pytest.approx(20)
    assert hypervolume([(60, 0.5), (20, 0.1)], (100, 0.0)) == pytest.approx(20 + 4)
    assert hypervolume([(60, 0.5), (80, 0.4)], (100, 0.0)) == pytest.approx(20)
    assert hypervolume([(60, 0.5)], (100, 0.2)) == pytest.approx(12)
    assert hypervolume([(160, 0.9), (50, 0.1)], (100, 0.2)) == 0
    assert hypervolume([(0, 1.0)], (100, 0.0)) == 100 and hypervolume([], (100, 0)) == 0


def test_hypervolume_against_a_fine_grid() -> None:
    seed = drawn_seed()
    rng = np.random.default_rng(seed)
    xs, ys = (np.arange(400) + 0.5) / 400 * 120, (np.arange(400) + 0.5) / 400
    for _ in range(10):
        points = [
            (float(t), float(a)) for t, a in zip(rng.uniform(0, 140, 6), rng.random(6), strict=True)
        ]
        most, least = rng.uniform(80, 120), rng.uniform(0, 0.3)
        inside = np.zeros((400, 400), dtype=bool)
        for t, a in points:
            inside |= (xs[:, None] >= t) & (ys[None, :] <= a)
        inside &= (xs[:, None] <= most) & (ys[None, :] >= least)
        area = inside.mean() * 120
        # Edges are at most two sides long: one row and one column of cells.
        found = hypervolume(points, (most, least))
        assert found == pytest.approx(area, abs=2 * 120 / 400), (points, most, least, seed)


def test_the_interval_draws_questions_for_all_checkpoints_together() -> None:
    seed = drawn_seed()
    rng = np.random.default_rng(seed)
    tokens, accuracy = rng.uniform(10, 90, (4, 50)), rng.integers(0, 2, (4, 50)) / 1.0
    loop = []
    for _ in range(1500):
        drawn = rng.integers(0, 50, 50)
        points = list(zip(tokens[:, drawn].mean(1), accuracy[:, drawn].mean(1), strict=True))
        loop.append(hypervolume(points, (100, 0.1)))
    found = hypervolume_interval(tokens, accuracy, (100, 0.1), draws=4000, seed=seed)
    wanted = np.quantile(loop, [0.025, 0.975])
    assert found == pytest.approx(wanted, abs=0.35 * np.std(loop)), seed
    # One checkpoint whose length does not vary: the interval of its accuracy, times a width.
    one = hypervolume_interval(np.full((1, 50), 60.0), accuracy[:1], (100, 0.0), seed=seed)
    two = hypervolume_interval(np.full((1, 50), 80.0), accuracy[:1], (100, 0.0), seed=seed)
    assert one == pytest.approx((2 * two.low, 2 * two.high)), seed
    with pytest.raises(ValueError, match="in both"):
        hypervolume_interval(tokens, accuracy[:, :49], (100, 0.0))


TABLE_1 = {
    "original": [(28.2, 12333), (21.5, 12264), (61.8, 8449), (82.4, 4745)],
    "deepscaler": [(41.1, 8585), (29.0, 8348), (73.9, 5515), (87.6, 3054)],
    "dapo": [(42.8, 10453), (30.9, 10352), (74.6, 7339), (88.1, 4223)],
    "siri-low": [(40.4, 7093), (29.6, 6509), (74.6, 4700), (87.7, 2881)],
    "siri-high": [(43.6, 10049), (32.2, 9739), (75.9, 7396), (88.4, 4633)],
}
"""Table 1 of arXiv 2509.25176, 1.5B: accuracy and tokens on AIME24, AIME25, AMC, MATH500."""


@pytest.mark.parametrize(
    ("model", "printed", "means", "ratios"),
    [
        ("siri-low", 0.47, 0.476, 0.485),
        ("siri-high", 0.38, 0.389, 0.408),
        ("deepscaler", 0.39, 0.398, 0.392),
        ("dapo", 0.36, 0.357, 0.361),
        ("original", 0.0, 0.0, 0.0),
    ],
)
def test_the_papers_ratio_on_its_table(
    model: str, printed: float, means: float, ratios: float
) -> None:
    sets, start = ([Result(a / 100, t) for a, t in TABLE_1[name]] for name in (model, "original"))
    found = accuracy_per_length(sets, start)
    assert found == pytest.approx(means, abs=6e-4) and found == pytest.approx(printed, abs=0.01)
    assert accuracy_per_length(sets, start, of="ratios") == pytest.approx(ratios, abs=6e-4)


def test_parts_of_the_ratio() -> None:
    assert delta_accuracy(0.404, 0.282) == pytest.approx(0.4326, abs=1e-4)  # 43 % are relative
    assert delta_accuracy(0.2, 0.3) == 0
    assert 1 - compression_rate(6509, 12264) == pytest.approx(0.4693, abs=1e-4)
    assert 1 - compression_rate(7093, 12333) == pytest.approx(0.4249, abs=1e-4)


def test_a_ratio_that_does_not_exist() -> None:
    fine, nothing, silent = Result(0.5, 10), Result(0.0, 10), Result(0.5, 0)
    assert accuracy_per_length([fine], [nothing]) is None
    assert accuracy_per_length([fine], [silent]) is None
    assert accuracy_per_length([silent], [fine]) is None
    assert accuracy_per_length([nothing], [fine]) == 0
    with pytest.raises(ValueError, match="takes the same ones"):
        accuracy_per_length([fine], [fine, fine])
