"""Files and folders that appear under their name only when they are complete and on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Replace a file in one move, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


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
