"""One helper process of a pool: its pipes, its clock, its end."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LONGEST_LINE = 1 << 20
# Between the request to end and the end by force.
_PARTING_S = 2.0

# Sent from outside, by the pool, a user or the system; every other signal is the process's own.
_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


@dataclass(eq=False)
class Worker:
    """A running process and the item it has.

    Args:
        process: with pipes to its standard input and output.
        item: index of the item it works on, or None.
        deadline: of that item, on the monotonic clock.
        buffer: what it has written and nobody has read.
        fresh: it has answered nothing yet.
    """

    process: subprocess.Popen[bytes]
    item: int | None = None
    deadline: float = 0.0
    buffer: bytes = field(default=b"", repr=False)
    fresh: bool = True
    _cpu_before: float | None = None

    @classmethod
    def start(cls, command: list[str], environment: Mapping[str, str] | None = None) -> Worker:
        """Start ``command``, with this process's environment or a given one.

        Raises OSError if it cannot be.

        It leads a session of its own, so that what it starts can be ended with it.
        """
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )
        return cls(process)

    def send(self, item: dict[str, Any], until: float) -> None:
        """Write one item.

        Args:
            item: a JSON object.
            until: when to give up, on the monotonic clock; a pipe takes 64 KiB that nobody reads.

        Raises:
            OSError: the process is gone; TimeoutError: it does not read.
        """
        assert self.process.stdin is not None
        pipe = self.process.stdin.fileno()
        os.set_blocking(pipe, False)
        left = memoryview(json.dumps(item).encode() + b"\n")
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_WRITE)
            while left:
                if not selector.select(max(0.0, until - time.monotonic())):
                    raise TimeoutError("the process does not read its input")
                try:
                    left = left[os.write(pipe, left) :]
                except BlockingIOError:
                    pass

    def begin(self, index: int, wall_s: float) -> None:
        """It has item ``index`` from now on, for ``wall_s`` seconds."""
        self.item, self.deadline = index, time.monotonic() + wall_s
        self._cpu_before = _cpu_seconds(self.process.pid)

    def cpu_used(self) -> float | None:
        """Processor seconds since :meth:`begin`; None where the system does not say."""
        now = _cpu_seconds(self.process.pid)
        return None if now is None or self._cpu_before is None else now - self._cpu_before

    def stop(self) -> str | None:
        """End the process and whatever it has started.

        Returns:
            How it had ended by itself (``"exit status 3"``, ``"SIGSEGV"``), None if it was running
            or had been ended from outside.
        """
        ended = self.process.poll()
        if ended is None and self._closed_its_end():
            try:  # its pipe is at its end: it is dying; what of, is known in a moment
                ended = self.process.wait(1.0)
            except subprocess.TimeoutExpired:
                pass
        if ended is None:
            self.process.terminate()
            try:  # time to collect what it has started
                self.process.wait(_PARTING_S)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # its session; it may be gone itself
        except (ProcessLookupError, PermissionError):
            pass
        if ended is None:
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass
        self.process.wait()
        if ended is None or -ended in _OUTSIDE:
            return None
        return f"exit status {ended}" if ended >= 0 else signal.Signals(-ended).name

    def read_line(self, until: float) -> bytes | None:
        """One line; None when the time is over or the process is gone."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.buffer:
                left = until - time.monotonic()
                if left <= 0 or not selector.select(left) or not self.fill():
                    return None
        return self.take_line()

    def fill(self) -> bool:
        """Read what is there; False at the end of the stream, or of a line without end."""
        assert self.process.stdout is not None
        chunk = os.read(self.process.stdout.fileno(), 1 << 16)
        self.buffer += chunk
        return bool(chunk) and len(self.buffer) <= _LONGEST_LINE

    def take_line(self) -> bytes | None:
        """The first whole line of the buffer, without its end; None if there is none."""
        line, newline, rest = self.buffer.partition(b"\n")
        if not newline:
            return None
        self.buffer = rest
        return line

    def _closed_its_end(self) -> bool:
        stdout = self.process.stdout
        if stdout is None or stdout.closed:
            return False
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(0):
                return False
        return not os.read(stdout.fileno(), 1 << 16)


def _cpu_seconds(pid: int) -> float | None:
    """Processor seconds of a process so far; None where the system has no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
    # Behind the name in parentheses, which may hold blanks: fields 14 and 15 of the line.
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / ticks
