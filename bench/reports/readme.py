"""Puts the measured tables of ``bench/results`` into README and docs.

They quote nothing else. Between ``<!-- bench/results/X.md -->`` and ``<!-- end -->`` stands
that file; a test compares. ``<!-- bench/results/X.md rows: A; B -->`` quotes the table's head and
the lines that begin with A and B (``A | CONTENDER`` names two columns).
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- (bench/results/\S+\.md)(?: rows: (.*?))? -->\n.*?<!-- end -->", re.DOTALL)


def filled(readme: str) -> str:
    """The text of a page with every quoted file as it is now.

    Args:
        readme: the page.

    Raises:
        ValueError: a row that the file does not have, or has more than once.
        OSError: a file that cannot be read.
    """

    def quoted(match: re.Match[str]) -> str:
        text = (ROOT / match[1]).read_text(encoding="utf-8")
        if match[2] is not None:
            text = _rows(text, match[2], match[1])
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


def pages() -> list[Path]:
    """The pages that may quote tables: the README and ``docs/*.md``."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``python -m bench readme`` has no arguments."""


def run(given: argparse.Namespace) -> None:
    """``python -m bench readme``: write the pages."""
    for path in pages():
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
