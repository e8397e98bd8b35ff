"""Ending a run from outside: a signal asks, and the run ends with its state saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from siri_train import distributed

_INSIST = (signal.SIGINT, signal.SIGTERM)
"""The second of these ends the process at once. They are caught even where they were ignored: a
shell ignores Ctrl-C for what it starts in the background, and ``kill`` means it."""

_ASK = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")  # not on every system
    if hasattr(signal, name)
)
"""A terminal or connection that closes, a cluster's notice before its time limit (``--signal`` of
SLURM), a limit of CPU time. They may come several times and never insist. Where they are ignored,
as ``nohup`` ignores SIGHUP, they stay so."""


class Stopped(RuntimeError):
    """The run was asked to end and did, with its state saved; the message says how to continue.

    Args:
        message: for the user.
        signum: the signal that asked.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class StopRequest:
    """Whether somebody asked the run to end; read between decoding steps and between steps."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None

    def agreed(self) -> int | None:
        """The signal if any rank has got one, the same on every rank. Collective."""
        got = [signum for signum in distributed.gather(self.signum) if signum is not None]
        return got[0] if got else None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note the first signal that asks to end instead of dying of it.

    SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU ask. After a SIGINT or SIGTERM the next of
    these two acts as it would have without this. Outside the main thread, where Python allows no
    signal handlers, nothing is caught.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {signum: signal.getsignal(signum) for signum in (*_INSIST, *_ASK)}
    caught = [
        signum
        for signum, handler in before.items()
        # None: not Python's handler (faulthandler's), which could not be put back.
        if handler is not None and (signum in _INSIST or handler is not signal.SIG_IGN)
    ]

    def restore(signums: list[signal.Signals]) -> None:
        for signum in signums:
            signal.signal(signum, before[signum])

    def note(signum: int, frame: FrameType | None) -> None:
        if stop.signum is None:
            stop.signum = signum
        if signum in _INSIST:
            restore([one for one in caught if one in _INSIST])

    for signum in caught:
        signal.signal(signum, note)
    try:
        yield stop
    finally:
        restore(caught)
