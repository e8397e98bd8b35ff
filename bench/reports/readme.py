"""Puts the measured tables of ``bench/results`` into README and docs.

They quote nothing else. Between ``<!-- bench/results/X.md -->`` and ``<!-- end -->`` stands
that file; a test compares. ``<!-- bench/results/X.md rows: A; B -->`` quotes the table's head and
the lines that begin with A and B (``A | CONTENDER`` names two columns).
``<!-- bench/results/X.md table 2 -->`` quotes the second table of a file that has more than that.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"<!-- (bench/results/\S+\.md)(?: rows: (.*?)| table (\d+))? -->\n.*?<!-- end -->", re.DOTALL
)


def filled(readme: str) -> str:
    """The text of a page with every quoted file as it is now.

    Args:
        readme: the page.

    Raises:
        ValueError: a row or table that the file does not have, or a row that it has more than once.
        OSError: a file that cannot be read.
    """

    def quoted(match: re.Match[str]) -> str:
        text = (ROOT / match[1]).read_text(encoding="utf-8")
        if match[2] is not None:
            text = _rows(text, match[2], match[1])
        if match[3] is not None:
            text = _table(text, int(match[3]), match[1])
        return f"{match[0].splitlines()[0]}\n{text}<!-- end -->"

    return BLOCK.sub(quoted, readme)


def _rows(table: str, wanted: str, name: str) -> str:
    """The head of a table and the rows that begin as said, in the order said."""
    lines = table.splitlines()
    kept = lines[:2]
    for start in wanted.split("; "):
        found = [line for line in lines[2:] if line.startswith(f"| {start} |")]
        if len(found) != 1:
            raise ValueError(f"{name}: {len(found)} rows begin with {start!r}, takes one")
        kept += found
    return "\n".join(kept) + "\n"


def _table(text: str, number: int, name: str) -> str:
    """A table of a page: 1 is the first. Blanks that align its columns are left out."""
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    if not 1 <= number <= len(tables):
        raise ValueError(f"{name}: has {len(tables)} tables, not a table {number}")
    narrow = re.sub(r" {2,}", " ", tables[number - 1])
    return re.sub(r"-{3,}", "---", narrow)


def pages() -> list[Path]:
    """The pages that may quote tables: the README and ``docs/*.md``."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``python -m bench readme`` has no arguments."""


def run(given: argparse.Namespace) -> None:
    """``python -m bench readme``: write the pages."""
    for path in pages():
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
