"""Keep one server running while one parent lives. It is run as a program, not imported.

    python supervisor.py PARENT_PID RESTARTS LOG COMMAND...

A server that ends is started again, with growing pauses, at most RESTARTS times in a row (after a
run of ten minutes the count starts anew). When the parent ends, or this program gets SIGTERM, the
server's whole session is killed: vLLM's engine and workers are processes of their own. It uses the
standard library only, so it starts fast and takes little memory.
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
"""The line in the log when the server has ended."""

_signals: list[int] = []


class Stop(Exception):
    """This program has got a signal, or the parent has ended."""


def main(parent: int, restarts: int, log_path: str, command: list[str]) -> int:
    """Run the server until it is stopped or has failed too often.

    Args:
        parent: process id of the trainer.
        restarts: how often in a row the server is started again.
        log_path: the file for everything that is printed.
        command: the server's.

    Returns:
        0 when stopped, 1 when the server has failed too often.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        _signals.append(number)  # handled at the next check, between two steps

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is the parent's
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
    """Run the command once; no process of it is left afterwards."""
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
        # Before server.wait(): until then the process id cannot be reused.
        _kill_session(server.pid, signal.SIGKILL)
        server.wait()
    return server.returncode


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _check(parent: int) -> None:
    if _signals or os.getppid() != parent:
        raise Stop


def _kill_session(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):  # macOS: PermissionError where all are dead
        pass


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]))
