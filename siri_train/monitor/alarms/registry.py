"""The table of alarms, how to add one, and the checks of a newest record."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from siri_train.config.alarms import AlarmsConfig
from siri_train.config.base import ConfigError
from siri_train.config.explain import shown_value
from siri_train.config.values import OneOf
from siri_train.monitor.alarms.history import MOST_QUIET
from siri_train.registry import Registry

Record = Mapping[str, Any]
Kind = Literal["step", "evaluation"]

LEAST_QUIET: Mapping[Kind, int] = {"step": 20, "evaluation": 3}
"""Looks that find nothing before an alarm is over, at least: steps or evaluations."""


class Raised:
    """An alarm is raised.

    Args:
        value: what is wrong, in one number.
        details: what fills the braces of `Alarm.cause`.
    """

    def __init__(self, value: Any, **details: Any) -> None:
        self.value = value
        self.details = details


Check = Callable[..., "Raised | None"]
"""A function of (newest record, the records before it, oldest first) that gives `Raised` or None.

One with a third parameter gets the thresholds too: the section ``monitor.alarms`` of the recipe.
One with a fourth gets what the other file holds so far: the records of ``eval.jsonl``, or of an
alarm about evaluations those of ``metrics.jsonl``; there may be none, and none are newer.
"""


@dataclass(frozen=True)
class Alarm:
    """An entry of `ALARMS`.

    Args:
        name: as ``alarms.jsonl`` has it.
        cause: what is wrong, in words; a format string for the details of `Raised`.
        action: what to do.
        check: see `Check`. None where something else than a record raises it.
        on: the records that are looked at: ``step`` for those of ``metrics.jsonl``,
            ``evaluation`` for those of ``eval.jsonl``.
        limits: the keys of ``monitor.alarms`` that it reads.
        window: the newest records that a look takes together, about.
        clear_after: looks in a row that must find nothing before the alarm is over. 0: twice the
            window, and `LEAST_QUIET` at least, so that noise about a threshold does not raise the
            alarm again and again; 1 where a run that continues could not count them.
        covers: names of alarms that then say nothing new. None of them is raised while this one
            is on, and this one ends those that are on when it is raised. Of two that cover each
            other the first one tells.
        shown: without a check, whether a row of ``metrics.jsonl`` shows that the alarm was true
            at its step. A run that continues asks it.
    """

    name: str
    cause: str
    action: str
    check: Check | None = None
    on: Kind = "step"
    limits: tuple[str, ...] = ()
    window: int = 1
    clear_after: int = 0
    covers: tuple[str, ...] = ()
    shown: Callable[[Record, AlarmsConfig], bool] | None = None

    def __post_init__(self) -> None:
        # A run that continues looks again at the rows before it.
        most = 1 if self.check is None and self.shown is None else MOST_QUIET
        if self.clear_after == 0:
            quiet = min(most, max(LEAST_QUIET[self.on], 2 * self.window))
            object.__setattr__(self, "clear_after", quiet)
        if not 1 <= self.clear_after <= most:
            raise ValueError(
                f"alarm {self.name}: clear_after: got {self.clear_after}; takes a whole number "
                f"from 1 to {MOST_QUIET} or 0, without check and shown 1"
            )

    def look(
        self,
        row: Record,
        before: Sequence[Record],
        limits: AlarmsConfig | None = None,
        others: Sequence[Record] = (),
    ) -> Raised | None:
        """Look at a record.

        Args:
            row: the newest record.
            before: the records before it, oldest first.
            limits: thresholds; None: their defaults.
            others: the records of the other file, oldest first. Those behind the record are
                left out.

        Returns:
            What the check finds; None where there is no check.
        """
        if self.check is None:
            return None
        more = [limits or AlarmsConfig(), others][: _parameters(self.check) - 2]
        if len(more) > 1:
            more[1] = _until(row["step"], others, self.on)
        return self.check(row, before, *more)

    def entry(self, raised: Raised) -> dict[str, Any]:
        """Its part of a row of ``alarms.jsonl``, without step, state and age.

        Args:
            raised: with every detail that the cause names.

        Returns:
            ``{"alarm", "value", "cause", "action"}``.
        """
        cause = self.cause.format(**raised.details)
        return {"alarm": self.name, "value": raised.value, "cause": cause, "action": self.action}


ALARMS: Registry[Alarm] = Registry("alarm")
"""Every alarm by name, in the order in which a record is checked."""


def register(
    name: str,
    *,
    cause: str,
    action: str,
    check: Check | None = None,
    on: Kind = "step",
    limits: tuple[str, ...] = (),
    window: int = 1,
    clear_after: int = 0,
    covers: tuple[str, ...] = (),
    shown: Callable[[Record, AlarmsConfig], bool] | None = None,
) -> Alarm:
    """Add an alarm to `ALARMS`.

    Args:
        name: its name.
        cause: see `Alarm`.
        action: see `Alarm`.
        check: see `Alarm`.
        on: see `Alarm`.
        limits: see `Alarm`.
        window: see `Alarm`.
        clear_after: see `Alarm`.
        covers: see `Alarm`.
        shown: see `Alarm`.

    Returns:
        The entry.
    """
    ALARMS[name] = Alarm(name, cause, action, check, on, limits, window, clear_after, covers, shown)
    return ALARMS[name]


def alarm(
    name: str,
    *,
    cause: str,
    action: str,
    on: Kind = "step",
    limits: tuple[str, ...] = (),
    window: int = 1,
    clear_after: int = 0,
    covers: tuple[str, ...] = (),
) -> Callable[[Check], Check]:
    """Decorator of a check of the newest record: adds it to `ALARMS`.

    Args:
        name: its name.
        cause: see `Alarm`.
        action: see `Alarm`.
        on: see `Alarm`.
        limits: see `Alarm`.
        window: see `Alarm`.
        clear_after: see `Alarm`.
        covers: see `Alarm`.

    Returns:
        The decorator, which leaves the function as it is.
    """

    def add(check: Check) -> Check:
        register(
            name,
            cause=cause,
            action=action,
            check=check,
            on=on,
            limits=limits,
            window=window,
            clear_after=clear_after,
            covers=covers,
        )
        return check

    return add


def check(
    row: Record,
    history: Sequence[Record],
    limits: AlarmsConfig | None = None,
    evaluations: Sequence[Record] = (),
) -> list[dict[str, Any]]:
    """The alarms that are true of the newest row of ``metrics.jsonl``.

    Args:
        row: the newest row.
        history: the rows before it, oldest first.
        limits: thresholds; None: their defaults.
        evaluations: the rows of ``eval.jsonl`` so far, oldest first.

    Returns:
        ``{"step", "alarm", "value", "cause", "action"}`` for each alarm that is true at the row.
    """
    return _found("step", row, history, limits, evaluations)


def check_evaluation(
    row: Record,
    evaluations: Sequence[Record],
    limits: AlarmsConfig | None = None,
    rows: Sequence[Record] = (),
) -> list[dict[str, Any]]:
    """The alarms that are true of the newest row of ``eval.jsonl``.

    Args:
        row: the newest row; its ``step`` is the number of steps done.
        evaluations: the rows before it, oldest first.
        limits: thresholds; None: their defaults.
        rows: the rows of ``metrics.jsonl`` before it, oldest first.

    Returns:
        As :func:`check`.
    """
    return _found("evaluation", row, evaluations, limits, rows)


@cache
def _parameters(check: Check) -> int:
    return len(inspect.signature(check).parameters)


def _until(step: int, others: Sequence[Record], on: Kind) -> Sequence[Record]:
    """The records of the other file that were there: an evaluation after n steps precedes row n."""
    end = len(others)
    while end and (
        others[end - 1]["step"] > step if on == "step" else others[end - 1]["step"] >= step
    ):
        end -= 1
    return others if end == len(others) else others[:end]


def require_known(names: Sequence[str], key: str = "monitor.halt_on") -> None:
    """Refuse a name that no alarm has.

    Args:
        names: of alarms; those of plug-ins are known once these are imported.
        key: who asks, for the message.

    Raises:
        ConfigError: with the name, the nearest one and all that there are.
    """
    for name in names:
        try:
            OneOf(lambda: ALARMS)(name)
        except ValueError as error:
            raise ConfigError(f"{key}: got {shown_value(name)}; {error}") from error


def _found(
    kind: Kind,
    row: Record,
    before: Sequence[Record],
    limits: AlarmsConfig | None,
    others: Sequence[Record],
) -> list[dict[str, Any]]:
    found = []
    for entry in ALARMS.values():
        raised = entry.look(row, before, limits, others) if entry.on == kind else None
        if raised is not None:
            found.append({"step": row["step"], **entry.entry(raised)})
    return found
