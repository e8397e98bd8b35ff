"""How strongly one series follows another that moves in cycles, how late, and whether by chance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SURROGATES = 400
"""Random series for the p-value."""
PER_CYCLE = 60
"""Points that a cycle has at most: longer ones are averaged, as the lag need not be finer."""
MEMORIES = (*(k / 20 for k in range(19)), 0.92, 0.94, 0.96, 0.97, 0.98, 0.99, 0.995, 0.999)
"""Memories of the slow noise, step to step, that are tried."""
LEARNING = 8
"""The start of training bends every curve: a decay over a cycle / LEARNING is taken out."""


class Following(NamedTuple):
    """How a series follows another.

    Args:
        lag: how many steps later, from 0 to half a cycle.
        lags: its 95 % interval, of series simulated with this lag and the noise found.
        correlation: at this lag, the largest one, of what is left without trend.
        p_value: chance of at least this correlation, at any lag, if it did not follow.
        cycles: for each whole cycle (correlation, p-value) at this lag; None where the other did
            not move in it.
    """

    lag: int
    lags: tuple[int, int]
    correlation: float
    p_value: float
    cycles: tuple[tuple[float, float] | None, ...]


def follows(
    leader: Floats, series: Floats, cycle: int, surrogates: int = SURROGATES, seed: int = 0
) -> Following | None:
    """The lag at which ``series`` follows ``leader`` best.

    Both lose their trend first: a straight line and a decay at the start, which is learning and no
    answer to the leader. The lag is that of the largest correlation. Its p-value comes from random
    series of the same noise: autocorrelated (AR(1)) plus white, fitted to the series as it is,
    which makes a slow random walk likely where the series is slow. They have a largest correlation
    over the same lags, too. So neither autocorrelation nor few cycles nor the choice of a lag makes
    it look better than it is.

    Args:
        leader: ``[steps]``, finite.
        series: ``[steps]``, NaN where it is not known.
        cycle: steps of a cycle; the arrays begin with one and hold whole ones.
        surrogates: how many random series.
        seed: of them.

    Returns:
        None where one of the two does not move, or too little is known.
    """
    width = max(1, cycle // PER_CYCLE)
    one, two = _binned(leader, width), _binned(series, width)
    known = np.isfinite(two)
    if known.mean() < 0.5 or known.sum() < 12:
        return None
    two = np.where(known, two, np.interp(np.arange(len(two)), np.flatnonzero(known), two[known]))
    period = cycle / width
    windows = [_Window(one, lag, period) for lag in range(int(period // 2) + 1)]
    usable = [window for window in windows if window.moves]
    still = _Window(one, 0, period)
    left = still.without_trend(two[None])[0]
    if not usable or not _moves(two) or not _moves(left):  # a constant has no correlation
        return None
    found = np.array([window.correlation(two[None])[0] for window in usable])
    best = usable[int(found.argmax())]
    correlation = float(found.max())
    rng = np.random.default_rng(seed)
    noise = _Noise(two, one, period)
    drawn = noise.draw(surrogates, len(two), rng)
    highest = np.max([window.correlation(drawn) for window in usable], axis=0)
    p_value = (1 + int((highest >= correlation).sum())) / (1 + surrogates)
    answer = best.slope(two) * np.roll(one, best.lag)
    again = np.array([window.correlation(answer + noise.scale * drawn) for window in usable])
    places = np.array([window.lag for window in usable])[again.argmax(axis=0)]
    low, high = (round(float(at)) for at in np.quantile(places, [0.025, 0.975]))
    cycles = _by_cycle(best, one, two, period, noise, surrogates, rng)
    lags = (min(low, best.lag) * width, max(high, best.lag) * width)
    return Following(best.lag * width, lags, correlation, p_value, cycles)


class _Window:
    """The leader against a series that is ``lag`` later, without trend."""

    def __init__(self, leader: Floats, lag: int, period: float) -> None:
        self.lag = lag
        times = np.arange(lag, len(leader))
        self.basis = _orthonormal(np.stack(_trend(times, len(leader), period), axis=1))
        given = leader[: len(leader) - lag]
        self.leader = given - self.basis @ (self.basis.T @ given)
        self.norm = float(np.linalg.norm(self.leader))
        self.moves = self.norm > 1e-6 * (1 + float(np.abs(given).max(initial=0.0)))

    def without_trend(self, series: Floats) -> Floats:
        """``[some, steps]`` to ``[some, steps - lag]``."""
        given = series[:, self.lag :]
        rest: Floats = given - (given @ self.basis) @ self.basis.T
        return rest

    def correlation(self, series: Floats) -> Floats:
        """Correlations of ``[some, steps]`` with the leader, one each."""
        rest = self.without_trend(series)
        norms = np.linalg.norm(rest, axis=1) * self.norm
        return np.divide(rest @ self.leader, norms, out=np.zeros(len(rest)), where=norms > 0)

    def slope(self, series: Floats) -> float:
        """How much the series moves when the leader moves by 1."""
        return float(self.without_trend(series[None])[0] @ self.leader) / self.norm**2


def _by_cycle(
    best: _Window,
    leader: Floats,
    series: Floats,
    period: float,
    noise: _Noise,
    surrogates: int,
    rng: np.random.Generator,
) -> tuple[tuple[float, float] | None, ...]:
    """Correlation and p-value in each cycle."""
    rest = best.without_trend(series[None])[0]
    drawn = noise.draw(surrogates, len(series), rng)
    clean = np.concatenate([np.full(best.lag, np.nan), rest])
    shifted = np.concatenate([np.full(best.lag, np.nan), best.leader])
    found: list[tuple[float, float] | None] = []
    count = round(len(leader) / period)
    for number in range(count):
        # a cycle of the series begins when it answers to the leader's
        first, last = round(number * period) + best.lag, round((number + 1) * period) + best.lag
        part = slice(first, min(last, len(series)))
        x = shifted[part]
        if len(x) < 4 or not np.isfinite(x).all() or not _moves(x):
            found.append(None)
            continue
        value = float(_plain(x, clean[None, part])[0])
        by_chance = _plain(x, drawn[:, part])
        found.append((value, (1 + int((by_chance >= value).sum())) / (1 + surrogates)))
    return tuple(found)


def _plain(one: Floats, many: Floats) -> Floats:
    """Correlations of ``[steps]`` with each of ``[some, steps]``."""
    one, many = one - one.mean(), many - many.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(one) * np.linalg.norm(many, axis=1)
    return np.divide(many @ one, norms, out=np.zeros(len(many)), where=norms > 0)


class _Noise:
    """Random series with the autocorrelation of one: AR(1) plus white noise.

    Taking a trend out shortens the memory that a series seems to have. So each memory's expected
    autocorrelation is computed behind the same trend, and that is fitted. Doubt counts for a long
    memory, with which chance looks most like a cycle.
    """

    def __init__(self, series: Floats, leader: Floats, period: float) -> None:
        steps = len(series)
        reach = max(3, min(steps // 3, 40))
        # what could answer to the leader, at any lag, tells nothing of the noise
        answers = [np.roll(leader, round(part * period / 4)) for part in range(4)]
        basis = _orthonormal(np.stack([*_trend(np.arange(steps), steps, period), *answers], axis=1))
        like = series - basis @ (basis.T @ series)
        seen = _autocovariance(like, reach)
        self.scale = float(seen[0]) ** 0.5
        seen = seen / (seen[0] or 1.0)
        distance = np.abs(np.subtract.outer(np.arange(steps), np.arange(steps)))
        flat = _expected(np.eye(steps), basis, reach)
        fits = []
        for memory in MEMORIES:
            slow = _expected(memory**distance, basis, reach)
            parts, error = _two_parts(slow, flat, seen)
            fits.append((float(error), memory, parts))
        least = min(fit[0] for fit in fits)
        _, self.memory, self.parts = max(
            (fit for fit in fits if fit[0] <= 1.05 * least), key=lambda fit: fit[1]
        )

    def draw(self, count: int, steps: int, rng: np.random.Generator) -> Floats:
        """``[count, steps]``."""
        slow = np.empty((count, steps))
        slow[:, 0] = rng.standard_normal(count)
        fresh = rng.standard_normal((count, steps)) * (1 - self.memory**2) ** 0.5
        for step in range(1, steps):
            slow[:, step] = self.memory * slow[:, step - 1] + fresh[:, step]
        noise: Floats = self.parts[0] ** 0.5 * slow
        noise += self.parts[1] ** 0.5 * rng.standard_normal((count, steps))
        return noise


def _two_parts(one: Floats, two: Floats, target: Floats) -> tuple[tuple[float, float], float]:
    """The amounts of two curves, none negative, whose sum is nearest; and the squared error."""
    tried = [(max(float(one @ target) / float(one @ one), 0.0), 0.0),
             (0.0, max(float(two @ target) / float(two @ two), 0.0))]  # fmt: skip
    both = np.linalg.lstsq(np.stack([one, two], axis=1), target, rcond=None)[0]
    if both.min() >= 0:
        tried.append((float(both[0]), float(both[1])))
    errors = [float(((a * one + b * two - target) ** 2).sum()) for a, b in tried]
    least = int(np.argmin(errors))
    return tried[least], errors[least]


def _trend(times: NDArray[np.int64], steps: int, period: float) -> list[Floats]:
    """A constant, a straight line, and a decay at the start."""
    return [np.ones(len(times)), times / steps, np.exp(-LEARNING * times / period)]


def _orthonormal(columns: Floats) -> Floats:
    """A basis of the columns, also where some depend on others."""
    left, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    basis: Floats = left[:, sizes > 1e-9 * sizes[0]]
    return basis


def _autocovariance(values: Floats, reach: int) -> Floats:
    return np.array([float(values[k:] @ values[: len(values) - k]) for k in range(reach + 1)])


def _expected(covariance: Floats, basis: Floats, reach: int) -> Floats:
    """The expected autocovariance of noise behind the trend."""
    rest = covariance - basis @ (basis.T @ covariance)
    rest = rest - (rest @ basis) @ basis.T
    return np.array([float(np.trace(rest, k)) for k in range(reach + 1)])


def _binned(values: Floats, width: int) -> Floats:
    """Means over ``width`` steps; NaN where none is known."""
    rows = np.full(-(-len(values) // width) * width, np.nan)
    rows[: len(values)] = values
    table = rows.reshape(-1, width)
    known = np.isfinite(table)
    sums = np.where(known, table, 0.0).sum(axis=1)
    return np.divide(sums, known.sum(axis=1), out=np.full(len(table), np.nan),
                     where=known.any(axis=1))  # fmt: skip


def _moves(values: Floats) -> bool:
    return float(np.ptp(values)) > 1e-9 * (1 + float(np.abs(values).max()))
