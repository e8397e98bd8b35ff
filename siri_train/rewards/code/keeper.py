"""The process that forks a program and its tests, watches both and ends them.

It never holds a program or a test itself: what it forks reads its own from a pipe. So there is
nothing to be found in the memory of a program but the program.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from siri_train.rewards.code import judge, program, promises
from siri_train.rewards.code.isolation import (
    die_first,
    end_with_parent,
    enter_namespaces,
    shut_in,
)

MODULES = tuple(
    """
    abc array ast base64 bisect calendar cmath codecs collections collections.abc colorsys
    contextlib copy csv dataclasses datetime decimal difflib encodings.ascii encodings.idna
    encodings.latin_1 encodings.unicode_escape encodings.utf_16 enum fractions functools gc
    graphlib hashlib heapq hmac html inspect io itertools json keyword linecache locale math
    numbers operator os pprint queue random re secrets stat statistics string struct sys textwrap
    threading time timeit token tokenize traceback types typing unicodedata unittest uuid warnings
    weakref zlib _strptime
    """.split()
)
"""Modules of Python that a program may import. No file can be opened later."""

_SLICE_S = 0.05


def serve(channel: socket.socket, layers: set[str]) -> None:
    """Say what holds, then run a program and its tests for every request, until the channel ends.

    Args:
        channel: a request is a JSON line ``{"limit_s": seconds}`` with seven descriptors, three for
            the program and four for the tests. A reply is a JSON line that says how they ended.
        layers: of isolation, which to put on.
    """
    for name in MODULES:
        importlib.import_module(name)
    time.tzset()
    time.strptime("2000", "%Y")
    held = enter_namespaces(layers)
    memory = _address_space() + promises.MEMORY
    more, kept = _probe(layers, memory)
    gc.collect()
    gc.freeze()
    _send(channel, {"layers": [*more[:1], *held, *more[1:]], "promises": kept})
    while True:
        line, descriptors, _, _ = socket.recv_fds(channel, 1 << 12, 7)
        if not line:
            return
        _send(channel, _run(json.loads(line)["limit_s"], descriptors, set(more), memory, channel))


def _run(
    limit_s: float, given: list[int], layers: set[str], memory: int, channel: socket.socket
) -> dict[str, Any]:
    done, ending = os.pipe()
    # The last descriptor of the tests only tells that they have ended.
    theirs = ((program.run, given[:3]), (judge.run, [*given[3:], ending]))
    pids = [_fork(run, keep, layers, memory, limit_s) for run, keep in theirs]
    for descriptor in (*given, ending):
        os.close(descriptor)
    watch = _Watch(pids, limit_s)
    poll = select.poll()
    poll.register(done, select.POLLIN | select.POLLHUP)
    poll.register(channel, 0)  # it ends: nobody wants to know any more
    late = False
    while not poll.poll(1000 * min(_SLICE_S, limit_s / 2)):
        if watch.over():
            late = True
            break
    os.close(done)
    statuses = [_end(pid) for pid in pids]
    return {"late": late, "program": statuses[0], "tests": statuses[1]}


class _Watch:
    """The time that two processes have had."""

    def __init__(self, pids: list[int], limit_s: float) -> None:
        self._pids, self._limit_s = pids, limit_s
        self._began = time.monotonic()

    def over(self) -> bool:
        """Whether one has used up its processor time, or both together the time to wait.

        What a runnable process waits for a processor is the machine's doing and not counted.
        Sleeping is the program's.
        """
        if any(_cpu_seconds(pid) >= self._limit_s for pid in self._pids):
            return True
        passed = time.monotonic() - self._began
        waited = [_queued_seconds(pid) for pid in self._pids]
        if None in waited:
            return passed >= 3 * self._limit_s + 2
        return passed - sum(w or 0.0 for w in waited) >= 1.5 * self._limit_s


def _fork(
    run: Callable[..., None], keep: Iterable[int], layers: set[str], memory: int, limit_s: float
) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _child(run, list(keep), layers, memory, limit_s, parent)
    return pid


def _child(
    run: Callable[..., None],
    keep: list[int],
    layers: set[str],
    memory: int,
    limit_s: float,
    parent: int,
) -> NoReturn:
    status = 1
    try:
        places = _alone(keep)
        # A parent that ended before end_with_parent() ends nobody: this would be left behind.
        watched = os.getppid() == parent
        # Nothing runs where a layer that held before cannot be put on any more.
        if watched and set(shut_in(layers, memory=memory, seconds=limit_s)) == layers:
            run(*places)
        status = 0
    finally:
        os._exit(status)


def _alone(keep: list[int]) -> list[int]:
    """Be a session of one's own with these descriptors and no others; where they are now."""
    os.setsid()
    end_with_parent()
    os.chdir("/")
    die_first()
    null = os.open(os.devnull, os.O_RDWR)
    high = 64
    for offset, descriptor in enumerate(keep):
        os.dup2(descriptor, high + offset, inheritable=False)
    for standard in range(3):
        os.dup2(null, standard)
    os.closerange(3, high)
    for offset in range(len(keep)):
        os.dup2(high + offset, 3 + offset, inheritable=False)
    os.closerange(3 + len(keep), high + len(keep) + 1)
    return list(range(3, 3 + len(keep)))


def _end(pid: int) -> int:
    """End a process with its session; its exit status, negative for a signal."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _probe(layers: set[str], memory: int) -> tuple[list[str], list[str]]:
    """The layers that a child can put on, and the promises that hold for it then."""
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            (place,) = _alone([there])
            held = shut_in(layers, memory=memory, seconds=10)
            os.write(place, json.dumps([held, promises.kept()]).encode())
        finally:
            os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as file:
        said = file.read()
    _end(pid)
    held, kept = json.loads(said) if said else ([], [])
    return held, kept


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    channel.sendall(json.dumps(message).encode("ascii") + b"\n")


def _cpu_seconds(pid: int) -> float:
    """Processor seconds of a process so far, from the clock that the kernel gives it."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def _queued_seconds(pid: int) -> float | None:
    """Seconds that a process could have run but waited for a processor; None: not known."""
    try:
        with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None


def _address_space() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
