"""The alarms of a run: how many, the first, and those that go on at its end."""

from __future__ import annotations

from dataclasses import dataclass

from siri_train.report.data import number

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
    """The alarms by name, in the order in which they were raised first.

    Rows without a state (of older versions) are raises; such an alarm goes on if the last step
    raised it.

    Args:
        subject: the run.
    """
    found: dict[str, Kind] = {}
    for row in subject.run.alarms:
        name, step = row.get("alarm") or row.get("name"), number(row.get("step"))
        if not isinstance(name, str) or step is None:
            continue
        kind = found.setdefault(name, Kind(name, []))
        state = row.get("state")
        if state == "cleared":
            kind.ongoing = False
            continue
        kind.told = "; ".join(str(row[key]) for key in ("cause", "action") if row.get(key))
        if state == "ongoing":
            kind.ongoing = True
            since = number(row.get("since"))
            if not kind.raised and since is not None:  # its first row is lost
                kind.raised.append(int(since))
            continue
        kind.raised.append(int(step))
        kind.ongoing = state == "raised" or step >= subject.done - 1
    return [kind for kind in found.values() if kind.raised]


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
    text = (
        f"{counted(count, 'alarm')} of {counted(len(found), 'kind')}; the first is {first.name} at "
        f"step {min(first.raised):,}."
    )
    title = f"{counted(count, 'alarm')}, none at the end"
    if going:
        text += f" At the end {'goes' if len(going) == 1 else 'go'} on: "
        text += f"{listed([kind.name for kind in going])}."
        title = f"{counted(count, 'alarm')}, {len(going):,} at the end"
    details = [
        f"{kind.name}: raised {counted(len(kind.raised), 'time')}, {_steps(kind.raised)}"
        f"{', goes on at the end' if kind.ongoing else ''}. {kind.told}".strip()
        for kind in found
    ]
    return Finding(_KEY, "bad" if going else "unclear", title, text, figures, tuple(details))


def _steps(raised: list[int]) -> str:
    if min(raised) == max(raised):
        return f"step {raised[0]:,}"
    return f"steps {min(raised):,} to {max(raised):,}"
