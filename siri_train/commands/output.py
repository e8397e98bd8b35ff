"""Output that does not stop a run: what cannot be written is dropped."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from siri_train.terminal.encodable import encodable

__all__ = ["DroppingStream", "claim_descriptors", "encodable", "tolerant_output"]


class DroppingStream:
    """A text stream whose reader may go away (``| head``, a connection that closes).

    Everything else is the stream's own.

    Args:
        stream: where the text goes; None, as Python has it where the descriptor is closed: nowhere.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream: Any = stream if stream is not None else _nowhere()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop the text where that is impossible; returns its length."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:  # a stream whose errors could not be set
            with suppress(OSError, ValueError):
                self._stream.write(text.encode("ascii", "backslashreplace").decode())
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._lost(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write one after the other."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, or drop what has not been written."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        if isinstance(error, BlockingIOError):
            return  # full for the moment; this text is lost, the next may not be
        try:
            # What is buffered, and what child processes write, goes nowhere too: else the
            # interpreter would complain when it flushes at its end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self._stream.fileno())
            finally:
                os.close(nowhere)
        except (OSError, ValueError):  # no descriptor, or none to be had
            self._stream = _nowhere()


@contextmanager
def tolerant_output() -> Iterator[None]:
    r"""Inside the block ``sys.stdout`` and ``sys.stderr`` take every text and never raise.

    What their encoding lacks is written as an escape (``\u540d``).
    """
    before = sys.stdout, sys.stderr
    modes = [_set_errors(stream, "backslashreplace") for stream in before]
    sys.stdout, sys.stderr = map(DroppingStream, before)
    try:
        yield
    finally:
        for dropping in (sys.stdout, sys.stderr):
            dropping.flush()
        sys.stdout, sys.stderr = before
        for stream, mode in zip(before, modes, strict=True):
            _set_errors(stream, mode)


def claim_descriptors() -> None:
    """Open descriptors 0 to 2 to nowhere where they are closed (``>&-``).

    Otherwise the next file opened would get the number, and what is printed would end in it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _set_errors(stream: Any, errors: str | None) -> str | None:
    """Set how a stream treats what it cannot encode; what it did before, None if it has no say."""
    before = getattr(stream, "errors", None)
    if errors is None or not isinstance(stream, io.TextIOWrapper):
        return None
    with suppress(OSError, ValueError):
        stream.reconfigure(errors=errors)
    return before


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")
