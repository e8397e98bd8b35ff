"""Rows of JSONL, JSON and Parquet files, each with where it stands, and errors that say it."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the row and the reason."""


class MissingDataError(DataError, FileNotFoundError):
    """A file or folder that is not there; the message names the nearest that is."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class Row(NamedTuple):
    """One row of a data file.

    Attributes:
        number: line number from 1 (JSONL), index from 0 (JSON lists, Parquet, hub sets).
        where: ``"train.jsonl, line 12"``: for error messages.
        fields: the row's columns by name.
    """

    number: int
    where: str
    fields: dict[str, Any]


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """Read a data file row by row, lazily.

    Args:
        path: ``.jsonl``/``.ndjson`` (one object a line, blank lines skipped), ``.json`` (one list
            of objects) or ``.parquet`` (needs pyarrow).

    Yields:
        ``Row``.

    Raises:
        MissingDataError: no such file; names the nearest existing ones.
        DataError: an unknown suffix, a row that is not valid JSON or not an object, text that is
            not UTF-8, an unreadable Parquet file; with file and line or row.
        ImportError: a Parquet file without pyarrow.
    """
    file = Path(path)
    if not file.exists():
        raise MissingDataError(describe_missing(file))
    if not file.is_file():
        raise DataError(f"{file} is a folder, not a data file")
    suffix = file.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(file)
    if suffix == ".json":
        return _json_list(file)
    if suffix == ".parquet":
        return _parquet(file)
    raise DataError(f"{file}: unknown kind of file {suffix!r}, takes {', '.join(SUFFIXES)}")


def describe_missing(path: Path) -> str:
    """Say that ``path`` does not exist and what does, near it.

    Args:
        path: a path that does not exist.

    Returns:
        One line for an error message.
    """
    folder = path.parent
    if not folder.is_dir():
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        return f"no such file: {path}; the nearest folder that exists is {folder}"
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4)
    if not near:
        near = [name for name in names if Path(name).suffix in SUFFIXES][:3]
    there = f"nearest: {', '.join(near)}" if near else "nothing like it is there"
    return f"no such file: {path}; in {folder}, {there}"


def nearest(name: str, names: Iterable[str]) -> str:
    """``"; did you mean 'X'"`` for the nearest of ``names``, or ``""``.

    Args:
        name: what was given.
        names: what would have been accepted.

    Returns:
        The end of an error message.
    """
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}" if near else ""


def _json_lines(file: Path) -> Iterator[Row]:
    with file.open("rb") as handle:
        for number, raw in enumerate(handle, start=1):
            where = f"{file}, line {number}"
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8: {error.reason}") from error
            if not text:
                continue
            try:
                value = json.loads(text)
            except ValueError as error:
                raise DataError(
                    f"{where}: not valid JSON: {error}; it reads {text[:60]!r}"
                ) from error
            yield Row(number, where, _object(value, where))


def _json_list(file: Path) -> Iterator[Row]:
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(
            f"{file}: not valid JSON: {error}; a file with one object a line is called .jsonl"
        ) from error
    if not isinstance(values, list):
        raise DataError(f"{file}: expected a list of objects, got {type(values).__name__}")
    for index, value in enumerate(values):
        where = f"{file}, row {index}"
        yield Row(index, where, _object(value, where))


def _parquet(file: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(f"reading {file} needs pyarrow: pip install pyarrow") from error
    index = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    yield Row(index, f"{file}, row {index}", value)
                    index += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}, row {index}: not readable as Parquet: {error}") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with fields, got {type(value).__name__}")
    return value
