"""JSON lines: one object a line, written at once; an incomplete last line is left out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]

MOST_BYTES = 15 * 2**20  # a file that comes back from a lent machine may have 16 MiB
MOST_LINE = 200_000
LAST = 400  # bytes kept for the line that says that the file is full


def plain(value: Any) -> Any:
    """``value`` as strict JSON takes it: numbers that are not finite become text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(value, "item"):  # a number of torch or numpy
        return plain(value.item())
    return str(value)


class Records:
    """A file that several processes append lines to, one after the other.

    Args:
        path: the file; it may hold lines of an earlier process already.
        every: keys that each line gets.
        most: bytes that the file may reach; lines that would pass it are left out, and the last
            line says so.
    """

    def __init__(self, path: Path, every: Record, most: int = MOST_BYTES) -> None:
        self.path, self.every, self.most = path, every, most
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, what: str, **facts: Any) -> Record:
        """Append one line at once; ``what`` names its kind."""
        record = plain({"what": what, **facts, **self.every})
        line = json.dumps(record, allow_nan=False)
        if len(line) > MOST_LINE:
            record = plain({**self.every, "what": what, "left_out": f"a line of {len(line)} bytes"})
            line = json.dumps(record)
        size, room = self.path.stat().st_size if self.path.exists() else 0, self.most - LAST
        if size > room:
            return record
        if size + len(line) > room:
            line = json.dumps(plain({"what": "full", "bytes": size, **self.every}))
            line += " " * (room - size)  # past the mark: no line follows
        # A process that was killed may have left half a line behind.
        start = "" if self._whole() else "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{start}{line}\n")
            file.flush()
            os.fsync(file.fileno())
        return record

    def _whole(self) -> bool:
        if not self.path.exists() or self.path.stat().st_size == 0:
            return True
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def read(*folders: Path) -> Iterator[Record]:
    """All lines of all ``*.jsonl`` files of these folders, first call first.

    Broken lines are left out. A folder that does not exist has none.
    """
    for folder in folders:
        # "first" comes before "second", and each file's lines are in order.
        for path in sorted(folder.glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict) and "what" in record:
                    yield record
