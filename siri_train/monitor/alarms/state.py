"""The alarms that are on: raised once, noted again while they stay on, cleared once.

An alarm that is on is noted again when its age reaches 2, 4, 8, 16, ... steps, so that one which is
on for a whole run fills no file. All that decides about the next row stands in ``alarms.jsonl``
and in the records that are checked: a run that continues writes the rows that it would have
written without the break.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms.history import MOST_ROWS, kept
from siri_train.monitor.alarms.registry import ALARMS, Alarm, Kind, Record

STATES = ("raised", "ongoing", "cleared")


@dataclass
class Ongoing:
    """An alarm that is on.

    Args:
        name: of the alarm.
        since: the step that raised it.
        age: steps since then.
        value: the number of its newest row of ``alarms.jsonl``.
        cause: what is wrong, as in that row.
        action: what to do.
        told: the age in that row.
        quiet: looks since it was last true.
    """

    name: str
    since: int
    age: int
    value: Any
    cause: str
    action: str
    told: int = 0
    quiet: int = 0

    def row(self, step: int, state: str) -> dict[str, Any]:
        """Its row of ``alarms.jsonl``.

        Args:
            step: the step of the row.
            state: one of :data:`STATES`.
        """
        return {
            "step": step,
            "alarm": self.name,
            "state": state,
            "since": self.since,
            "age": step - self.since,
            "value": self.value,
            "cause": self.cause,
            "action": self.action,
        }


class AlarmState:
    """The alarms of a run that are on."""

    def __init__(self) -> None:
        self._on: dict[str, Ongoing] = {}

    @classmethod
    def resumed(
        cls,
        records: Iterable[Mapping[str, Any]],
        step: int,
        rows: Sequence[Record] = (),
        evaluations: Sequence[Record] = (),
        limits: AlarmsConfig | None = None,
    ) -> AlarmState:
        """The state of a run that continues.

        Args:
            records: of ``alarms.jsonl`` below ``step``, oldest first. Those that are no rows of an
                alarm are left out. Rows of before there were states hold a raise each.
            step: the next step.
            rows: the newest rows of ``metrics.jsonl`` below ``step``, oldest first.
            evaluations: all rows of ``eval.jsonl`` until ``step``, oldest first.
            limits: thresholds; None: their defaults.
        """
        state = cls()
        stateless: dict[str, int] = {}  # the newest step of a row without a state
        for record in filter(_is_row, records):
            name, at = record["alarm"], record["step"]
            if "state" not in record:
                before = state._on.get(name)
                goes_on = before is not None and stateless.get(name) in (at, at - 1)
                since = before.since if before is not None and goes_on else at
                state._on[name] = _ongoing(record, since)
                stateless[name] = at
            elif record["state"] == "cleared":
                state._on.pop(name, None)
            else:
                state._on[name] = _ongoing(record, record["since"])
                stateless.pop(name, None)
        for name, at in stateless.items():
            if at != step - 1:  # it was not true of the newest step
                state._on.pop(name, None)
        slim = [kept(row) for row in rows] if state._on else []
        for one in state._on.values():
            one.age = max(one.age, step - 1 - one.since)
            entry = ALARMS.get(one.name)
            if entry is not None and entry.clear_after > 1:
                both = (rows, slim) if entry.on == "step" else (evaluations, evaluations)
                others = evaluations if entry.on == "step" else slim
                one.quiet = _quiet(entry, *both, limits, others)
        return state

    def ongoing(self) -> list[Ongoing]:
        """The alarms that are on, the oldest first."""
        return sorted(self._on.values(), key=lambda one: one.since)

    def update(
        self, step: int, found: Sequence[Mapping[str, Any]], on: Kind = "step"
    ) -> list[dict[str, Any]]:
        """Take note of what is true after a look.

        Args:
            step: of the look; of an evaluation the last step before it.
            found: what is true, as :func:`siri_train.monitor.alarms.check` returns it.
            on: what was looked at. Alarms about something else stay as they are.

        Returns:
            The new rows of ``alarms.jsonl``.
        """
        rows: list[dict[str, Any]] = []
        true = {alarm["alarm"]: alarm for alarm in reversed(found)}  # of two the first counts
        for name, alarm in reversed(true.items()):
            one = self._on.get(name)
            if one is None:
                if any(name in _covers(other) for other in self._on):
                    continue
                rows = self._without(_covers(name), step, rows)
                one = self._on[name] = _ongoing({**alarm, "step": step}, step)
                rows.append(one.row(step, "raised"))
            one.quiet = 0
            if step - one.since >= max(2, _next_power(one.told)):
                one.told = step - one.since
                one.value, one.cause, one.action = (alarm[k] for k in ("value", "cause", "action"))
                rows.append(one.row(step, "ongoing"))
        for name, one in list(self._on.items()):
            one.age = max(one.age, step - one.since)
            entry = ALARMS.get(name)
            if name in true or (entry.on if entry else "step") != on:
                continue
            one.quiet += 1
            if one.quiet >= (entry.clear_after if entry else 1):
                rows.append(self._on.pop(name).row(step, "cleared"))
        return rows

    def _without(
        self, covered: Sequence[str], step: int, rows: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """End alarms that another one now tells; the rows with their ends.

        An alarm of the same look has not been told yet, and leaves no row.
        """
        for name in covered:
            one = self._on.pop(name, None)
            new = [row for row in rows if row["alarm"] == name and row["state"] == "raised"]
            rows = [row for row in rows if row["alarm"] != name]
            if one is not None and not new:
                rows.append(one.row(step, "cleared"))
        return rows


def _covers(name: str) -> Sequence[str]:
    entry = ALARMS.get(name)
    return entry.covers if entry is not None else ()


def _ongoing(record: Mapping[str, Any], since: int) -> Ongoing:
    told = record["step"] - since
    words = str(record.get("cause", "")), str(record.get("action", ""))
    return Ongoing(record["alarm"], since, told, record.get("value"), *words, told=told)


def _next_power(age: int) -> int:
    """The smallest power of 2 above an age."""
    return 1 << age.bit_length()


def _is_row(record: Mapping[str, Any]) -> bool:
    """Whether a line of ``alarms.jsonl`` is a row of an alarm."""
    if not isinstance(record.get("alarm"), str):
        return False
    since, state = record.get("since"), record.get("state")
    whole = isinstance(since, int) and not isinstance(since, bool) and since <= record["step"]
    return "state" not in record or (state in STATES and whole)


def _quiet(
    entry: Alarm,
    rows: Sequence[Record],
    slim: Sequence[Record],
    limits: AlarmsConfig | None,
    others: Sequence[Record],
) -> int:
    """For how many of the newest rows an alarm that is on has not been true.

    Args:
        entry: of the alarm.
        rows: what it looks at, oldest first.
        slim: the same rows as they are kept for later ones.
        others: the records of the other file.
        limits: thresholds.
    """
    most = min(entry.clear_after, len(rows))
    for quiet in range(most):
        at = len(rows) - 1 - quiet
        try:
            before = slim[max(0, at - MOST_ROWS) : at]
            if entry.look(rows[at], before, limits, others) is not None:
                return quiet
            if entry.shown is not None and entry.shown(rows[at], limits or AlarmsConfig()):
                return quiet
        except Exception:  # a damaged row, or a user's check that fails on it
            continue
    return max(0, most - 1)
