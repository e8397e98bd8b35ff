"""Graceful shutdown: a signal ends the run with its state saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from siri_train import distributed
from siri_train.trainer.interrupts import SECOND_KILLS, STOP_ONLY, Interrupted, interrupt


class Stopped(RuntimeError):
    """A signal ended the run, with its state saved; the message says how to continue.

    Args:
        message: for the user.
        signum: the signal.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class StopRequest:
    """Whether the run is to end. It is read between decoding steps and between training steps."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._at_once = False

    def __bool__(self) -> bool:
        return self.signum is not None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside the block there is nothing to save, so a signal ends it at once.

        Raises:
            Interrupted: a signal arrives, or has arrived before.
        """
        self._at_once = True
        try:
            if self.signum is not None:
                raise Interrupted(self.signum)
            yield
        finally:
            self._at_once = False

    def note(self, signum: int) -> None:
        """Note a signal; the ones after the first change nothing.

        Raises:
            Interrupted: inside of :meth:`at_once`.
        """
        if self.signum is None:
            self.signum = signum
            if self._at_once:
                raise Interrupted(signum)

    def agreed(self) -> int | None:
        """The signal if any rank has received one, the same on every rank. Collective."""
        got = [signum for signum in distributed.gather(self.signum) if signum is not None]
        return got[0] if got else None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Inside the block the first signal is noted and does not end the process.

    This holds for SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU. After a SIGINT or SIGTERM
    the next of these two acts as it would have without this block. SIGINT and SIGTERM are caught
    even where they were ignored: a shell ignores Ctrl-C for what it starts in the background, but
    a ``kill`` is meant. The others stay ignored, as under ``nohup``. Outside the main thread, where
    Python allows no signal handlers, nothing is caught.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {signum: signal.getsignal(signum) for signum in (*SECOND_KILLS, *STOP_ONLY)}
    caught = [
        signum
        for signum, handler in before.items()
        # None: not Python's handler (faulthandler's), which could not be put back.
        if handler is not None and (signum in SECOND_KILLS or handler is not signal.SIG_IGN)
    ]

    def note(signum: int, frame: FrameType | None) -> None:
        if signum in SECOND_KILLS:
            for one in SECOND_KILLS:  # `interrupt` stands where the system's own was
                own = signal.SIG_DFL if before[one] is interrupt else before[one]
                if one in caught:
                    signal.signal(one, own)
        stop.note(signum)

    for signum in caught:
        signal.signal(signum, note)
    try:
        yield stop
    finally:
        for signum in caught:
            signal.signal(signum, before[signum])
