"""Files and folders that appear under their name only when they are complete and on the disk."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""No room left, of some kind: the only reasons for which free space is worth naming."""

_STALE_AFTER_S = 3600.0
"""Seconds after which a folder that is being written counts as left by a killed process."""

_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "the quota is used up: make room",
    errno.EFBIG: "a file may not grow past the limit here: raise `ulimit -f` or take another disk",
    errno.EROFS: "the disk is mounted read-only: give a folder on another one",
    errno.EACCES: "change its permissions, or give a folder that you may write",
    errno.EPERM: "change its permissions, or give a folder that you may write",
    errno.ENOENT: "something on the way to it is missing (a link to nothing?): give another path",
    errno.ENOTDIR: "a file stands where a folder is needed: give another path",
    errno.EISDIR: "a folder stands where a file is needed: give another path, or move it away",
    errno.EEXIST: "a file, or a link to nothing, has that name: remove it or give another path",
    errno.ENOTEMPTY: "somebody else writes there: give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "its links lead in a circle: give another path",
    errno.EINVAL: "the file system does not take this name: give another path",
    errno.ENODEV: "the file system does not take this file: give another path",
    errno.ENXIO: "nothing is behind it: give an ordinary file or folder",
    errno.EBUSY: "another program holds it: end that, or give another path",
    errno.ETXTBSY: "another program runs it: end that, or give another path",
    errno.EXDEV: "it lies on another disk than its folder: give another path",
    errno.EIO: "the disk does not answer: look at the system's log, or take another one",
    errno.ESTALE: "the network disk has lost it: mount it again, or take another one",
    errno.EMFILE: "too many files are open: raise `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine: close some",
    errno.EMLINK: "the folder holds as many folders as it can: give another path",
    errno.ENOTSUP: "the file system cannot do this: give a folder on another one",
}


def home_expanded(path: str) -> str:
    """``~`` and ``~user`` at the beginning of a path as the shell expands them.

    Raises:
        ValueError: there is no such user.
    """
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        user = whole.split("/")[0]
        raise ValueError(
            f"takes a path; there is no user {user[1:]!r}: for a name that begins with ~ write ./~"
        )
    return whole


class WriteError(RuntimeError):
    """A file of the run could not be written; what was there before is untouched."""


def about_a_file(error: OSError) -> bool:
    """Whether the error is about a file or a disk, not about a connection or a process."""
    if isinstance(error, (ConnectionError, TimeoutError, ChildProcessError, InterruptedError)):
        return False
    return error.filename is not None or error.errno in _REMEDIES


def explained(error: OSError, folder: Path | None = None) -> str:
    """One line: which path, what the system said, what to do.

    Args:
        error: of any kind.
        folder: named where the error names no path of its own; its free space is shown when there
            is no room.
    """
    path = error.filename if error.filename is not None else folder
    said = error.strerror or str(error) or type(error).__name__
    parts = [f"{shown(path)}: {said}" if path is not None else said]
    if error.errno is not None:
        parts[0] += "" if folder is None else room_left(error.errno, folder)
        remedy = remedy_of(error.errno)
        parts += [] if remedy is None else [remedy]
    return "; ".join(parts)


def remedy_of(number: int) -> str | None:
    """The remedy for an error number of the system; None where it is not about a file."""
    return _REMEDIES.get(number)


def room_left(number: int, folder: Path) -> str:
    """`` (N GiB free)`` where an error number says that there is no room, else nothing.

    Args:
        number: of ``errno``.
        folder: on the disk in question; may not be there yet.
    """
    if number not in _FULL:
        return ""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return f" ({shutil.disk_usage(there).free / 2**30:.2f} GiB free)"


def shown(path: Any) -> str:
    """A path on one line whatever it holds: as it is, or quoted where it would not print."""
    text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else str(path)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 300 else f"{text[:200]}...{text[-60:]}"


def printable(text: str) -> str:
    """The text with every character that would not print, a line's end as well, as its escape."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextmanager
def room_needed(folder: Path) -> Iterator[None]:
    """Turn an error about a file inside the block into a WriteError with path and remedy.

    Args:
        folder: the run's, where the block writes.

    Raises:
        WriteError: in place of an OSError about a file or a disk; others pass unchanged.
    """
    try:
        yield
    except OSError as error:
        if not about_a_file(error):
            raise
        raise WriteError(
            f"{explained(error, folder)}. The checkpoints and the metrics up to here are whole; "
            "correct that and run the same command again"
        ) from error


def replace_text(path: Path, text: str) -> None:
    """Replace a file in one move, so that a reader never sees half of it.

    On an error the old file stays and nothing is left beside it. Half a surrogate pair, which no
    encoding takes, becomes its escape: in JSON and YAML the same text.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    clear(aside)
    try:
        with aside.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _move(aside, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            aside.unlink(missing_ok=True)
        raise


def free_name(path: Path) -> Path:
    """Where a damaged file is kept: ``NAME.damaged``, with a number if an older one is there."""
    kept = path.with_name(f"{path.name}.damaged")
    number = 2
    while os.path.lexists(kept):
        kept = path.with_name(f"{path.name}.damaged-{number}")
        number += 1
    return kept


def append_record(path: Path, row: dict[str, Any]) -> None:
    """Append one line of JSON and synchronise it; a line that does not fit is removed whole.

    Args:
        path: the file; it is made if it is missing.
        row: the record.

    Raises:
        OSError: as the system gave it; the file is as long as before.
    """
    line = (json.dumps(row) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):  # a disk that fills up takes a part first
                written += os.write(descriptor, line[written:])
            os.fsync(descriptor)  # before the checkpoint that counts on it
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


@contextmanager
def written_aside(folder: Path, first_stays: bool = False) -> Iterator[Path]:
    """An empty folder beside ``folder``, which takes its name when the block ends without an error.

    Its files are synchronised to the disk before the name changes. On an error it is removed, and
    what has the name stays. :func:`recover` repairs what a process killed in between leaves.

    Args:
        folder: what has this name is replaced.
        first_stays: several processes may make the same folder at the same time. Each writes
            beside it; the first one done stays, and the others' are removed without an error.
    """
    aside = _own_aside(folder) if first_stays else folder.with_name(f".{folder.name}.partial")
    clear(aside)
    aside.mkdir(parents=True)
    try:
        yield aside
        share_weights(aside)
        for path in (*aside.rglob("*"), aside):
            _sync(path)
        if first_stays:
            _move_unless_there(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # on a full disk this gives its space back
        raise
    if not first_stays:
        _replace_folder(aside, folder)


def _replace_folder(aside: Path, folder: Path) -> None:
    """Give ``aside`` the name of ``folder``; a folder cannot be replaced in one move."""
    old = folder.with_name(f".{folder.name}.old")
    clear(old)
    try:
        if os.path.lexists(folder):  # a link to nothing has the name too
            os.replace(folder, old)
        _move(aside, folder)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(folder):
            os.replace(old, folder)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _sync(folder.parent)
    with suppress(OSError):
        clear(old)


def _move_unless_there(aside: Path, folder: Path) -> None:
    """Give ``aside`` the name of ``folder``; where a folder with content has it, remove ``aside``.

    Raises:
        OSError: it cannot be moved for another reason.
    """
    try:
        _move(aside, folder)
        _sync(folder.parent)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _own_aside(folder: Path) -> Path:
    """A name beside ``folder`` that no other process uses; removes what a killed one left."""
    for old in folder.parent.glob(f".{folder.name}.*.partial"):
        with suppress(OSError):  # another process may remove it too
            if time.time() - old.stat().st_mtime > _STALE_AFTER_S:
                clear(old)
    return folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def clear(path: Path) -> None:
    """Remove a temporary file, folder or link of the project.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _move(aside: Path, path: Path) -> None:
    """``os.replace``; its error names ``path``, not the temporary name."""
    try:
        os.replace(aside, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def share_weights(folder: Path) -> None:
    """Give the weights in ``folder`` the folder's read permissions.

    safetensors makes its files readable for their owner only, whatever the umask is; a folder
    that ``mkdir`` made has the umask's permissions.
    """
    for path in folder.rglob("*.safetensors"):
        path.chmod(path.parent.stat().st_mode & 0o666)


def recover(parent: Path) -> None:
    """Repair what a killed :func:`written_aside` left in ``parent``.

    A folder that was renamed to make room gets its name back if its successor is not there.
    Incomplete and replaced folders are removed.
    """
    for old in parent.glob(".*.old"):
        folder = parent / old.name.removeprefix(".").removesuffix(".old")
        if folder.exists():
            clear(old)
        else:
            os.replace(old, folder)
    for aside in parent.glob(".*.partial"):
        if aside.is_dir():
            shutil.rmtree(aside)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
