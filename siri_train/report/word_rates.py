"""Groups of words in responses: how often, by phase of the schedule and by correctness."""

from __future__ import annotations

from collections.abc import Sequence

from .data import Row, Run, RunFolder, number, over
from .scale import Point
from .token_pooling import KEYS, pool

KINDS = KEYS
PHASES = ("compression", "expansion", "constant")
MOST_GROUPS = 12
OLD = "backtrack"
"""The group that ``backtrack_per_1k`` counts: all that records of older versions have."""


def group_names(folder: RunFolder) -> list[str]:
    """The groups of all runs, by first appearance; of old runs only the one that they counted.

    Args:
        folder: as it was read.
    """
    return _names(folder)[:MOST_GROUPS]


def groups_left_out(folder: RunFolder) -> list[str]:
    """The groups behind the first `MOST_GROUPS`, which the page does not draw.

    Args:
        folder: as it was read.
    """
    return _names(folder)[MOST_GROUPS:]


def unsaid_groups(folder: RunFolder) -> list[str]:
    """The groups of which no response holds a word: a chart would be an empty one.

    Args:
        folder: as it was read.
    """
    found = []
    for group in group_names(folder):
        rates = [y for run in folder.runs for _, y in over_steps(run.metrics, group, "all")]
        known = [rate for rate in rates if rate is not None]
        if known and not any(known):
            found.append(group)
    return found


def _names(folder: RunFolder) -> list[str]:
    names: dict[str, None] = {}
    for run in folder.runs:
        for row in run.metrics:
            names |= dict.fromkeys(map(str, _groups(row)))
        if not any(map(_groups, run.metrics)):
            if any(number(row.get("backtrack_per_1k")) is not None for row in run.metrics):
                names[OLD] = None
    return list(names)


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
    return over(rows, lambda row: rate(row, group, kind))


def by_phase(run: Run) -> dict[tuple[str, str, str], float]:
    """The rate of each group over the steps of each phase that has any.

    It is that of `siri_train.report.token_pooling.pool`, as ``siri-train tokens`` shows it: words
    over tokens of the whole phase. A step whose record does not say how many is left out.

    Args:
        run: as it was read.

    Returns:
        Keys are (group, phase, kind of responses).
    """
    rows: list[Row] = run.metrics
    if not any(map(_groups, rows)):  # of an older version, which counted one group
        rows = [
            {**row, "token_groups": {OLD: {"all": row.get("backtrack_per_1k")}}} for row in rows
        ]
    return {
        (group, phase, kind): rate.per_1k
        for phase in PHASES
        for group, rates in pool(rows, phase).items()
        for kind, rate in rates.items()
        if rate.per_1k is not None
    }


def _groups(row: Row) -> Row:
    groups = row.get("token_groups")
    return groups if isinstance(groups, dict) else {}
