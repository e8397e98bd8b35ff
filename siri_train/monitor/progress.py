"""Progress: a live display in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from siri_train.monitor.live import Figure, LiveDisplay


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
    """Shows ``label  step/total  figures  message  ETA``.

    In a terminal it is drawn in place (``live.py``); elsewhere it is a line now and then.

    Args:
        label: what is running.
        total: number of steps.
        done: steps already done when it starts (a resumed run).
        every: seconds between lines where the output is not a terminal.
    """

    def __init__(self, label: str, total: int, done: int = 0, every: float = 5.0) -> None:
        self.label, self.total, self.first = label, total, done
        self.started = time.monotonic()
        self.shown = -float("inf")
        self.tty = _is_terminal() and os.environ.get("TERM") != "dumb"
        self.every = 0.1 if self.tty else every
        self.display: LiveDisplay | None = None
        self.last: tuple[int, str, Mapping[str, Figure] | None] = (done, "", None)

    def update(self, done: int, message: str, figures: Mapping[str, Figure] | None = None) -> None:
        """Show that ``done`` of ``total`` steps are finished.

        Args:
            done: steps finished.
            message: the rest of the line.
            figures: by name, each shown with its history where the output is a terminal.
        """
        self.last = (done, message, figures)
        now = time.monotonic()
        in_display = self.tty and figures  # their histories need every step
        if done < self.total and not in_display and now - self.shown < self.every:
            return
        self.shown = now
        elapsed = now - self.started
        left = elapsed / max(1, done - self.first) * (self.total - done)
        eta = f"ETA {duration(left)}" if done < self.total else f"in {duration(elapsed)}"
        if self.tty:
            self._open().show(done, eta, message, figures or {})
            if done >= self.total:
                self.close()
            return
        shown = "  ".join(f"{name} {figure.text}" for name, figure in (figures or {}).items())
        parts = (f"{self.label}  {done}/{self.total}", shown, message, eta)
        print("  ".join(part for part in parts if part), flush=True)

    def status(self, text: str) -> None:
        """Show what is being done between two updates; as seldom as :meth:`update` prints."""
        now = time.monotonic()
        if now - max(self.shown, self.started) < self.every:
            return
        if self.tty:
            self._open().status(text)
        else:
            done, message, figures = last = self.last
            self.update(done, "  ".join(p for p in (message, text) if p), figures)
            self.last = last
        self.shown = now

    def close(self) -> None:
        """Give the terminal back; the last state stays on it. Safe to call twice."""
        if self.display is not None:
            self.display.stop()
            self.display = None

    def _open(self) -> LiveDisplay:
        if self.display is None:
            from siri_train.monitor.live import LiveDisplay

            self.display = LiveDisplay(self.label, self.total)
        return self.display
