"""Groups of words in responses: how often, by phase of the schedule and by correctness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .data import Row, Run, RunFolder, number
from .scale import Point

KINDS = ("all", "right", "wrong")
TOKENS = {"all": "tokens", "right": "tokens_right", "wrong": "tokens_wrong"}
"""The key of a record that holds the tokens of each kind of responses."""
PHASES = ("compression", "expansion", "constant")
MOST_GROUPS = 12
OLD = "backtrack"
"""The group that ``backtrack_per_1k`` counts: all that records of older versions have."""


class Rate(NamedTuple):
    """A group's rate over several steps.

    Args:
        mean: per 1000 response tokens.
        steps: that have a value.
    """

    mean: float
    steps: int


def group_names(folder: RunFolder) -> list[str]:
    """The groups of all runs, by first appearance; of old runs only the one that they counted.

    Args:
        folder: as it was read.
    """
    names: dict[str, None] = {}
    for run in folder.runs:
        for row in run.metrics:
            names |= dict.fromkeys(map(str, _groups(row)))
        if not any(_groups(row) for row in run.metrics):
            if any(number(row.get("backtrack_per_1k")) is not None for row in run.metrics):
                names[OLD] = None
    return list(names)[:MOST_GROUPS]


def rate(row: Row, group: str, kind: str) -> float | None:
    """Occurrences of a group per 1000 tokens of a step's responses; None where it is not known.

    Args:
        row: of ``metrics.jsonl``, whatever a damaged one holds.
        group: see `group_names`.
        kind: of responses: ``all``, ``right`` or ``wrong``.
    """
    groups = _groups(row)
    if not groups:
        return number(row.get("backtrack_per_1k")) if (group, kind) == (OLD, "all") else None
    found = groups.get(group)
    return number(found.get(kind)) if isinstance(found, dict) else None


def over_steps(rows: Sequence[Row], group: str, kind: str) -> list[Point]:
    """(step, rate) of one run.

    Args:
        rows: of ``metrics.jsonl``, by step.
        group: see `group_names`.
        kind: see `rate`.
    """
    return [(float(row["step"]), rate(row, group, kind)) for row in rows]


def by_phase(run: Run, group: str) -> dict[tuple[str, str], Rate]:
    """A group's rate over the steps of each phase that has any.

    Every step weighs as much as it has tokens of that kind of responses, which gives occurrences
    over tokens of the whole phase; where a record does not say how many, all weigh the same.

    Args:
        run: as it was read.
        group: see `group_names`.

    Returns:
        Keys are (phase, kind of responses).
    """
    found: dict[tuple[str, str], list[tuple[float, float | None]]] = {}
    for row in run.metrics:
        phase = row.get("phase")
        for kind in KINDS if phase in PHASES else ():
            value = rate(row, group, kind)
            if value is not None:
                tokens = number(row.get(TOKENS[kind]))
                found.setdefault((str(phase), kind), []).append((value, tokens))
    return {key: Rate(_mean(some), len(some)) for key, some in found.items()}


def _mean(found: list[tuple[float, float | None]]) -> float:
    weights = [1.0 if weight is None else max(weight, 0.0) for _, weight in found]
    if any(weight is None for _, weight in found) or sum(weights) <= 0:
        weights = [1.0] * len(found)
    total = sum(weights)
    return sum(value * (weight / total) for (value, _), weight in zip(found, weights, strict=True))


def _groups(row: Row) -> Row:
    groups = row.get("token_groups")
    return groups if isinstance(groups, dict) else {}
