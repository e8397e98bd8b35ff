"""A few helper processes that answer one item at a time and are replaced when they hang or die.

Plain subprocesses and pipes rather than ``multiprocessing``: nothing of the caller's main module is
imported again, nothing is forked next to CUDA, no signal or alarm is touched in the caller's
process, and any thread may call.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_START_S = 120.0


class WorkerStartError(RuntimeError):
    """A helper process could not be started; the message carries its reason."""


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    item: int | None = None
    deadline: float = 0.0
    buffer: bytes = field(default=b"", repr=False)

    def stop(self) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass
        self.process.wait()

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
        """Read what is there; False at the end of the stream."""
        assert self.process.stdout is not None
        chunk = os.read(self.process.stdout.fileno(), 1 << 16)
        self.buffer += chunk
        return bool(chunk)

    def take_line(self) -> bytes | None:
        line, newline, rest = self.buffer.partition(b"\n")
        if not newline:
            return None
        self.buffer = rest
        return line


class WorkerPool:
    """Runs ``script`` in up to ``workers`` processes and hands them items over pipes.

    The script writes ``{"ready": true}`` or ``{"error": reason}`` as its first line, then one JSON
    object for every JSON object it reads.

    Args:
        script: path of a Python file, run with this interpreter.
        arguments: its command line.
        workers: most processes at a time; they start when there is work for them.
        wall_s: wall-clock seconds an item may take before its process is killed.
    """

    def __init__(
        self, script: str, arguments: Sequence[str], *, workers: int, wall_s: float
    ) -> None:
        self._command = [sys.executable, script, *arguments]
        self._most = workers
        self._wall_s = wall_s
        self._lock = threading.RLock()
        self._workers: list[_Worker] = []
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _stop_all, self._workers, self._owner)

    @property
    def pids(self) -> list[int]:
        """Process ids of the running workers."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """End the processes. The pool may be used again: they start anew."""
        with self._lock:
            _stop_all(self._workers, self._owner)

    def map(self, items: Sequence[dict[str, Any]]) -> list[dict[str, Any] | None]:
        """Answer every item, in order.

        Args:
            items: JSON objects.

        Returns:
            One answer an item; None where the item ran past its time, or killed its process twice.

        Raises:
            WorkerStartError: no worker can be started.
        """
        with self._lock:
            self._leave_parents_workers()
            results: list[dict[str, Any] | None] = [None] * len(items)
            waiting = deque(range(len(items)))
            crashed: set[int] = set()
            try:
                while waiting or any(worker.item is not None for worker in self._workers):
                    self._hand_out(items, waiting, crashed)
                    self._collect(results, waiting, crashed)
            except BaseException:
                # Half-answered workers would answer the next call with this call's results.
                _stop_all(self._workers, self._owner)
                raise
            return results

    def _hand_out(
        self, items: Sequence[dict[str, Any]], waiting: deque[int], crashed: set[int]
    ) -> None:
        while waiting:
            idle = next((worker for worker in self._workers if worker.item is None), None)
            if idle is None:
                if len(self._workers) >= self._most:
                    return
                self._start(min(len(waiting), self._most - len(self._workers)))
                continue
            index = waiting.popleft()
            try:
                assert idle.process.stdin is not None
                idle.process.stdin.write(json.dumps(items[index]).encode() + b"\n")
                idle.process.stdin.flush()
            except OSError:  # it died while idle: not the item's fault
                self._drop(idle)
                waiting.appendleft(index)
                continue
            idle.item, idle.deadline = index, time.monotonic() + self._wall_s

    def _collect(
        self, results: list[dict[str, Any] | None], waiting: deque[int], crashed: set[int]
    ) -> None:
        busy = [worker for worker in self._workers if worker.item is not None]
        if not busy:
            return
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            first = min(worker.deadline for worker in busy)
            ready = selector.select(max(0.0, first - time.monotonic()))
        for key, _ in ready:
            worker = key.data
            index = worker.item
            if not worker.fill():
                self._drop(worker)
                if index not in crashed:  # once may be bad luck; a fresh process tries again
                    crashed.add(index)
                    waiting.append(index)
                continue
            line = worker.take_line()
            if line is not None:
                results[index] = json.loads(line)
                worker.item = None
        now = time.monotonic()
        for worker in busy:
            if worker.item is not None and worker in self._workers and now >= worker.deadline:
                self._drop(worker)

    def _start(self, count: int) -> None:
        """Start ``count`` workers at the same time; one that comes up is enough to go on."""
        started, reason = [], ""
        for _ in range(count):
            try:
                process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            except OSError as error:
                reason = f"could not start {self._command[0]}: {error}"
                break
            started.append(_Worker(process))
        # In the list before they are ready: whatever happens now, close() ends them.
        self._workers += started
        until = time.monotonic() + _START_S
        for worker in started:
            line = worker.read_line(until)
            reply = json.loads(line) if line else {}
            if not reply.get("ready"):
                self._drop(worker)
                code = worker.process.returncode
                reason = reply.get("error") or f"it ended before it was ready (exit status {code})"
        if not self._workers:
            raise WorkerStartError(reason)

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.stop()

    def _leave_parents_workers(self) -> None:
        """After a fork the pipes belong to the parent: start processes of our own."""
        if self._owner != os.getpid():
            self._finalizer.detach()
            self._workers = []
            self._owner = os.getpid()
            self._finalizer = weakref.finalize(self, _stop_all, self._workers, self._owner)


def _stop_all(workers: list[_Worker], owner: int) -> None:
    if os.getpid() == owner:
        while workers:
            workers.pop().stop()
