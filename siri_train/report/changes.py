"""Accuracy and length before and after training: "accuracy 43.6 % -> 91.0 %"."""

from __future__ import annotations

from typing import Any

from .data import number

Row = dict[str, Any]


def changes(summary: list[Row]) -> list[str]:
    """A sentence for each checkpoint beside the start.

    Both figures stand in it: a change alone, "109 % higher", can be read as percentage points.

    Args:
        summary: the rows of summary.json; one without figures is left out.

    Returns:
        Such as ``start -> siri-low: accuracy 43.6 % -> 91.0 %, mean tokens 39.0 -> 18.7``. Empty
        without a start.
    """
    start = next((row for row in summary if row.get("name") == "start"), {})
    was, long = number(start.get("accuracy")), number(start.get("tokens"))
    said, told = [], set()
    for row in summary:
        now, short = number(row.get("accuracy")), number(row.get("tokens"))
        if row is start or was is None or long is None or now is None or short is None:
            continue
        if (place := (row.get("run"), row.get("step"), now, short)) in told:
            continue  # a checkpoint can have two names
        told.add(place)
        said.append(
            f"start -> {row.get('name')}: accuracy {100 * was:.1f} % -> {100 * now:.1f} %, "
            f"mean tokens {long:,.1f} -> {short:,.1f}"
        )
    return said
