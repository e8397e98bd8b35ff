"""The checkpoints where the measured length turns: behind the ends of the schedule.

Length lags the cap: in the paper by 100 to 200 steps of a cycle of 640. So the model with the
shortest answers is not the one at the shortest cap.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from siri_train.schedule import LengthSchedule

FLAT = 0.02
"""Lengths that differ by less than this share are the same length: the turn is flat, and which of
its checkpoints is the shortest is chance."""
SUFFIX = "-measured"


def turns(
    schedule: LengthSchedule,
    evaluations: Sequence[dict[str, Any]],
    done: int,
    window: int,
    available: Collection[int],
) -> list[tuple[str, int, int]]:
    """The checkpoints where the length has turned, as far as is known after ``done`` steps.

    Behind a compressed end that is the shortest mean response, behind an expanded end the longest.
    Of checkpoints whose lengths differ by less than :data:`FLAT` it is the most accurate. The
    figures are those of the set that selects (``eval.select``), so no test question takes part.

    Args:
        schedule: of the run.
        evaluations: records of ``eval.jsonl``.
        done: steps done.
        window: steps behind an end that are looked at, the end included; at most up to the next
            end. 0: none.
        available: step counts that are saved or can still be.

    Returns:
        (name, end, step): ``siri-low-measured`` or ``siri-high-measured``, the scheduled end it
        belongs to, and the checkpoint's step, in order of the ends.
    """
    if not window:
        return []
    ends = [(step, "siri-low") for step in schedule.compressed_ends(done)]
    ends += [(step, "siri-high") for step in schedule.expanded_ends(done)]
    ends.sort()
    found = []
    for place, (end, name) in enumerate(ends):
        last = end + window
        if place + 1 < len(ends):
            last = min(last, ends[place + 1][0] - 1)
        rows = [
            row
            for row in evaluations
            if end <= row["step"] <= min(last, done) and row["step"] in available
        ]
        if rows:
            found.append((f"{name}{SUFFIX}", end, _turn(rows, shortest=name == "siri-low")["step"]))
    return found


def _turn(rows: Sequence[dict[str, Any]], shortest: bool) -> dict[str, Any]:
    """The record where the length has turned."""
    lengths = [row["tokens"] for row in rows]
    if shortest:
        flat = [row for row in rows if row["tokens"] <= min(lengths) * (1 + FLAT)]
    else:
        flat = [row for row in rows if row["tokens"] >= max(lengths) * (1 - FLAT)]
    sign = 1 if shortest else -1
    return max(flat, key=lambda row: (row["accuracy"][-1], -sign * row["tokens"], -row["step"]))
