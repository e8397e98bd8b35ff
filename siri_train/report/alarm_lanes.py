"""The page's alarms: a lane each over the steps, and a list with cause and action."""

from __future__ import annotations

from typing import Any

from .alarm_episodes import Episode, episodes, stepless
from .data import Run, RunFolder
from .scale import Point
from .svg import Chart, Line

Values = dict[str, Any]

MOST_LANES = 12
"""Lanes of the chart; the list has all alarms up to `MOST_LISTED`."""
MOST_LISTED = 20
_MOST_BARS = 150
"""Bars of a lane; more would be thinner than a pixel, so the nearest are joined."""
TITLE = "Alarms"
TEXT = (
    "A bar runs from the step that raised the alarm to the step that cleared it; one that reaches "
    "the right end still holds. What each of them means and what to do: in the list at the top of "
    "the page."
)


def alarm_chart(folder: RunFolder) -> tuple[Chart, str] | None:
    """A lane an alarm (of several runs: a run and alarm), or None without alarms.

    The lanes with the most steps come first. Lane k is drawn at the height k, from below.

    Args:
        folder: as it was read.
    """
    lanes: list[tuple[int, str, list[Episode], int, int]] = []
    for place, run in enumerate(folder.runs):
        end = _end(run)
        for name, found in _by_name(episodes(run.alarms)).items():
            last = max(end, *(one.last + 1 for one in found))
            steps = sum((last if one.until is None else one.until) - one.since for one in found)
            label = f"{run.label}: {name}" if len(folder.runs) > 1 else name
            lanes.append((steps, label, found, place, last))
    if not lanes:
        return None
    lanes.sort(key=lambda lane: -lane[0])
    left_out, lanes = lanes[MOST_LANES:], lanes[:MOST_LANES]
    lines = []
    for height, (_, label, found, place, last) in enumerate(reversed(lanes)):
        points, words = _bars(found, float(height), last)
        lines.append(
            Line(label, points, "alarm", "lane", beside="nowhere", run=place, words=words)
        )  # fmt: skip
    text = TEXT
    if left_out:
        text += f" Without a lane: {len(left_out)} more, with fewer steps."
    if any(one.old for lane in lanes for one in lane[2]):
        text += (
            " Records of an older version do not say when an alarm ended: each marks its own step."
        )
    names = tuple(line.label for line in lines)
    return Chart(TITLE, lines, y_ticks=tuple(map(float, range(len(lines)))), y_names=names), text


def alarm_list(folder: RunFolder) -> list[Values]:
    """A line an alarm and run for the template: ``name``, ``text`` and whether it is ``on``.

    Those that still hold come first.

    Args:
        folder: as it was read.
    """
    lines = []
    for run in folder.runs:
        for name, found in _by_name(episodes(run.alarms)).items():
            on = found[-1].until is None
            lines.append({"name": name, "text": _told(run, found), "on": on})
        for name, text in stepless(run.alarms):
            lines.append({"name": name, "text": f"({run.label}): {text}", "on": False})
    lines.sort(key=lambda line: not line["on"])
    more = len(lines) - MOST_LISTED
    if more > 0:
        rest = {"name": f"{more:,} more", "text": "in alarms.jsonl of the runs", "on": False}
        lines = [*lines[:MOST_LISTED], rest]
    return lines


def _told(run: Run, found: list[Episode]) -> str:
    last = found[-1]
    if last.old:
        first, end = min(one.since for one in found), max(one.last for one in found)
        where = f"step {first:,}" if first == end else f"steps {first:,} to {end:,}"
        rows = sum(one.rows for one in found)
        where += f", {rows:,} times" if rows > 1 else ""
    elif last.until is None:
        age = max(_end(run) - 1, last.last) - last.since
        where = f"since step {last.since:,}, for {age:,} steps, still on"
    else:
        where = f"steps {last.since:,} to {last.until:,}, cleared"
    if not last.old and len(found) > 1:
        where += f"; raised {len(found):,} times"
    text = next((one.text for one in reversed(found) if one.text), "")
    return f"({run.label}, {where}): {text}"


def _by_name(found: list[Episode]) -> dict[str, list[Episode]]:
    lanes: dict[str, list[Episode]] = {}
    for one in found:
        lanes.setdefault(one.name, []).append(one)
    return lanes


def _end(run: Run) -> int:
    """Steps of the run, as far as its records go."""
    return run.metrics[-1]["step"] + 1 if run.metrics else 0


def _bars(found: list[Episode], height: float, last: int) -> tuple[list[Point], list[str]]:
    """(step, height) at both ends of each bar with a gap behind it, and a word for each point."""
    bars: list[tuple[int, int, str]] = []
    for one in sorted(found, key=lambda one: one.since):
        end = max(last if one.until is None else one.until, one.since + 1)
        word = f"{one.since:,} to {end:,}" if one.until is not None else f"since {one.since:,}"
        if bars and one.since <= bars[-1][1]:
            bars[-1] = (bars[-1][0], max(end, bars[-1][1]), f"{bars[-1][0]:,} to {end:,}")
        else:
            bars.append((one.since, end, word))
    while len(bars) > _MOST_BARS:
        gaps = [two[0] - one[1] for one, two in zip(bars, bars[1:], strict=False)]
        at = gaps.index(min(gaps))
        begin, end = bars[at][0], bars.pop(at + 1)[1]
        bars[at] = (begin, end, f"{begin:,} to {end:,}")
    points: list[Point] = []
    words = []
    for start, end, word in bars:
        points += [(float(start), height), (float(end), height), (float(end), None)]
        words += [word, word, ""]
    return points, words
