"""The alarms of a run: how many, the first, and those that go on at its end."""

from __future__ import annotations

from dataclasses import dataclass

from siri_train.report.alarm_episodes import episodes

from .subject import Subject
from .types import Finding
from .words import counted, listed

_KEY = "alarms"


@dataclass
class Kind:
    """Alarms of one name.

    Args:
        name: of the alarm.
        raised: the steps at which it was raised.
        ongoing: whether it is true at the end.
        told: cause and action, as last written.
    """

    name: str
    raised: list[int]
    ongoing: bool = False
    told: str = ""


def kinds(subject: Subject) -> list[Kind]:
    """The alarms by name, in the order in which they were raised first; those of all seeds.

    Rows without a state (of older versions) are raises; such an alarm goes on if the last step
    raised it.

    Args:
        subject: the run.
    """
    found: dict[str, Kind] = {}
    for member in subject.members:
        for one in episodes(member.run.alarms):
            kind = found.setdefault(one.name, Kind(one.name, []))
            kind.raised.append(one.since)
            kind.told = one.text or kind.told
            if one.old:
                kind.ongoing |= one.last >= member.done - 1
            else:
                kind.ongoing |= one.until is None
    return sorted(found.values(), key=lambda kind: min(kind.raised))


def alarms(subject: Subject) -> Finding:
    """The finding.

    Args:
        subject: the run.
    """
    found = kinds(subject)
    figures = {"count": sum(len(kind.raised) for kind in found),
               "names": {kind.name: len(kind.raised) for kind in found},
               "first": min((step for kind in found for step in kind.raised), default=None),
               "ongoing": [kind.name for kind in found if kind.ongoing]}  # fmt: skip
    if not found:
        if not subject.run.metrics:
            return Finding(_KEY, "missing", "Alarms: no step recorded", "No step is recorded yet.",
                           figures)  # fmt: skip
        return Finding(_KEY, "good", "No alarm", "No alarm was raised.", figures)
    first = min(found, key=lambda kind: min(kind.raised))
    going = [kind for kind in found if kind.ongoing]
    count = sum(len(kind.raised) for kind in found)
    text = f"The first is {first.name} at step {min(first.raised):,}."
    if count > len(found):
        text = f"They are of {counted(len(found), 'kind')}. {text}"
    title = f"{counted(count, 'alarm')} raised, none goes on at the end"
    if count == 1:
        title = "1 alarm raised, it is over at the end"
    if going:
        text += f" At the end {'goes' if len(going) == 1 else 'go'} on: "
        text += f"{listed([kind.name for kind in going])}."
        title = f"{counted(count, 'alarm')} raised, "
        title += (
            f"{len(going):,} {'goes' if len(going) == 1 else 'go'} on at the end" if count > 1
            else "it goes on at the end"
        )  # fmt: skip
    details = [
        f"{kind.name}: raised {_steps(kind.raised)}"
        f"{', goes on at the end' if kind.ongoing else ''}. {_sentence(kind.told)}".strip()
        for kind in found
    ]
    return Finding(_KEY, "bad" if going else "unclear", title, text, figures, tuple(details))


def _sentence(text: str) -> str:
    return text if not text or text.endswith(".") else f"{text}."


def _steps(raised: list[int]) -> str:
    if len(raised) == 1:
        return f"at step {raised[0]:,}"
    if min(raised) == max(raised):
        return f"{counted(len(raised), 'time')} at step {raised[0]:,}"
    return f"{counted(len(raised), 'time')}, at steps {min(raised):,} to {max(raised):,}"
