"""Checks of the paths that a user gives: expanded, printable, and writable before any work."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from siri_train.config.base import ConfigError
from siri_train.config.text import expand
from siri_train.files import explained, shown

_REPLACED = ("config.yaml", "summary.json", "report.html", "reference.json")
_FILES = (
    *("metrics.jsonl", "eval.jsonl", "alarms.jsonl", "sft.jsonl", "server.log", *_REPLACED),
    *("eval_questions.jsonl", "checkpoints/manifest.json", "sft_stage/sft.json"),
)
_FOLDERS = ("checkpoints", "rollouts", "sft", "sft_stage", "sft_stage/checkpoints", "server")


def user_path(text: str | os.PathLike[str], key: str) -> Path:
    """A path as the user gave it, with ``~`` expanded.

    Args:
        text: from the command line or the recipe.
        key: how the user gave it (``output``, ``--out``), for the message.

    Raises:
        ConfigError: it is empty, or :func:`siri_train.config.text.expand` refuses it.
    """
    given = os.fspath(text)
    try:
        if not given.strip():
            raise ValueError("takes a path that is not empty")
        return Path(expand(given))
    except ValueError as error:
        raise ConfigError(f"{key}: got {shown(given)}; {error}") from error


@contextmanager
def folder_made(folder: Path, key: str) -> Iterator[Path]:
    """Make ``folder`` and what is missing above it; remove again, at the end, what stayed empty.

    Args:
        folder: may exist.
        key: how the user gave it, for the message.

    Raises:
        ConfigError: it cannot be made or written to, with the system's reason and the remedy.
    """
    made: list[Path] = []
    try:
        try:
            for path in (*reversed(folder.parents), folder):
                if not path.is_dir():
                    if path.is_symlink():
                        raise _leads_nowhere(path, key, "folder")
                    try:
                        path.mkdir()
                        made.append(path)
                    except FileExistsError as error:
                        if not path.is_dir():  # not made by another process in between
                            error.errno, error.strerror = errno.ENOTDIR, "Not a directory"
                            raise
            _try_to_write(folder)
        except ConfigError:
            raise
        except (OSError, ValueError) as error:
            raise _refusal(folder, key, error) from error
        yield folder
    finally:
        for path in reversed(made):
            with suppress(OSError):  # it holds something by now
                path.rmdir()


def check_file(path: Path, key: str) -> Path:
    """Check, before the work, that a file can be written there; nothing is left behind.

    Raises:
        ConfigError: it is a folder, or cannot be written.
    """
    with folder_made(path.parent, key):
        try:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
            if path.is_file():
                with path.open("ab"):
                    return path
            if path.is_symlink():
                raise _leads_nowhere(path, key, "file")
            if os.path.lexists(path):
                raise ConfigError(f"{key}: {shown(path)} is no ordinary file; give another path")
            aside = path.with_name(f".{path.name}.partial")  # as replace_text writes it
            try:
                aside.touch()
            finally:
                aside.unlink(missing_ok=True)
        except OSError as error:
            raise _refusal(path, key, error) from error
    return path


def check_run_folder(folder: Path, key: str) -> None:
    """Check that a run can write its files into a folder that exists.

    Raises:
        ConfigError: a folder or something else has the name of one of its files, a file the name
            of one of its folders, or something there may not be written.
    """
    for name in (*_FOLDERS, *_FILES):  # what holds others first
        path = folder / name
        try:
            if not os.path.lexists(path):
                continue
            mode = "folder" if name in _FOLDERS else "file"
            fits = path.is_dir() if mode == "folder" else path.is_file()
        except OSError as error:
            raise _refusal(path, key, error) from error
        if not fits:
            raise ConfigError(
                f"{key}: {shown(path)} is no {mode}, which the run needs there; move it away or "
                "give another folder"
            )
        if name in _REPLACED:
            continue  # whose own permissions do not matter
        if not os.access(path, os.W_OK | (os.X_OK if mode == "folder" else 0)):
            raise ConfigError(
                f"{key}: {shown(path)} may not be written; change its permissions or give another "
                "folder"
            )


def _try_to_write(folder: Path) -> None:
    """Make a file without a name: permissions alone do not show a quota or a read-only disk."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        error.filename = str(folder)
        raise


def _leads_nowhere(path: Path, key: str, kind: str) -> ConfigError:
    return ConfigError(
        f"{key}: {shown(path)} is a link that leads to no {kind} ({shown(os.readlink(path))}); "
        "remove it or give another path"
    )


def _refusal(path: Path, key: str, error: OSError | ValueError) -> ConfigError:
    if isinstance(error, OSError):
        return ConfigError(f"{key}: {explained(error, path)}")
    return ConfigError(f"{key}: {shown(path)}: {error}; give another path")  # a NUL in it
