"""Alarms as episodes: from the step that raised one to the step that cleared it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from .readers import Row, number


@dataclass(frozen=True)
class Episode:
    """One alarm, from raised to cleared.

    Attributes:
        name: of the alarm.
        since: the step that raised it.
        until: the step that cleared it; None: it still holds in the last record.
        last: the last step that a record of it names.
        text: cause and action, of its latest record that has them.
        rows: records that were joined: those of one alarm, or of an older version the raises of
            neighbouring steps.
        old: whether the records are of a version that wrote no end of an alarm.
    """

    name: str
    since: int
    until: int | None
    last: int
    text: str
    rows: int = 1
    old: bool = False


def episodes(rows: list[Row]) -> list[Episode]:
    """The episodes of a run, in order of their first step.

    A record without ``state`` is of an older version: it stands for its step alone, and those of
    neighbouring steps are joined. A record that a resumed run wrote again changes nothing. Records
    without a step are left out; `stepless` has them.

    Args:
        rows: of ``alarms.jsonl``, whatever a damaged file holds.
    """
    known: dict[tuple[int, str, str], list[Row]] = {}
    for row in rows:
        step = _step(row.get("step"))
        if step is not None:
            known.setdefault((step, name_of(row), _state(row)), []).append(row)
    done: list[Episode] = []
    open_now: dict[str, Episode] = {}
    for (step, name, state), same in sorted(known.items(), key=lambda item: item[0][0]):
        row, now = same[-1], open_now.get(name)
        text = text_of(row)
        if state == "":
            if now is not None and now.old and step <= (now.until or 0):
                joined = replace(now, until=step + 1, last=step, text=text or now.text)
                open_now[name] = replace(joined, rows=now.rows + len(same))
                continue
            if now is not None:
                done.append(now)
            open_now[name] = Episode(name, step, step + 1, step, text, len(same), old=True)
            continue
        since = _step(row.get("since"))
        since = step if since is None else min(since, step)
        if state == "cleared":
            found = open_now.pop(name, None)
            if found is None or found.old:
                done += [found] if found is not None else []
                found = Episode(name, since, None, step, text, 0)
            done.append(
                replace(found, until=max(step, found.since + 1), last=step, rows=found.rows + 1)
            )
        elif now is not None and not now.old and (state == "ongoing" or since == now.since):
            open_now[name] = replace(now, last=step, text=text or now.text, rows=now.rows + 1)
        else:
            if now is not None:  # its end was not written: the run was killed and begun again
                done.append(now if now.old else replace(now, until=max(now.last + 1, since)))
            open_now[name] = Episode(name, since, None, step, text)
    return sorted([*done, *open_now.values()], key=lambda one: (one.since, one.name))


def stepless(rows: list[Row]) -> list[tuple[str, str]]:
    """Name and text of the records that name no step.

    Args:
        rows: as `episodes` takes them.
    """
    return [(name_of(row), text_of(row)) for row in rows if _step(row.get("step")) is None]


def name_of(row: Row) -> str:
    """The alarm's name, also of a damaged record."""
    return str(row.get("alarm") or row.get("name") or "alarm")


def text_of(row: Row) -> str:
    """Cause and action; of a record without them all that it holds."""
    told = [row.get(key) for key in ("message", "cause", "action")]
    rest = {k: v for k, v in row.items() if k not in ("step", "alarm", "name", *_STATE)}
    return "; ".join(str(part) for part in told if part) or (
        json.dumps(rest, default=str) if rest else ""
    )


_STATE = ("state", "since", "age")


def _state(row: Row) -> str:
    state = row.get("state")
    return "" if state is None else state if state in ("ongoing", "cleared") else "raised"


def _step(value: object) -> int | None:
    step = number(value)
    return int(step) if step is not None and 0 <= step < 1e12 else None
