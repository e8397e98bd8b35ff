"""The cycles of a run, as its metrics record them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from siri_train.report.data import number

from .lagged import Floats
from .subject import Subject


@dataclass(frozen=True)
class Cycles:
    """Caps and lengths on a grid of steps.

    Args:
        length: steps of a cycle.
        whole: how many whole cycles are recorded.
        caps: ``[steps]``, gaps filled with the cap before.
        lengths: ``[steps]``, mean response tokens; NaN in gaps.
    """

    length: int
    whole: int
    caps: Floats
    lengths: Floats


def cycles_of(subject: Subject) -> Cycles | None:
    """The cycles of a run.

    A cycle's length is that of the first one that ended in the metrics, else schedule.cycle.

    Args:
        subject: the run.

    Returns:
        None where the cap is the same at every step, or is not known.
    """
    rows = [row for row in subject.run.metrics if number(row.get("cap"))]
    if len(rows) < 2 or len({row["cap"] for row in rows}) < 2:
        return None
    steps = rows[-1]["step"] + 1
    if steps > 1_000_000:  # a damaged step number
        return None
    caps, lengths = np.full(steps, np.nan), np.full(steps, np.nan)
    for row in rows:
        caps[row["step"]] = number(row["cap"])
        value = number(row.get("response_len_mean"))
        lengths[row["step"]] = np.nan if value is None or value <= 0 else value
    known = np.flatnonzero(np.isfinite(caps))
    caps = caps[known[np.maximum(np.searchsorted(known, np.arange(steps), side="right") - 1, 0)]]
    length = _cycle(subject, steps)
    return Cycles(length, steps // length, caps, lengths)


def _cycle(subject: Subject, steps: int) -> int:
    """Steps of a cycle."""
    starts: dict[float, int] = {}
    for row in subject.run.metrics:
        index = number(row.get("cycle"))
        if index is not None:
            starts.setdefault(index, row["step"])
    ordered = [starts[index] for index in sorted(starts)]
    lasting = [b - a for a, b in zip(ordered, ordered[1:], strict=False) if b > a]
    given = subject.count("schedule", "cycle")
    if given is not None and (not lasting or given in lasting):
        return given
    return lasting[0] if lasting else steps
