"""Reads the rows of JSONL, JSON and Parquet files; every row knows its file and line."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from siri_train.data.json_text import JsonTextError, parse_json

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_TAKEN = f"a file ({', '.join(SUFFIXES)}) or a folder of them"

_LONGEST_LINE = 64 << 20
_OTHER_FILES = (
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"PAR1", "a Parquet file: name it .parquet"),
    (b"(\xb5/\xfd", "a zstd file: unpack it first"),
    (b"\xff\xfe", "UTF-16: save the file as UTF-8"),
    (b"\xfe\xff", "UTF-16: save the file as UTF-8"),
)


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the row and the reason."""


class MissingDataError(DataError, FileNotFoundError):
    """A file or folder that does not exist; the message names the nearest that does."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class Row(NamedTuple):
    """One row of a data file.

    Attributes:
        number: line number from 1 (JSONL), index from 0 (JSON lists, Parquet, hub sets).
        where: ``"train.jsonl, line 12"``: for error messages.
        fields: the row's columns by name; JSON numbers as :func:`parse_json` gives them.
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
        DataError: an unknown suffix, a row that is not valid JSON, nested too deeply or not an
            object, a key twice in one object, a line of more than 64 MiB, text that is not UTF-8,
            an unreadable file. The message has file and line or row.
        ImportError: a Parquet file without pyarrow.
    """
    file = Path(path)
    if not os.path.exists(file):
        raise MissingDataError(describe_missing(file))
    if not os.path.isfile(file):
        kind = "a folder" if os.path.isdir(file) else "a device or a pipe"
        raise DataError(f"{file} is {kind}, not a data file; takes {', '.join(SUFFIXES)}")
    suffix = file.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(file)
    if suffix == ".json":
        return _json_list(file)
    if suffix == ".parquet":
        return _parquet(file)
    packed = "; unpack it first" if suffix in (".gz", ".zst", ".bz2", ".xz", ".zip") else ""
    raise DataError(f"{file}: unknown kind of file {suffix!r}, takes {', '.join(SUFFIXES)}{packed}")


def describe_missing(path: Path) -> str:
    """A message that ``path`` does not exist, with similar names that do.

    Args:
        path: a path that does not exist.

    Returns:
        One line for an error message.
    """
    folder = path.parent
    if not os.path.isdir(folder):
        while not os.path.isdir(folder) and folder != folder.parent:
            folder = folder.parent
        return (
            f"no such file: {str(path)!r:.300}; the nearest folder that exists is {folder}; "
            f"give {_TAKEN}"
        )
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        return f"no such file: {path}; {folder} cannot be listed: {error.strerror}; give {_TAKEN}"
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.4)
    if not near:
        near = [name for name in names if Path(name).suffix in SUFFIXES][:3]
    there = f"nearest: {', '.join(near)}" if near else "nothing like it is there"
    return f"no such file: {path}; in {folder}, {there}; give {_TAKEN}"


def nearest(name: str, names: Iterable[str]) -> str:
    """``"; did you mean 'X'"`` for the nearest of ``names``, or ``""``.

    Args:
        name: the given name.
        names: the accepted names.

    Returns:
        The end of an error message.
    """
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}" if near else ""


def _json_lines(file: Path) -> Iterator[Row]:
    try:
        with file.open("rb") as handle:
            number = 0
            while raw := handle.readline(_LONGEST_LINE + 1):
                number += 1
                where = f"{file}, line {number}"
                if len(raw) > _LONGEST_LINE:
                    raise DataError(
                        f"{where}: longer than {_LONGEST_LINE >> 20} MiB; a .jsonl file has one "
                        "object a line"
                    )
                text = _decoded(raw, where, first=number == 1).strip()
                if text:
                    yield Row(number, where, _object(_parsed(text, where), where))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def _json_list(file: Path) -> Iterator[Row]:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    try:
        values = parse_json(_decoded(raw, str(file), first=True))
    except JsonTextError as error:
        raise DataError(
            f"{file}: {error}; takes one list of objects (a file with one object a line "
            "is called .jsonl)"
        ) from error
    if not isinstance(values, list):
        raise DataError(f"{file}: expected a list of objects, got {type(values).__name__}")
    for index, value in enumerate(values):
        where = f"{file}, row {index}"
        yield Row(index, where, _object(value, where))


def _decoded(raw: bytes, where: str, *, first: bool) -> str:
    """UTF-8 text; a byte-order mark is dropped at the start of a file only."""
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        known = next((kind for start, kind in _OTHER_FILES if raw.startswith(start)), None)
        hint = f"this looks like {known}" if first and known else "save the file as UTF-8"
        raise DataError(
            f"{where}: not UTF-8: {error.reason} at byte {error.start}; {hint}"
        ) from error


def _parsed(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except JsonTextError as error:
        pointer = text.startswith("version https://git-lfs")
        hint = "this is a Git LFS pointer: fetch the file itself (git lfs pull)"
        if not pointer:
            hint = "takes one JSON object a line: correct or remove this one"
        raise DataError(f"{where}: {error}; it reads {text[:60]!r}; {hint}") from error


def _parquet(file: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(f"reading {file} needs pyarrow: pip install pyarrow") from error
    index = 0
    try:
        with parquet.ParquetFile(file) as table:
            narrow = {f.name for f in table.schema_arrow if pyarrow.types.is_float32(f.type)}
            for batch in table.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    for name in narrow:
                        value[name] = _single(value[name])
                    yield Row(index, f"{file}, row {index}", value)
                    index += 1
    # Damaged pages also end in ValueError (text that is not UTF-8) or NotImplementedError.
    except (pyarrow.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{file}, row {index}: not readable as Parquet: {' '.join(str(error).split())[:200]}; "
            "write, copy or download the file again"
        ) from error


def _single(value: float | None) -> float | Decimal | None:
    """The shortest decimal of a single-precision number: 0.1, not 0.10000000149011612."""
    if value is None or not math.isfinite(value):
        return value
    return Decimal(str(np.float32(value)))


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with fields, got {type(value).__name__}")
    return value
