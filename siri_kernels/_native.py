"""Compiles a C file of this package with the machine's compiler, once, and loads it.

The library lies in a folder of the user, under a name made of the source, the headers beside it,
the compiler and the processor's features. The compiler is a process of its own: nothing waits for
it unless asked to.
Any number of processes may compile the same file: each renames its own result into place, whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

# -fno-trapping-math: comparisons of NaN may be computed for values that are not used.
FLAGS = (
    *("-O3", "-fno-math-errno", "-fno-trapping-math", "-fwrapv"),
    "-fopenmp-simd",  # loops marked so may add in vectors
    *("-std=gnu11", "-shared", "-fPIC", "-pthread"),
)
# For this processor if the compiler can, then for any of its kind; the result appears whole.
_SCRIPT = """
made=$1 final=$2
shift 2
"$@" -march=native -o "$made" || "$@" -o "$made" || { rm -f "$made"; exit 1; }
mv -f "$made" "$final"
"""
LONGEST = 60.0  # seconds that a compiler may take
_PROCESS = os.getpid()
_running: dict[Path, subprocess.Popen[bytes]] = {}


def start(source: Path) -> None:
    """Start the compiler on ``source``, unless the library is there; waits for nothing.

    Without a compiler, or a folder that can be written, it does nothing.
    """
    library = library_path(source)
    if library is None or library in _running or library.exists():
        return
    made = library.with_name(f"{library.name}.{os.getpid()}")
    command = ["sh", "-c", _SCRIPT, "sh", str(made), str(library)]
    with contextlib.suppress(OSError):
        _running[library] = subprocess.Popen(
            [*command, *_compiler(), *FLAGS, str(source)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # it ends its work also when this process is stopped
        )


def load(source: Path, *, wait: bool) -> ctypes.CDLL | None:
    """The library of ``source``, or None.

    Args:
        source: a C file.
        wait: for the compiler, which is started if it was not; else None if it has not finished.
    """
    library = library_path(source)
    if library is None:
        return None
    if wait:
        start(source)
        compiler = _running.get(library)
        if compiler is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                compiler.wait(LONGEST)
    if not library.exists():
        return None
    try:
        return ctypes.CDLL(str(library))
    except OSError:
        return None


def team() -> int | None:
    """Address of what starts the threads of PyTorch's operators; None: it is not to be found.

    That is ``GOMP_parallel`` of the OpenMP library that PyTorch has loaded. It would wait for ever
    in a forked process, which has none of its parent's threads.
    """
    return _team(os.getpid())


@functools.lru_cache
def _team(process: int) -> int | None:
    if process != _PROCESS:
        return None
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):
        return None


def library_path(source: Path) -> Path | None:
    """Where the library of ``source`` is or will be; None where it cannot be.

    That is a machine without a compiler, or a folder that cannot be written or that others can
    write.
    """
    compiler, folder = _compiler(), _folder()
    if not compiler or folder is None:
        return None
    found = os.stat(compiler[0])
    parts = [file.read_bytes() for file in (source, *sorted(source.parent.glob("*.h")))]
    parts += [*map(str.encode, (*compiler, *FLAGS)), _processor().encode()]
    parts.append(f"{found.st_mtime_ns} {found.st_size}".encode())
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    return folder / f"{source.stem}-{key}.so"


@functools.lru_cache
def _compiler() -> tuple[str, ...]:
    """The compiler's path and its arguments; () where there is none."""
    if os.name != "posix" or shutil.which("sh") is None:
        return ()
    for command in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        name, *arguments = shlex.split(command) or [""]
        path = shutil.which(name) if name else None
        if path is not None:
            return (os.path.realpath(path), *arguments)
    return ()


def _folder() -> Path | None:
    """The user's folder, made if it is not there; None: it cannot be written, or others can."""
    try:
        cache = os.environ.get("XDG_CACHE_HOME")
        folder = (Path(cache) if cache else Path.home() / ".cache") / "siri_kernels"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
    except (OSError, RuntimeError):
        return None
    private = status.st_uid == os.getuid() and not status.st_mode & 0o022
    return folder if private and os.access(folder, os.W_OK) else None


@functools.lru_cache
def _processor() -> str:
    """The processor and its features, as far as they can be read."""
    text = f"{platform.system()} {platform.machine()} {platform.processor()}"
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        first = file.read(1 << 14).split("\n\n")[0]  # all of them are the same
        rows = [row for row in first.splitlines() if row.startswith(("model name", "flags"))]
        text += "\n".join([*rows, *(r for r in first.splitlines() if r.startswith("Features"))])
    return text
