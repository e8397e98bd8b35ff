"""A few helper processes that answer one item at a time and are replaced when they hang or die.

Plain subprocesses and pipes rather than ``multiprocessing``: nothing of the caller's main module is
imported again, nothing is forked next to CUDA, no signal or alarm is touched in the caller's
process, and any thread may call.
"""

from __future__ import annotations

import json
import os
import selectors
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from siri_train.rewards.worker import Worker

_START_S = 120.0
# Seconds between two readings of the workers' processor time.
_LOOK_S = 0.5


class WorkerStartError(RuntimeError):
    """A helper process could not be started; the message carries its reason."""


class Answers(NamedTuple):
    """The results of one call.

    Attributes:
        answers: one JSON object an item, in order; None where there is none.
        own: indices of items that have no answer because of what they are: they used up their
            processor time or crashed two processes. The others could not be judged: their processes
            were stopped, killed from outside or gave unreadable output twice, or the budget was
            used up.
    """

    answers: list[dict[str, Any] | None]
    own: set[int]


class WorkerPool:
    """Runs ``script`` in up to ``workers`` processes and hands them items over pipes.

    The script writes ``{"ready": true}`` or ``{"error": reason}`` as its first line, then one JSON
    object for every JSON object it reads. A line that is no JSON object counts as a crash.

    An item whose process hangs, dies or gives unreadable output is sent once more, to another
    process and after all others. One that burns processor time is not: the next process would, too.

    Args:
        script: path of a Python file, run with this interpreter.
        arguments: its command line.
        flags: of the interpreter.
        environment: of the processes; None: this process's.
        workers: most processes at a time; they start when there is work for them.
        wall_s: wall-clock seconds an item may take before its process is killed.
        cpu_s: processor seconds that an item may take, as far as the system tells them; after twice
            as many its process is killed. None: no limit.
    """

    def __init__(
        self,
        script: str,
        arguments: Sequence[str],
        *,
        workers: int,
        wall_s: float,
        cpu_s: float | None = None,
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = [sys.executable, *flags, script, *arguments]
        self._environment = environment
        self._most = workers
        self._wall_s = wall_s
        self._cpu_s = cpu_s
        self._lock = threading.RLock()
        self._workers: list[Worker] = []
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

    def map(
        self, items: Sequence[dict[str, Any]], *, budget_s: float | None = None
    ) -> list[dict[str, Any] | None]:
        """The answers of :meth:`run`."""
        return self.run(items, budget_s=budget_s).answers

    def run(self, items: Sequence[dict[str, Any]], *, budget_s: float | None = None) -> Answers:
        """Answer every item, in order.

        Args:
            items: JSON objects.
            budget_s: wall-clock seconds for all of them together, the first start of processes
                not counted; None: as long as it takes.

        Returns:
            ``Answers``: one answer an item or None, and which of the latter are the item's doing.

        Raises:
            WorkerStartError: no worker can be started.
        """
        with self._lock:
            self._leave_parents_workers()
            call = _Call(items, None if budget_s is None else time.monotonic() + budget_s)
            try:
                while call.waiting or any(worker.item is not None for worker in self._workers):
                    if call.over:
                        self._abandon()
                        break
                    self._hand_out(call)
                    self._collect(call)
            except BaseException:
                # Half-answered workers would answer the next call with this call's results.
                _stop_all(self._workers, self._owner)
                raise
            return Answers(call.results, call.own)

    def _hand_out(self, call: _Call) -> None:
        while call.waiting:
            idle = next((worker for worker in self._workers if worker.item is None), None)
            if idle is None:
                if len(self._workers) >= self._most:
                    return
                call.pause(lambda: self._start(min(len(call.waiting), self._room)))
                continue
            index = call.waiting.popleft()
            until = time.monotonic() + self._wall_s
            try:
                idle.send(
                    call.items[index], until if call.until is None else min(until, call.until)
                )
            except OSError as error:
                self._drop(idle)
                if idle.fresh or isinstance(error, TimeoutError):
                    # One that reads nothing: so may all that are started in its place.
                    call.failed(index, own=False)
                else:  # it died while idle: not the item's fault
                    call.waiting.appendleft(index)
                continue
            idle.begin(index, self._wall_s)

    def _collect(self, call: _Call) -> None:
        busy = [worker for worker in self._workers if worker.item is not None]
        if not busy:
            return
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            first = min(worker.deadline for worker in busy)
            if call.until is not None:
                first = min(first, call.until)
            wait = max(0.0, first - time.monotonic())
            ready = selector.select(wait if self._cpu_s is None else min(wait, _LOOK_S))
        for key, _ in ready:
            worker = key.data
            assert worker.item is not None
            if not worker.fill():
                call.failed(worker.item, own=self._drop(worker) is not None)
                continue
            line = worker.take_line()
            if line is None:
                continue
            answer = _object(line)
            if answer is None or worker.buffer:  # a line too many would answer the next item
                call.failed(worker.item, own=False)
                self._drop(worker)
                continue
            call.results[worker.item] = answer
            worker.item, worker.fresh = None, False
        now = time.monotonic()
        for worker in busy:
            if worker.item is None or worker not in self._workers:
                continue
            # In units of the limit, which a process in a long C call does not see itself.
            burnt = (worker.cpu_used() or 0.0) / self._cpu_s if self._cpu_s else 0.0
            if burnt >= (1 if now >= worker.deadline else 2):
                call.own.add(worker.item)
            elif now >= worker.deadline:  # stopped, or on a machine that is too busy
                call.failed(worker.item, own=False)
            else:
                continue
            self._drop(worker)

    @property
    def _room(self) -> int:
        return self._most - len(self._workers)

    def _start(self, count: int) -> None:
        """Start ``count`` workers at the same time; one that comes up is enough to go on."""
        started, reason = [], ""
        for _ in range(count):
            try:
                started.append(Worker.start(self._command, self._environment))
            except OSError as error:
                reason = f"could not start {self._command[0]}: {error}"
                break
        # In the list before they are ready: whatever happens now, close() ends them.
        self._workers += started
        until = time.monotonic() + _START_S
        for worker in started:
            line = worker.read_line(until)
            reply = (_object(line) if line else None) or {}
            if not reply.get("ready"):
                self._drop(worker)
                said = f"its first line was {line[:60]!r}" if line and not reply else ""
                code = worker.process.returncode
                ended = f"it ended before it was ready (exit status {code})"
                reason = reply.get("error") or said or ended
        if not self._workers:
            raise WorkerStartError(reason)

    def _abandon(self) -> None:
        """End the workers that are busy: what they would say belongs to this call."""
        for worker in [worker for worker in self._workers if worker.item is not None]:
            self._drop(worker)

    def _drop(self, worker: Worker) -> str | None:
        """End a worker; how it had crashed if it had by itself, else None."""
        self._workers.remove(worker)
        return worker.stop()

    def _leave_parents_workers(self) -> None:
        """After a fork the pipes belong to the parent: start processes of our own."""
        if self._owner != os.getpid():
            self._finalizer.detach()
            self._workers = []
            self._owner = os.getpid()
            self._finalizer = weakref.finalize(self, _stop_all, self._workers, self._owner)


class _Call:
    """One call of :meth:`WorkerPool.map`: what is waiting, what is known, what has failed once."""

    def __init__(self, items: Sequence[dict[str, Any]], until: float | None) -> None:
        self.items, self.until = items, until
        self.results: list[dict[str, Any] | None] = [None] * len(items)
        self.waiting = deque(range(len(items)))
        self.own: set[int] = set()
        self._before: dict[int, bool] = {}
        self._started = False

    @property
    def over(self) -> bool:
        """Whether the budget is used up."""
        return self.until is not None and time.monotonic() >= self.until

    def failed(self, index: int, own: bool) -> None:
        """An item failed, ``own``: by its own doing. The first time it goes to the end."""
        if index not in self._before:
            self._before[index] = own
            self.waiting.append(index)
        elif own and self._before[index]:
            self.own.add(index)

    def pause(self, start: Callable[[], None]) -> None:
        """Run ``start``, the first time outside the budget.

        The first processes take seconds to come up. Later ones replace processes that items have
        ended, and their start counts.
        """
        begun = time.monotonic()
        start()
        if self.until is not None and not self._started:
            self.until += time.monotonic() - begun
        self._started = True


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _stop_all(workers: list[Worker], owner: int) -> None:
    if os.getpid() == owner:
        while workers:
            workers.pop().stop()
