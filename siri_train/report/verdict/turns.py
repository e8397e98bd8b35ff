"""Where the length turned, by measurement: the shortest responses behind compressed ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from siri_train.report.data import number

from .cycles import cycles_of
from .names import Names
from .subject import Subject, of_set
from .types import Finding, Status
from .words import counted, tokens

FLAT = 0.02
"""Lengths that differ by less than this share are the same length."""
_KEY = "turns"


@dataclass(frozen=True)
class Turn:
    """Where the length turned behind an end.

    Args:
        name: "siri-low" (shortest) or "siri-high" (longest).
        end: steps done at the scheduled end.
        step: of the evaluation with the shortest or longest responses behind it.
        flat: first and last evaluation in a row with it whose length is the same within `FLAT`.
        tokens: its mean response length.
        at_end: the length at the end itself; None where it was not evaluated.
        last: the last evaluation looked at.
        open: whether the run ended, or the log does, before the next end.
    """

    name: str
    end: int
    step: int
    flat: tuple[int, int]
    tokens: float
    at_end: float | None
    last: int
    open: bool

    @property
    def lag(self) -> int:
        """Steps behind the end."""
        return self.step - self.end


def find_turns(subject: Subject) -> list[Turn]:
    """The turn behind every end of the run, in order.

    Looked at are the evaluations from an end up to the next one, on the set that selects: no
    question that is reported takes part.

    Args:
        subject: the run.
    """
    ends = sorted([(step, "siri-low") for step in subject.ends("siri-low")]
                  + [(step, "siri-high") for step in subject.ends("siri-high")])  # fmt: skip
    lengths = []
    for one in subject.run.evals:
        value = of_set(one, subject.select).tokens
        if value is not None:
            lengths.append((one.step, value))
    found = []
    for place, (end, name) in enumerate(ends):
        following = ends[place + 1][0] if place + 1 < len(ends) else None
        rows = [row for row in lengths
                if row[0] >= end and (following is None or row[0] <= following)]  # fmt: skip
        if len(rows) < 2:
            continue
        sign = 1 if name == "siri-low" else -1
        values = [sign * value for _, value in rows]
        best = values.index(min(values))
        same = [abs(value - values[best]) <= FLAT * abs(values[best]) for value in values]
        first = last = best
        while first and same[first - 1]:
            first -= 1
        while last + 1 < len(rows) and same[last + 1]:
            last += 1
        step, value = rows[best]
        found.append(
            Turn(name, end, step, (rows[first][0], rows[last][0]), value,
                 rows[0][1] if rows[0][0] == end else None, rows[-1][0], following is None)
        )  # fmt: skip
    return found


def turns(subject: Subject, names: Names) -> Finding:
    """The finding.

    Args:
        subject: the run.
        names: of checkpoints.
    """
    if cycles_of(subject) is None and not subject.ends("siri-low"):
        title = "Where responses were shortest: not judged, the cap did not move"
        text = "Without cycles there is no compressed end to look behind."
        return Finding(_KEY, "missing", title, text)
    found = find_turns(subject)
    lows = [one for one in found if one.name == "siri-low"]
    highs = [one for one in found if one.name == "siri-high"]
    figures: dict[str, Any] = {"turns": [_figures(one) for one in found]}
    if not lows:
        text = (
            "It takes two evaluations behind a compressed end: set eval.every to a fraction of the "
            "cycle."
        )
        return Finding(
            _KEY, "missing", "Where responses were shortest: not measured", text, figures
        )
    last = lows[-1]
    details = [_line(one) for one in found if one not in (last, *highs[-1:])]
    named = _of_manifest(subject)
    status: Status = "good"
    text = _line(last)
    text += " " + _kept(last, named, subject, names)
    if highs:
        text += f" {_line(highs[-1])}"
    title = (
        f"Responses were shortest {counted(last.lag, 'step')} behind the compressed end"
        if last.lag else "Responses were shortest at the compressed end itself"
    )  # fmt: skip
    if last.flat[0] < last.flat[1]:
        first, until = (step - last.end for step in last.flat)
        title = f"Responses were shortest {first:,} to {counted(until, 'step')} behind the"
        title += f" compressed end (the same within {100 * FLAT:.0f} %)"
    if last.step == last.last and last.flat[0] == last.flat[1]:
        status = "unclear"
        title = (
            "Responses were still getting shorter at the last evaluation" if last.open
            else "Responses were shortest only at the next expanded end"
        )  # fmt: skip
    if named:
        figures["kept"] = named
    return Finding(_KEY, status, title, text, figures, tuple(details))


def _line(one: Turn) -> str:
    what, kind = ("shortest", "compressed") if one.name == "siri-low" else ("longest", "expanded")
    text = (
        f"Behind the {kind} end at step {one.end:,} held-out responses were {what} at step "
        f"{one.step:,} {_later(one)}: {tokens(one.tokens)} tokens"
    )
    if one.at_end is not None and one.lag:
        text += f", {tokens(one.at_end)} at the end itself"
    if one.flat[0] < one.flat[1]:
        text += f"; the same within {100 * FLAT:.0f} % at steps {one.flat[0]:,} to {one.flat[1]:,}"
    return text + "."


def _later(one: Turn) -> str:
    return f"({counted(one.lag, 'step')} later)" if one.lag else "(that end itself)"


def _kept(last: Turn, named: dict[str, int], subject: Subject, names: Names) -> str:
    """Which checkpoint the run has kept by measurement."""
    step = named.get(str(last.end))
    window = subject.count("checkpoint", "lag_window")
    if step is None:
        return (
            "No checkpoint is named by measurement for this end yet." if window or named
            else "The run keeps no checkpoint by measured length: set checkpoint.lag_window to "
            "the steps behind each end in which to look for the shortest."
        )  # fmt: skip
    name = ", ".join(names.of(subject, step)) or names.shown("siri-low-measured")
    if step == last.step:
        return f"It is kept as {name} (step {step:,})."
    looked = f" within {counted(window, 'step')}" if window else ""
    if last.flat[0] <= step <= last.flat[1]:
        return (
            f"Kept is step {step:,} ({name}): of checkpoints of the same length{looked} the most "
            "accurate one is taken."
        )
    return (
        f"Kept is step {step:,} ({name}), where responses were not shortest: it is the best of the "
        f"checkpoints that were saved{looked}."
    )


def _of_manifest(subject: Subject) -> dict[str, int]:
    """The steps of siri-low-measured by the end that they belong to."""
    cycles = subject.run.manifest.get("cycles")
    found: dict[str, int] = {}
    ends = subject.ends("siri-low")
    for row in cycles if isinstance(cycles, list) else []:
        if not isinstance(row, dict) or row.get("which") != "siri-low-measured":
            continue
        step = number(row.get("step"))
        before = [end for end in ends if step is not None and end <= step]
        if step is not None and before:
            found[str(before[-1])] = int(step)
    return found


def _figures(one: Turn) -> dict[str, Any]:
    return {
        "which": one.name,
        "end": one.end,
        "step": one.step,
        "lag": one.lag,
        "flat": list(one.flat),
        "tokens": one.tokens,
        "tokens_at_end": one.at_end,
    }
