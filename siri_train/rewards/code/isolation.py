"""Layers that shut a process in. Each is tried; what a machine refuses is left out and reported."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from siri_train.rewards.code import seccomp

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

LAYERS = ("limits", "other user", "namespaces", "landlock", "seccomp")
"""In the order in which they are put on."""

_NOBODY = 65534
_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # Landlock's system calls, the same on every machine
_FILE_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}
_NEW_USER, _NEW_OTHERS = 0x10000000, 0x40000000 | 0x08000000 | 0x04000000  # net, ipc, uts
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38


def enter_namespaces(layers: set[str]) -> list[str]:
    """Leave root and the machine's network, for this process and all that it starts.

    Args:
        layers: which to try.

    Returns:
        Those that hold.
    """
    held = []
    root, linux = os.geteuid() == 0, sys.platform == "linux"
    wanted = linux and "namespaces" in layers
    inside = wanted and root and _libc().unshare(_NEW_OTHERS) == 0
    if root and "other user" in layers:
        try:
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)  # as root all three ids of either kind
            held.append("other user")
        except OSError:
            pass
    if wanted and not inside:
        inside = _libc().unshare(_NEW_USER | _NEW_OTHERS) == 0
    if inside:
        held.append("namespaces")
    end_with_parent()
    return held


def shut_in(layers: set[str], *, memory: int, seconds: float) -> list[str]:
    """Put the layers on this process, for ever.

    Args:
        layers: which to try.
        memory: bytes of address space that it may have.
        seconds: of processor time, after which the kernel ends it.

    Returns:
        Those that hold.
    """
    held = []
    if "limits" in layers and resource is not None:
        _limit(memory, seconds)
        held.append("limits")
    if sys.platform != "linux":
        return held
    libc = _libc()
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if "landlock" in layers and _landlock(libc):
        held.append("landlock")
    if "seccomp" in layers:
        try:
            seccomp.restrict()
            held.append("seccomp")
        except OSError:
            pass
    return held


def end_with_parent() -> None:
    """Let the kernel end this process when its parent ends."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def die_first() -> None:
    """Let the kernel end this process before any other where memory runs out."""
    if sys.platform != "linux":
        return
    # The files of a process that has changed its user belong to root until it says this.
    _libc().prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:
        pass


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _limit(memory: int, seconds: float) -> None:
    assert resource is not None
    whole = int(seconds) + 2
    wanted = {
        "RLIMIT_AS": memory,
        "RLIMIT_CPU": whole,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NOFILE": 16,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }
    for name, value in wanted.items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        hard = resource.getrlimit(kind)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (most, most))
        except (OSError, ValueError):
            pass


def _landlock(libc: ctypes.CDLL) -> bool:
    """No file, no TCP port, no signal and no abstract socket beyond this process."""
    version = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    files = _FILE_RIGHTS.get(version, 0xFFFF)
    rights = (ctypes.c_uint64 * 3)(files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = libc.syscall(_CREATE_RULESET, ctypes.byref(rights), ctypes.c_size_t(size), 0)
    if rules < 0:
        return False
    held: bool = libc.syscall(_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return held
