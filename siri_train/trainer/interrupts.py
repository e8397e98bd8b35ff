"""Signals that end a command which has nothing to save: at once, and cleanly.

Standard library only: the handlers must be there before anything slow is imported.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SECOND_KILLS = (signal.SIGINT, signal.SIGTERM)
"""The second of these ends a process at once."""

STOP_ONLY = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")  # not on every system
    if hasattr(signal, name)
)
"""The terminal or connection closes, a cluster's notice before its time limit (``--signal`` of
SLURM), a limit of CPU time. However often they come, they do not kill the process."""


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

    Others of :data:`STOP_ONLY` do not disturb the clean-up that follows; the next SIGTERM acts as
    the system has it.

    Args:
        signum: the signal.
        frame: where it arrived; not used.

    Raises:
        Interrupted: always.
    """
    for other in (*SECOND_KILLS, *STOP_ONLY):
        if signal.getsignal(other) is interrupt:
            signal.signal(other, signal.SIG_DFL if other in SECOND_KILLS else _pass)
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
        for signum in (*SECOND_KILLS, *STOP_ONLY)
        if signum != signal.SIGINT and signal.getsignal(signum) is signal.SIG_DFL
    ]
    for signum in taken:
        signal.signal(signum, interrupt)
    try:
        yield
    finally:
        for signum in taken:
            signal.signal(signum, signal.SIG_DFL)
