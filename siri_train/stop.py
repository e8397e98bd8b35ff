"""Ending a run from outside: the first Ctrl-C or SIGTERM asks, the second one insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from siri_train import distributed

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
    """Note the first SIGINT or SIGTERM instead of dying of it.

    The second one acts as it would have without this. Outside the main thread, where Python
    allows no signal handlers, nothing is caught.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {signum: signal.getsignal(signum) for signum in _SIGNALS}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def note(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        restore()

    for signum in _SIGNALS:
        signal.signal(signum, note)
    try:
        yield stop
    finally:
        restore()
