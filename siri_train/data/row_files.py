"""The rows of a file, of a split of a folder, or of a data set of the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from siri_train.data.rows import SUFFIXES, DataError, MissingDataError, Row, read_rows
from siri_train.files import home_expanded

HUB = "hub:"
"""Before the name of a data set of the hub."""


def rows_of(
    path: str | os.PathLike[str], split: str, *, limit: int | None = None, offset: int = 0
) -> Iterator[tuple[str, Row]]:
    """(name of the file or set, row) over the rows that `load_questions` reads.

    Args:
        path: see `load_questions`, as the following.
        split: which part of a folder or hub set.
        limit: at most this many rows.
        offset: skip this many rows first.

    Raises:
        DataError: see `load_questions`.
    """
    stop, empty = None if limit is None else offset + limit, True
    for row in islice(_all_rows(path, split), offset, stop):
        empty = False
        yield row
    if empty:
        left = "holds no row; give a file with questions"
        if offset:
            held = sum(1 for _ in _all_rows(path, split))
            left = f"no row left after skipping {offset}; holds {held}, lower offset"
        raise DataError(f"{os.fspath(path)}: {left}")


def _all_rows(path: str | os.PathLike[str], split: str) -> Iterator[tuple[str, Row]]:
    text = os.fspath(path)
    if text.startswith(HUB):
        for row in _hub_rows(text, split):
            yield split, row
        return
    source = Path(expanded(text))
    files = _split_files(source, split) if os.path.isdir(source) else [source]
    for file in files:
        for row in read_rows(file):
            yield file.stem, row


def expanded(path: str) -> str:
    """A path with ``~`` replaced.

    Raises:
        DataError: ``~NAME`` of a user who does not exist.
    """
    try:
        return home_expanded(path)
    except ValueError as error:
        raise DataError(f"{path!r}: {error}") from error


def _split_files(folder: Path, split: str) -> list[Path]:
    for suffix in SUFFIXES:
        if (folder / f"{split}{suffix}").is_file():
            return [folder / f"{split}{suffix}"]
    parts = sorted(folder.glob(f"{split}-*.parquet")) or sorted(folder.glob(f"*/{split}-*.parquet"))
    if parts:
        return parts
    there = sorted(entry.name for entry in folder.iterdir() if entry.suffix in SUFFIXES)
    raise MissingDataError(
        f"{folder} has no split {split!r} ({split}.jsonl or another of {', '.join(SUFFIXES)}); "
        f"it holds {', '.join(there) or 'no data file'}; set split, or give a file of it"
    )


def _hub_rows(text: str, split: str) -> Iterator[Row]:
    match = re.fullmatch(r"hub:([\w.-]+(?:/[\w.-]+)?)(?::([\w.-]+))?(?:@([\w./-]+))?", text)
    if match is None:
        raise DataError(
            f"{text!r}: expected hub:OWNER/NAME, hub:OWNER/NAME:CONFIG or either @REVISION"
        )
    name, config, revision = match.groups()
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"reading {text} needs datasets: pip install datasets") from error
    try:
        loaded = datasets.load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # network, authentication, unknown name: datasets raises many kinds
        raise DataError(f"{text}, split {split!r}: {type(error).__name__}: {error}") from error
    for index, value in enumerate(loaded):
        yield Row(index, f"{text}, split {split}, row {index}", dict(value))
