"""Findings agree with alarms: which finding is about the same as which alarm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .raised import Kind
from .types import Finding
from .words import counted, listed

TOPICS: dict[str, tuple[str, ...]] = {
    "length": ("length-not-tracking", "pinned-at-cap", "length-explosion", "length-hacking"),
    "accuracy": ("accuracy-not-recovered", "accuracy-decay", "reward-hacking", "length-hacking",
                 "reward-plateau", "reward-decay"),
    "entropy": ("entropy-collapse", "entropy-blowup", "entropy-out-of-band"),
    "turns": ("length-not-tracking", "pinned-at-cap"),
    "truncation": ("mostly-truncated", "truncation-rising", "pinned-at-cap", "repetition"),
    "groups": ("groups-without-signal", "all-zero-rewards", "few-informative-groups",
               "answers-not-judged", "wrong-think-setting", "prompts-failed"),
    "mismatch": ("sampler-mismatch", "sampler-drift", "sync-probe", "non-finite-logprobs"),
}  # fmt: skip
"""Alarms by the finding that is about the same: it is not good while one of them goes on.

Alarms that no finding is about stand in the line on alarms alone; the tests list them."""


def agreeing(finding: Finding, alarms: Sequence[Kind]) -> Finding:
    """The finding, no better than the alarms on its topic allow.

    An alarm that goes on at the end makes it bad, one that was raised and is over makes a good one
    unclear. Title and text name the alarm.

    Args:
        finding: as its own figures give it.
        alarms: of the run.
    """
    mine = [kind for kind in alarms if kind.name in TOPICS.get(finding.key, ())]
    going = [kind for kind in mine if kind.ongoing]
    over = [kind for kind in mine if not kind.ongoing]
    if not mine:
        return finding
    title, text, status = finding.title, finding.text, finding.status
    if going:
        status = "bad"
        title += f"; {_named(going)} {'goes' if len(going) == 1 else 'go'} on at the end"
    elif status == "good":
        status = "unclear"
        title += f"; {_named(over)} {'was' if len(over) == 1 else 'were'} raised and "
        title += f"{'is' if len(over) == 1 else 'are'} over"
    text += "".join(
        f" The alarm {kind.name} was raised {_when(kind)}"
        f"{' and goes on at the end' if kind.ongoing else '; it is over'}."
        for kind in [*going, *over]
    )
    figures = {**finding.figures, "alarms": [kind.name for kind in mine]}
    return replace(finding, status=status, title=title, text=text, figures=figures)


def _named(found: Sequence[Kind]) -> str:
    noun = "alarm" if len(found) == 1 else "alarms"
    return f"{noun} {listed([kind.name for kind in found])}"


def _when(kind: Kind) -> str:
    first = f"step {min(kind.raised):,}"
    if len(kind.raised) == 1:
        return f"at {first}"
    return f"{counted(len(kind.raised), 'time')}, first at {first}"
