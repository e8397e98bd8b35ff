"""Signals that ask a command to end, where it has nothing to save: it ends at once, and cleanly.

Standard library only: the handlers must be there before anything slow is imported.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INSIST = (signal.SIGINT, signal.SIGTERM)
"""The second of these ends a process at once."""

ASK = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")  # not on every system
    if hasattr(signal, name)
)
"""A terminal or connection that closes, a cluster's notice before its time limit (``--signal`` of
SLURM), a limit of CPU time. They may come several times and never insist."""


class Interrupted(KeyboardInterrupt):
    """A signal has ended the work. Like Ctrl-C's own exception, no library takes it for an error.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def interrupt(signum: int, frame: FrameType | None) -> None:
    """A signal handler that raises :class:`Interrupted`, once.

    What cleans up afterwards is not disturbed by others of :data:`ASK`; the next SIGTERM acts as
    the system has it.
    """
    for other in (*INSIST, *ASK):
        if signal.getsignal(other) is interrupt:
            signal.signal(other, signal.SIG_DFL if other in INSIST else _pass)
    raise Interrupted(signum)


def _pass(signum: int, frame: FrameType | None) -> None:
    """Unlike SIG_IGN it is not inherited by processes that are started meanwhile."""


@contextmanager
def interrupting() -> Iterator[None]:
    """Inside the block, signals that would kill the process raise :class:`Interrupted` instead.

    SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU do; SIGINT raises KeyboardInterrupt as ever. One
    that is ignored (``nohup``) or has a handler keeps it. Outside the main thread, where Python
    allows no signal handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [
        signum
        for signum in (*INSIST, *ASK)
        if signum != signal.SIGINT and signal.getsignal(signum) is signal.SIG_DFL
    ]
    for signum in taken:
        signal.signal(signum, interrupt)
    try:
        yield
    finally:
        for signum in taken:
            signal.signal(signum, signal.SIG_DFL)
