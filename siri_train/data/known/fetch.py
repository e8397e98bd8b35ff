"""Reads the rows of a public set: from the hub, a file, a folder or an address."""

from __future__ import annotations

import csv
import email.message
import gzip
import hashlib
import http.client
import json
import shutil
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from siri_train.data.known.registry import KnownSet
from siri_train.data.row_files import HUB, expanded, rows_of
from siri_train.data.rows import SUFFIXES, DataError, MissingDataError, Row, read_rows
from siri_train.files import shown

_PATIENCE = 60.0
"""Seconds without a byte after which an address counts as dead."""
_MBPP = {"prompt": range(1, 11), "test": range(11, 511), "validation": range(511, 601)}
"""Task numbers of MBPP's splits; the others are ``train``. Source: MBPP's README."""
_ONLY_CONFIG = "data"
"""The hub's folder for the files of a data set that has one configuration."""
_OTHER_SPLITS = ("test", "train", "validation")


@dataclass
class Read:
    """Rows, and the sources that they came from.

    Attributes:
        rows: for each of our splits the rows, in order.
        sources: of each file or hub split: ``source``, ``sha256``, ``rows``. The checksum is of the
            file's bytes; for the hub of its rows as JSON with sorted keys.
    """

    rows: dict[str, list[Row]] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)

    def add(self, split: str, rows: list[Row], source: str, sha256: str) -> None:
        """Put rows behind those that are there.

        Args:
            split: ours.
            rows: that were read.
            source: where from.
            sha256: of what was read.
        """
        self.rows.setdefault(split, []).extend(rows)
        self.sources.append({"source": source, "sha256": sha256, "rows": len(rows)})


def read_set(entry: KnownSet, sources: Sequence[str]) -> Read:
    """Read a set.

    Args:
        entry: the set.
        sources: files, folders, ``hub:OWNER/NAME[:CONFIG][@REVISION]`` or addresses, one after the
            other; none: the set's own on the hub.

    Raises:
        DataError: something that cannot be read; the message names it.
        ImportError: a package is missing.
    """
    default = f"{HUB}{entry.hub}" + (f":{entry.config}" if entry.config else "")
    found = Read()
    for source in sources or [default]:
        if source.startswith(HUB):
            _from_hub(entry, source, found)
        elif urlparse(source).scheme in ("http", "https"):
            with _downloaded(source) as file:
                _from_file(entry, file, source, found)
        else:
            path = Path(expanded(source))
            if path.is_dir():
                _from_folder(entry, path, found)
            else:
                _from_file(entry, path, str(path), found)
    if not any(found.rows.values()):
        raise DataError(f"{', '.join(sources) or default}: holds no row; give a file with rows")
    return found


def _from_hub(entry: KnownSet, source: str, found: Read) -> None:
    for ours, theirs in entry.splits.items():
        tried = [theirs] if ours else list(dict.fromkeys([theirs, *_OTHER_SPLITS]))
        for number, split in enumerate(tried):
            try:
                rows = [row for _, row in rows_of(source, split)]
                break
            except DataError as error:
                # A mirror may call its only split another name.
                if "nknown split" not in str(error) or number + 1 == len(tried):
                    raise
        text = "\n".join(
            json.dumps(row.fields, sort_keys=True, default=str, ensure_ascii=False) for row in rows
        )
        found.add(ours, rows, f"{source}, split {split}", hashlib.sha256(text.encode()).hexdigest())


def _from_folder(entry: KnownSet, folder: Path, found: Read) -> None:
    data = sorted(path for path in folder.iterdir() if _is_data(path))
    if entry.name == "mbpp" and len(data) == 1 and data[0].name.split(".")[0] == entry.name:
        _from_file(entry, data[0], str(data[0]), found)  # all splits, told apart by task number
        return
    for ours, theirs in entry.splits.items():
        names = dict.fromkeys(name for name in (ours, theirs, "" if ours else entry.name) if name)
        files = next(filter(None, (_files_of(entry, folder, name) for name in names)), [])
        if not files and not ours and len(data) == 1:
            files = data
        if not files:
            there = ", ".join(path.name for path in data) or "no data file"
            raise MissingDataError(
                f"{folder}: holds no file of the split {theirs!r} ({theirs}.jsonl or the like); it "
                f"holds {there}; name the file itself"
            )
        for file in files:
            found.add(ours, _rows_of_file(file), str(file), file_sha256(file))


def _files_of(entry: KnownSet, folder: Path, split: str) -> list[Path]:
    whole = [p for p in sorted(folder.iterdir()) if _is_data(p) and p.name.split(".")[0] == split]
    if files := whole[:1] or sorted(folder.glob(f"{split}-*.parquet")):
        return files
    # A copy of a repository has a folder for each configuration, and these hold the same questions.
    inner = sorted({path.parent for path in folder.glob(f"*/{split}-*.parquet")})
    if entry.config is not None and folder / entry.config in inner:
        inner = [folder / entry.config]
    other = entry.config is not None and any(
        path.name not in (entry.config, _ONLY_CONFIG) for path in inner
    )
    if len(inner) > 1 or other:
        there = ", ".join(path.name for path in inner)
        wanted = f", not in {entry.config}" if entry.config is not None else ""
        raise DataError(
            f"{folder}: the split {split!r} is in {there}{wanted}; takes one configuration of "
            f"{entry.name}: give its folder, --from {shown(inner[0])}"
        )
    return [file for path in inner for file in sorted(path.glob(f"{split}-*.parquet"))]


def _is_data(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    return path.is_file() and name.endswith((*SUFFIXES, ".csv")) and ".card." not in name


def _from_file(entry: KnownSet, file: Path, source: str, found: Read) -> None:
    rows = _rows_of_file(file)
    sha256 = file_sha256(file)
    if "" in entry.splits:
        found.add("", rows, source, sha256)
        return
    named = [split for split in entry.splits if split in Path(urlparse(source).path).name]
    if len(named) == 1:
        found.add(named[0], rows, source, sha256)
        return
    if entry.name != "mbpp":
        raise DataError(
            f"{source}: its name does not say which split of {entry.name} it holds; call it "
            f"{' or '.join(f'{split}{file.suffix}' for split in entry.splits)}, or give the folder"
        )
    for split in entry.splits:
        found.rows.setdefault(split, [])
    for row in rows:
        found.rows[_mbpp_split(row)].append(row)
    found.sources.append({"source": source, "sha256": sha256, "rows": len(rows)})


def _mbpp_split(row: Row) -> str:
    number = row.fields.get("task_id")
    if not isinstance(number, int):
        raise DataError(f"{row.where}: field 'task_id': got {number!r:.40}, takes a whole number")
    return next((split for split, numbers in _MBPP.items() if number in numbers), "train")


def _rows_of_file(file: Path) -> list[Row]:
    if file.suffix.lower() == ".gz" and file.is_file():
        with tempfile.TemporaryDirectory() as folder:
            inner = Path(folder) / file.stem
            try:
                with gzip.open(file, "rb") as packed, inner.open("wb") as out:
                    shutil.copyfileobj(packed, out)
            except (OSError, EOFError, zlib.error) as error:  # cut, or other bytes than written
                raise DataError(f"{file}: cannot be unpacked: {error}; copy it again") from error
            rows = _rows_of_file(inner)
        return [row._replace(where=row.where.replace(str(inner), str(file))) for row in rows]
    if file.suffix.lower() == ".csv" and file.is_file():
        try:
            with file.open(encoding="utf-8-sig", newline="") as handle:
                csv.field_size_limit(1 << 26)
                read = list(csv.DictReader(handle, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{file}: not readable as CSV: {error}; save it as UTF-8") from error
        return [
            Row(index, f"{file}, row {index}", {str(k): v for k, v in fields.items()})
            for index, fields in enumerate(read)
        ]
    return list(read_rows(file))


@contextmanager
def _downloaded(address: str) -> Iterator[Path]:
    name = Path(urlparse(address).path).name or "file"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        try:
            with (
                urllib.request.urlopen(address, timeout=_PATIENCE) as answer,
                file.open("wb") as out,
            ):
                shutil.copyfileobj(answer, out)
                told = _length(answer.headers)
        # A chunked answer that ends early is an HTTPException, no OSError.
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise DataError(
                f"{address}: cannot be downloaded: {error or type(error).__name__}; try again, or "
                "download it another way and give the file"
            ) from error
        size = file.stat().st_size
        if told is not None and size != told:
            raise DataError(
                f"{address}: the download ended early: {size} of {told} bytes; try again, or "
                "download it another way and give the file"
            )
        yield file


def _length(headers: email.message.Message) -> int | None:
    """The number of bytes that a server announced; None: it did not."""
    told = headers.get("Content-Length", "")
    return int(told) if told.isdecimal() and "Transfer-Encoding" not in headers else None


def file_sha256(file: Path) -> str:
    """The checksum of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while part := handle.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
