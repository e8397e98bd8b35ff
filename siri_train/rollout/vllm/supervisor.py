"""Keeps one server running for as long as one parent lives. Run as a program, not imported.

    python supervisor.py PARENT_PID RESTARTS LOG COMMAND...

A server that ends is started again, with growing pauses, at most RESTARTS times in a row (one
that ran for ten minutes counts anew). When the parent dies, of whatever, or this program is told to
stop, the server's whole session is killed: vLLM's engine and workers are processes of their own.
Standard library only, so it starts at once and holds no memory.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import FrameType

_POLL = 0.2
_LONG = 600.0


ENDED = "supervisor: the server ended"
"""What the log says then."""

_told: list[int] = []


class Stop(Exception):
    """Asked to end, or the parent is gone."""


def main(parent: int, restarts: int, log_path: str, command: list[str]) -> int:
    """Returns 0 when stopped, 1 when it has given up."""

    def stop(number: int, frame: FrameType | None) -> None:
        _told.append(number)  # looked at where nothing can be left half done

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent decides
    failures = 0
    with open(log_path, "ab", buffering=0) as log:
        try:
            while True:
                log.write(f"supervisor: start: {' '.join(command)}\n".encode())
                began = time.monotonic()
                status = _serve(parent, command, log.fileno())
                failures = 1 if time.monotonic() - began > _LONG else failures + 1
                log.write(f"{ENDED}, status {status}\n".encode())
                if failures > restarts:
                    log.write(f"supervisor: gives up after {restarts} restarts\n".encode())
                    return 1
                until = time.monotonic() + min(2.0**failures / 2, 30.0)
                while time.monotonic() < until:
                    _check(parent)
                    time.sleep(_POLL)
        except Stop:
            return 0


def _serve(parent: int, command: list[str], log: int) -> int:
    """Run the command once, and nothing of it is left afterwards."""
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    try:
        while not _ended(server.pid):
            _check(parent)
            time.sleep(_POLL)
    except BaseException:
        _kill_session(server.pid, signal.SIGTERM)
        until = time.monotonic() + 5
        while not _ended(server.pid) and time.monotonic() < until:
            time.sleep(_POLL)
        raise
    finally:
        # Before the leader is waited for: until then its number cannot be another's.
        _kill_session(server.pid, signal.SIGKILL)
        server.wait()
    return server.returncode


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _check(parent: int) -> None:
    if _told or os.getppid() != parent:
        raise Stop


def _kill_session(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):  # macOS: PermissionError where all are dead
        pass


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]))
