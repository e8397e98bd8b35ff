"""Progress: a live display in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from siri_train.terminal.encodable import encodable
from siri_train.terminal.lines import joined, log_width

if TYPE_CHECKING:
    from siri_train.monitor.figures import Figure
    from siri_train.monitor.live import LiveDisplay

_SELDOM = 60.0


def duration(seconds: float) -> str:
    """Seconds as ``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _is_terminal() -> bool:
    """Whether standard output is a terminal; it may be closed, or not be there at all."""
    try:
        return sys.stdout.isatty()
    except (AttributeError, OSError, ValueError):
        return False


class Notice:
    """Lines about work that is usually done before the first one is due.

    Args:
        label: the key of the recipe that needs the work.
        what: the things that are counted and what is done to them (``questions made``).
        total: how many.
        every: seconds between lines; the first comes after as many.
    """

    def __init__(self, label: str, what: str, total: int, every: float = 5.0) -> None:
        self.label, self.what, self.total, self.every = label, what, total, every
        self.started = self.told = time.monotonic()

    def __call__(self, done: int) -> None:
        """Say, if it is time, how many are done."""
        now = time.monotonic()
        if now - self.told < self.every or done >= self.total:
            return
        self.told = now
        left = (now - self.started) / done * (self.total - done) if done else None
        eta = "" if left is None else f", about {duration(left)} left"
        print(f"{self.label}: {done} of {self.total} {self.what}{eta}", flush=True)


class Progress:
    """Shows ``label  step/total  ETA``, figures and notes.

    In a terminal it is drawn in place (``live.py``); elsewhere it is a line now and then, broken
    between figures where it is longer than :func:`siri_train.terminal.lines.log_width`. The time
    between them is ``every`` at first, later a hundredth of the time so far, at most a minute.

    Args:
        label: what is running.
        total: number of steps.
        done: steps already done when it starts (a resumed run).
        every: seconds between lines where the output is not a terminal.
        unit: written before the number of those that are done.
    """

    def __init__(
        self, label: str, total: int, done: int = 0, every: float = 5.0, unit: str = ""
    ) -> None:
        self.label, self.total, self.first, self.unit = label, total, done, unit
        self.started = self.said = time.monotonic()
        self.shown = -float("inf")
        self.tty = _is_terminal() and os.environ.get("TERM") != "dumb"
        self.every = 0.1 if self.tty else every
        self.display: LiveDisplay | None = None
        self.done = done

    def update(
        self,
        done: int,
        message: str | Sequence[str] = "",
        figures: Mapping[str, Figure] | None = None,
        left: float | None = None,
    ) -> None:
        """Show that ``done`` of ``total`` steps are finished.

        Args:
            done: steps finished.
            message: what else there is to say, a line each; the first goes with the steps.
            figures: by name, each shown with its history where the output is a terminal.
            left: seconds to the end; None: as if all steps took equally long.
        """
        self.done = done
        now = time.monotonic()
        in_display = self.tty and figures  # their histories need every step
        if done < self.total and not in_display and not self._due(now, self.shown):
            return
        self.shown = self.said = now
        elapsed = now - self.started
        if left is None:
            left = elapsed / max(1, done - self.first) * (self.total - done)
        eta = f"ETA {duration(left)}" if done < self.total else f"in {duration(elapsed)}"
        notes = [message] if isinstance(message, str) else [*message]
        if self.tty:
            self._open().show(done, eta, notes, figures or {})
            if done >= self.total:
                self.close()
            return
        head = "  ".join(p for p in (self._counted(), *notes[:1], eta) if p)
        parts = [f"{name} {figure.text}" for name, figure in (figures or {}).items()]
        say([*joined(head, parts, log_width()), *(f"    {note}" for note in notes[1:] if note)])

    def status(self, text: str) -> None:
        """Show what is being done between two updates; as seldom as :meth:`update` prints."""
        now = time.monotonic()
        if not self._due(now, self.said):
            return
        if self.tty:
            self._open().status(text)
        else:
            say([f"{self._counted()}  {text}"])
        self.said = now

    def close(self) -> None:
        """Give the terminal back; the last state stays on it. Safe to call twice."""
        if self.display is not None:
            self.display.stop()
            self.display = None

    def _counted(self) -> str:
        unit = f"{self.unit} " if self.unit else ""
        return f"{self.label}  {unit}{self.done}/{self.total}"

    def _due(self, now: float, since: float) -> bool:
        every = self.every
        if not self.tty:
            every = min(max(every, (now - self.started) / 100), max(every, _SELDOM))
        return now - since >= every

    def _open(self) -> LiveDisplay:
        if self.display is None:
            from siri_train.monitor.live import LiveDisplay

            self.display = LiveDisplay(self.label, self.total, done=self.done, unit=self.unit)
        return self.display


def say(lines: Sequence[str]) -> None:
    """Print lines as standard output can show them; above the display, if there is one.

    Args:
        lines: without their ends.
    """
    print(encodable("\n".join(lines)), flush=True)
