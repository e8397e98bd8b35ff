"""Files and folders that appear under their name only when they are complete and on the disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class WriteError(RuntimeError):
    """A file of the run could not be written; what was there before is untouched."""


@contextmanager
def room_needed(folder: Path) -> Iterator[None]:
    """Turn a full disk or a used-up quota inside the block into a WriteError that says so.

    Args:
        folder: the run's, where the block writes; its free space is named.

    Raises:
        WriteError: in place of the OSError that the full disk gave; others pass unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(there).free / 2**30
        raise WriteError(
            f"{folder}: {error} ({free:.2f} GiB free). The checkpoints and the metrics up to here "
            "are whole; make room and run the same command again"
        ) from error


def replace_text(path: Path, text: str) -> None:
    """Replace a file in one move, so that a reader never sees half of it.

    On an error the old file stays and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    os.replace(aside, path)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one line of JSON and synchronise it; a line that does not fit leaves no half of it.

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


def keep_rows(path: Path, below: int) -> list[dict[str, Any]]:
    """Drop the rows at or past step ``below``, which a resumed run writes again; the others."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # half a line: the process was killed while it wrote this step
        if row["step"] < below:
            kept.append(row)
    replace_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    return kept


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """An empty folder beside ``folder`` to write into; it takes the name, and the place of what has
    it, when the block ends without an error.

    Its files are synchronised to the disk before the name changes. On an error it is removed and
    what had the name stays. :func:`recover` mends what a process killed in between leaves.
    """
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        share_weights(aside)
        for path in (*aside.rglob("*"), aside):
            _sync(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # on a full disk this gives its space back
        raise
    # A folder cannot be replaced in one move: the old one steps aside, and is deleted last.
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(aside, folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def share_weights(folder: Path) -> None:
    """Let whoever may read ``folder`` read the weights in it, too.

    safetensors makes its files readable for their owner only, whatever the umask says; a folder
    that was made by ``mkdir`` shows what it says.
    """
    for path in folder.rglob("*.safetensors"):
        path.chmod(path.parent.stat().st_mode & 0o666)


def recover(parent: Path) -> None:
    """Undo what a killed :func:`written_aside` left in ``parent``: a folder that had stepped aside
    comes back where its successor has not arrived; what is incomplete or replaced is removed."""
    for old in parent.glob(".*.old"):
        folder = parent / old.name.removeprefix(".").removesuffix(".old")
        if folder.exists():
            shutil.rmtree(old)
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
