"""Progress in the terminal: one line rewritten there, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time


def duration(seconds: float) -> str:
    """Seconds as ``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Shows ``label  step/total  message  ETA``.

    Args:
        label: what is running.
        total: number of steps.
        done: steps already done when it starts (a resumed run).
        every: seconds between lines where the output is not a terminal.
    """

    def __init__(self, label: str, total: int, done: int = 0, every: float = 5.0) -> None:
        self.label, self.total, self.first, self.every = label, total, done, every
        self.started = time.monotonic()
        self.shown = -float("inf")
        self.tty = sys.stdout.isatty()

    def update(self, done: int, message: str) -> None:
        """Show that ``done`` of ``total`` steps are finished."""
        now = time.monotonic()
        if done < self.total and now - self.shown < (0.1 if self.tty else self.every):
            return
        self.shown = now
        elapsed = now - self.started
        left = elapsed / max(1, done - self.first) * (self.total - done)
        eta = f"ETA {duration(left)}" if done < self.total else f"in {duration(elapsed)}"
        line = f"{self.label}  {done}/{self.total}  {message}  {eta}"
        if self.tty:
            print(f"\r\033[K{line}", end="\n" if done >= self.total else "", flush=True)
        else:
            print(line, flush=True)

    def interrupt(self) -> None:
        """Leave the line so that something else can be printed."""
        if self.tty:
            print(flush=True)
