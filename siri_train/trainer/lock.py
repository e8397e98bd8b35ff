"""One run a folder: a lock that names its holder and ends with it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from siri_train import distributed
from siri_train.config.base import ConfigError
from siri_train.config.paths import check_run_folder, folder_made, user_path
from siri_train.files import shown

NAME = ".siri-train.lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}
BEAT = 15.0
"""Seconds between two heartbeats of a holder: the lock file's modification time."""
SILENT = 600.0
"""A holder on another machine without a heartbeat for so many seconds is gone, whatever the clocks
of the two machines say; after a younger one the next is waited for."""


@contextmanager
def run_lock(folder: Path, key: str = "output") -> Iterator[None]:
    """Hold the run's folder for as long as the body runs; rank 0 does it for all ranks.

    First it makes the folder and writes a file there, so a folder that cannot be written is refused
    before the work. A folder that is still empty at the end is removed again.

    The lock is the kernel's (``flock``), which ends with the process; the file names the holder. A
    lock file that an ended process has left is taken over. Where the file system has no such locks,
    or the file names another machine, the holder's heartbeats decide.

    Args:
        folder: the run's.
        key: how the user gave it, for the message.

    Raises:
        ConfigError: another process writes there (its host and pid are named), or the folder cannot
            be made or written.
    """
    with ExitStack() as held:

        def hold() -> None:
            held.enter_context(_held(user_path(folder, key), key))

        distributed.on_main(hold)
        yield


@contextmanager
def _held(folder: Path, key: str) -> Iterator[None]:
    with folder_made(folder, key):
        check_run_folder(folder, key)
        path = folder / NAME
        descriptor = _take(path, folder)
        ended = threading.Event()
        # A daemon: a process that ends without leaving this block must not wait for it.
        beating = threading.Thread(target=_beat, args=(path, ended), daemon=True)
        beating.start()
        mine = os.getpid()
        try:
            yield
        finally:
            ended.set()
            if os.getpid() == mine:  # not a forked copy of it
                beating.join(timeout=1)  # no longer: a network disk may hold it
                with suppress(OSError):
                    path.unlink()
            os.close(descriptor)


def _take(path: Path, folder: Path) -> int:
    """The lock file, open, locked, with this process in it."""
    for _ in range(100):
        try:
            # What a link leads to is another program's: it must not be emptied.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # who held it has just removed the folder, too
            folder.mkdir(parents=True, exist_ok=True)
            continue
        except OSError as error:
            reason = "is a link" if error.errno == errno.ELOOP else error.strerror
            raise ConfigError(
                f"{shown(path)}: {reason}; remove it if no siri-train uses {shown(folder)}"
            ) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # a pipe would be waited for
                raise ConfigError(f"{shown(path)}: is no file; remove it")
            locked = _flock(descriptor)
            if not _is(path, descriptor):  # its holder removed it in between
                os.close(descriptor)
                continue
            holder = _holder(path, wait=locked is False)
            if locked is False and _gone(holder):
                # A child process of an ended holder still has the lock: remove the file.
                path.unlink()
                os.close(descriptor)
                continue
            if locked is False or (holder and _lives(path, holder, known=locked is True)):
                raise ConfigError(_refused(path, folder, holder))
            text = json.dumps(_me()) + "\n"
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text.encode(), 0)
            return descriptor
        except BaseException:
            with suppress(OSError):
                os.close(descriptor)
            raise
    raise ConfigError(f"{shown(folder)}: other processes take and give back {NAME} all the time")


def _flock(descriptor: int) -> bool | None:
    """Whether the lock was free; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(path: Path, wait: bool) -> dict[str, Any]:
    """The file's content, empty if it cannot be read; it may be in the middle of being written."""
    until = time.monotonic() + (2.0 if wait else 0.0)
    while True:
        with suppress(OSError, ValueError, RecursionError):
            told = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(told, dict) and isinstance(told.get("pid"), int):
                return told
        if time.monotonic() >= until:
            return {}
        time.sleep(0.05)


def _gone(holder: dict[str, Any]) -> bool:
    """Whether the holder is a process of this machine that has ended."""
    here = holder.get("host") == socket.gethostname()
    return here and _started(holder["pid"]) != holder.get("ticks")


def _lives(path: Path, holder: dict[str, Any], known: bool) -> bool:
    """Whether the process named in a lock file may still run, though the file is not locked.

    Args:
        path: the file.
        holder: its content.
        known: the kernel's lock was free: a holder on this machine is gone.
    """
    if holder.get("host") == socket.gethostname():
        return not known and not _gone(holder)
    seen = path.stat().st_mtime
    if abs(time.time() - seen) > SILENT:
        return False
    print(
        f"{shown(path)} tells of process {holder['pid']} on {holder.get('host')}; waiting "
        f"{3 * BEAT:.0f} s for a sign of life from it",
        flush=True,
    )
    until = time.monotonic() + 3 * BEAT
    while time.monotonic() < until:
        time.sleep(BEAT / 5)
        # Opened anew each time: a network file system looks up the time then.
        with suppress(FileNotFoundError), path.open("rb") as file:
            if os.fstat(file.fileno()).st_mtime != seen:
                return True
    return False


def _refused(path: Path, folder: Path, holder: dict[str, Any]) -> str:
    if not holder:
        return (
            f"{shown(folder)}: another siri-train process writes there; wait for its end, or give "
            "another folder"
        )
    host, pid = str(holder.get("host")), holder["pid"]
    text = (
        f"{shown(folder)}: process {pid} on {shown(host)} writes there since "
        f"{shown(str(holder.get('since')))} ({shown(str(holder.get('command')))}); wait for its "
        f"end, stop it (kill {pid}), or give another folder"
    )
    if host != socket.gethostname():
        text += f"; if it is gone for certain, remove {shown(path)}"
    return text


def _me() -> dict[str, Any]:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "ticks": _started(os.getpid()),
        "since": now,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:3]]),
    }


def _started(pid: int) -> int | None:
    """When a process began, in the kernel's ticks: it distinguishes processes with the same pid.

    -1 where the system does not tell (no ``/proc``); None if there is no such process.
    """
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # there is one, another user's
    except (ProcessLookupError, OverflowError, ValueError):
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return -1


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(path)
