"""The effect of a step or an evaluation on the alarms, and the end of a run that stops at one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class AlarmHalt(RuntimeError):
    """The run stopped at an alarm: ``monitor.halt_on_alarm`` or ``monitor.halt_on`` says so."""


@dataclass(frozen=True)
class Alarmed:
    """The effect of a step or an evaluation on the alarms.

    Args:
        rows: the new rows of ``alarms.jsonl``.
        halts: the first alarm that is true and that the run stops at; None: it goes on.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    halts: dict[str, Any] | None = None

    def halt(self) -> None:
        """End the run if it stops at what is true.

        Raises:
            AlarmHalt: with the alarm's name, cause and action.
        """
        if self.halts is not None:
            one = self.halts
            raise AlarmHalt(f"{one['alarm']}: {one['cause']}; {one['action']}")
