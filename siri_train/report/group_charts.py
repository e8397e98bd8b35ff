"""A chart over the steps for each group of words."""

from __future__ import annotations

from .data import RunFolder
from .scale import Point, running_mean
from .svg import Chart, Line
from .word_rates import KINDS, group_names, over_steps, unsaid_groups

MEAN_FROM = 40
"""Steps from which the curves are running means."""


def group_charts(folder: RunFolder, chosen: dict[str, str]) -> list[tuple[Chart, str]]:
    """A chart a group that occurs; empty if all runs are of versions that recorded no groups.

    Of one run all, right and wrong responses have a curve each; of several runs each has one, of
    all its responses.

    Args:
        folder: as it was read.
        chosen: the runs' colour classes by name.
    """
    if not any(row.get("token_groups") for run in folder.runs for row in run.metrics):
        return []
    several = len(folder.runs) > 1
    colour = {"all": "", "right": "high", "wrong": "low"}
    found = []
    unsaid = unsaid_groups(folder)
    for group in group_names(folder):
        if group in unsaid:
            continue
        lines = []
        for place, run in enumerate(folder.runs):
            for kind in ("all",) if several else KINDS:
                raw = over_steps(run.metrics, group, kind)
                points, behind, window = _smoothed(raw)
                lines.append(
                    Line(
                        run.label if several else kind, points, colour[kind] or chosen[run.name],
                        "line" if kind == "all" else "dashed", behind, window=window, run=place,
                    )
                )  # fmt: skip
        text = f"How often words of the group “{group}” stand in 1,000 response tokens"
        text += ", of all responses." if several else ": all responses, right ones and wrong ones."
        mean = max(line.window for line in lines)
        if mean > 1:
            text += f" Strong: means over {mean} steps."
        found.append((Chart(f"Words: {group}", lines), text))
    return found


def _smoothed(raw: list[Point]) -> tuple[list[Point], list[Point], int]:
    if len(raw) < MEAN_FROM:
        return raw, [], 1
    window = max(5, len(raw) // 30)
    return running_mean(raw, window), raw, window
