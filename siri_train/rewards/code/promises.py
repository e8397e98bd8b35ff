"""The promises of the sandbox, and deeds that show whether it keeps them, tried from inside."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import tempfile
from collections.abc import Callable, Collection

MEMORY = 512 << 20
"""Bytes that a program may have besides the interpreter's own."""

_NOWHERE = "/siri-probe-nowhere"
_BEFORE = tempfile.gettempdir()  # asked now: inside, no folder can be tried


def _network() -> bool:
    """No way to another machine or to a service of this one."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
            channel.connect(("127.0.0.1", 9))
            return False
    except OSError:
        pass

    def ask_a_service() -> None:
        # A service's socket is a file: neither a network namespace nor Landlock keeps it away.
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(_NOWHERE)

    return _forbidden(ask_a_service)


def _files() -> bool:
    """No file can be read, listed or written."""
    deeds: tuple[Callable[[], object], ...] = (
        lambda: os.open(os.__file__, os.O_RDONLY),
        lambda: os.open("/proc/self/environ", os.O_RDONLY),
        lambda: os.listdir("/"),
        lambda: os.unlink(_made(f"{_BEFORE}/siri-probe-{os.getpid()}")),
        lambda: os.rmdir(_made(f"{_BEFORE}/siri-probe-{os.getpid()}/")),
    )
    # Landlock lets the mode and the times of a file be changed.
    return all(map(_refused, deeds)) and _forbidden(lambda: os.chmod(_NOWHERE, 0o600))


def _made(path: str) -> str:
    if path.endswith("/"):
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    return path


def _processes() -> bool:
    """No process can be started."""

    def fork() -> None:
        if os.fork() == 0:
            os._exit(0)

    return _refused(fork)


def _others() -> bool:
    """No other process gets a signal, is read, or gets other limits."""

    def read_parent() -> None:
        buffer = ctypes.create_string_buffer(8)
        pair = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
        libc = ctypes.CDLL(None, use_errno=True)
        there = (ctypes.c_size_t * 2)(id(None), 8)
        if libc.process_vm_readv(os.getppid(), pair, 1, there, 1, 0) < 0:
            raise OSError(ctypes.get_errno(), "process_vm_readv")

    def limit_parent() -> None:
        import resource

        resource.prlimit(os.getppid(), resource.RLIMIT_CORE)

    deeds = (lambda: os.kill(os.getppid(), 0), read_parent, limit_parent)
    return all(map(_refused, deeds))


def _memory() -> bool:
    """No more memory than its limit."""
    try:
        mmap.mmap(-1, 2 * MEMORY).close()  # address space: nothing is touched where it holds not
    except (OSError, MemoryError):
        return True
    return False


def _forbidden(deed: Callable[[], object]) -> bool:
    """Whether a deed on a file that is not there is forbidden, rather than just impossible."""
    try:
        deed()
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _refused(deed: Callable[[], object]) -> bool:
    try:
        deed()
    except (OSError, AttributeError):
        return True
    return False


PROMISES: dict[str, Callable[[], bool]] = {
    "network": _network,
    "files": _files,
    "processes": _processes,
    "other processes": _others,
    "memory": _memory,
}
"""Each by name, with the deed to be done inside the sandbox."""


def kept() -> list[str]:
    """The promises that hold for this process."""
    return [name for name, holds in PROMISES.items() if holds()]


def sentence(layers: Collection[str], promises: Collection[str]) -> str:
    """One line about a sandbox: its layers, and what does not hold."""
    broken = [name for name in PROMISES if name not in promises]
    lacks = f"; NOT shut off: {', '.join(broken)}" if broken else ""
    return f"code sandbox: {', '.join(layers) or 'no layer'}{lacks}"
