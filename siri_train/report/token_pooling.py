"""Token groups of a run pooled over its steps, and whether they move with the cap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from siri_train.statistics.blocks import draw_blocks

Row = Mapping[str, Any]
_Row = TypeVar("_Row", bound=Row)
Floats = NDArray[np.float64]

KEYS = ("all", "right", "wrong")
TOKENS = {"all": "tokens", "right": "tokens_right", "wrong": "tokens_wrong"}
"""The key of a record that holds the tokens of all, right and wrong responses."""

LEAST_BLOCKS = 8
"""Blocks of steps below which no interval is given."""
_DRAWS = 1000


@dataclass(frozen=True)
class Rate:
    """Occurrences of a group in some responses.

    Args:
        count: occurrences; of a mean of runs, as an arm of an ablation is one, a fraction.
        tokens: response tokens.
    """

    count: float
    tokens: float

    @property
    def per_1k(self) -> float | None:
        """Per 1000 tokens; None without tokens."""
        return 1000 * self.count / self.tokens if self.tokens else None


@dataclass(frozen=True)
class Moved:
    """How a figure of a group moves.

    Args:
        value: a correlation, or a difference per 1000 tokens; None where there is none.
        interval: its 95 % interval over blocks of steps; None where there are too few.
    """

    value: float | None
    interval: tuple[float, float] | None = None

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and self.interval[0] * self.interval[1] > 0


@dataclass(frozen=True)
class Moves:
    """How a group moves: with the cap, between the phases, and with the answer.

    Args:
        cap: correlation of its rate in a step with the step's cap.
        falling: the same in the steps of compression, where the cap falls.
        rising: the same in those of expansion. A trend over the whole run has other signs in both.
        phase: its rate in expansion less that in compression.
        right: its rate in right responses less that in wrong ones.
    """

    cap: Moved
    falling: Moved
    rising: Moved
    phase: Moved
    right: Moved

    @property
    def follows(self) -> int:
        """1 if it falls in compression and rises in expansion, -1 the other way round, else 0."""
        signs = {np.sign(one.value or 0) if one.sure else 0 for one in (self.falling, self.rising)}
        return int(signs.pop()) if len(signs) == 1 else 0


def groups_of(rows: Sequence[Row]) -> list[str]:
    """The names of the groups that the records count, in their order."""
    return list(dict.fromkeys(name for row in rows for name in _groups(row)))


def counted(rows: Sequence[_Row]) -> list[_Row]:
    """The records that say how often some group occurred, and in how many tokens."""
    return [
        row for row in rows if any(_numbers(row, "all", name) is not None for name in _groups(row))
    ]


def pool(rows: Sequence[Row], phase: str | None = None) -> dict[str, dict[str, Rate]]:
    """Occurrences over steps, exactly: every step weighs as much as it has tokens.

    Args:
        rows: records of ``metrics.jsonl``; those without counts are left out.
        phase: only the steps of this phase; None: all of them.

    Returns:
        ``{GROUP: {"all": rate, "right": rate, "wrong": rate}}``.
    """
    chosen = [row for row in counted(rows) if phase in (None, row.get("phase"))]
    found = {}
    for name in groups_of(rows):
        found[name] = {key: _pooled(chosen, key, name) for key in KEYS}
    return found


def moves(rows: Sequence[Row], seed: int = 0) -> dict[str, Moves]:
    """How each group moves, with intervals over blocks of neighbouring steps.

    Args:
        rows: records of ``metrics.jsonl`` in the order of their steps.
        seed: of the draws.
    """
    chosen = counted(rows)
    block = block_length(chosen)
    weights = np.ones((1, len(chosen)))
    if len(chosen) >= LEAST_BLOCKS * block:
        weights = np.concatenate([weights, draw_blocks(len(chosen), block, _DRAWS, seed)])
    caps = np.array([_finite(row.get("cap")) for row in chosen], np.float64)
    phases = np.array([str(row.get("phase")) for row in chosen])
    return {name: _moves(chosen, name, caps, phases, weights) for name in groups_of(rows)}


def block_length(rows: Sequence[Row]) -> int:
    """Steps that are drawn together: an eighth of a cycle, at least 5."""
    cycles = {row.get("cycle") for row in rows} - {None}
    return max(5, math.ceil(len(rows) / max(1, len(cycles)) / 8))


def _moves(
    rows: Sequence[Row], name: str, caps: Floats, phases: NDArray[Any], weights: Floats
) -> Moves:
    counts = {}
    tokens = {}
    for key in KEYS:
        pairs = [_numbers(row, key, name) or (0, 0) for row in rows]
        counts[key] = np.array([count for count, _ in pairs], np.float64)
        tokens[key] = np.array([total for _, total in pairs], np.float64)

    def rate(key: str, where: NDArray[Any]) -> Floats:
        return _per_1k(weights @ (counts[key] * where), weights @ (tokens[key] * where))

    everywhere = np.ones(len(rows))
    with np.errstate(divide="ignore", invalid="ignore"):
        each = 1000 * counts["all"] / tokens["all"]
        expanded = rate("all", phases == "expansion")
        return Moves(
            cap=_moved(_correlation(caps, each, weights)),
            falling=_moved(_correlation(caps, each, weights, phases == "compression")),
            rising=_moved(_correlation(caps, each, weights, phases == "expansion")),
            phase=_moved(expanded - rate("all", phases == "compression")),
            right=_moved(rate("right", everywhere) - rate("wrong", everywhere)),
        )


def _per_1k(counts: Floats, tokens: Floats) -> Floats:
    return np.where(tokens > 0, 1000 * counts / tokens, np.nan)


def _correlation(
    x: Floats, y: Floats, weights: Floats, where: NDArray[np.bool_] | bool = True
) -> Floats:
    """Pearson's, with a row of weights each; NaN where one of both does not vary."""
    there = np.isfinite(x) & np.isfinite(y) & where
    if there.sum() < 3 or np.ptp(x[there]) == 0 or np.ptp(y[there]) == 0:
        return np.full(len(weights), np.nan)
    x, y, weights = x[there] - x[there].mean(), y[there] - y[there].mean(), weights[:, there]
    total = weights.sum(axis=1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    together = weights @ (x * y) / total - mean_x * mean_y
    spread = (weights @ x**2 / total - mean_x**2) * (weights @ y**2 / total - mean_y**2)
    return np.where(spread > 0, together / np.sqrt(np.maximum(spread, 0)), np.nan)


def _moved(values: Floats) -> Moved:
    """The first value is that of the run, the others are of draws."""
    value = float(values[0]) if len(values) and np.isfinite(values[0]) else None
    drawn = values[1:][np.isfinite(values[1:])]
    if value is None or len(drawn) < 0.9 * _DRAWS:
        return Moved(value)
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    return Moved(value, (low, high))


def _pooled(rows: Sequence[Row], key: str, name: str) -> Rate:
    pairs = [_numbers(row, key, name) or (0, 0) for row in rows]
    return Rate(sum(count for count, _ in pairs), sum(total for _, total in pairs))


def _numbers(row: Row, key: str, name: str) -> tuple[float, float] | None:
    """(occurrences, tokens) of a group in a record; None where the record does not say.

    Args:
        row: of ``metrics.jsonl``.
        key: all, right or wrong.
        name: of the group.
    """
    tokens, rates = _finite(row.get(TOKENS[key])), _groups(row).get(name)
    if not isinstance(rates, dict) or not tokens >= 0:  # NaN, too
        return None
    rate = _finite(rates.get(key))
    if not math.isfinite(rate):
        return None if tokens else (0, 0)
    count = rate * tokens / 1000
    whole = abs(count - round(count)) < 1e-6 * max(count, 1)
    return (round(count) if whole else count), (int(tokens) if tokens == int(tokens) else tokens)


def _groups(row: Row) -> Row:
    groups = row.get("token_groups")
    return groups if isinstance(groups, dict) else {}


def _finite(value: object) -> float:
    """The value as a number; NaN where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e100:
        return math.nan
    return float(value)
