"""``python -m bench.reports.readme``: the measured tables of ``bench/results`` in README and docs.

They quote nothing else: between ``<!-- bench/results/X.md -->`` and ``<!-- end -->`` stands
that file, and a test fails when it does not.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- (bench/results/\S+\.md) -->\n.*?<!-- end -->", re.DOTALL)


def filled(readme: str) -> str:
    """The README's text with every quoted file as it is now."""
    return BLOCK.sub(
        lambda match: (
            f"<!-- {match[1]} -->\n{(ROOT / match[1]).read_text(encoding='utf-8')}<!-- end -->"
        ),
        readme,
    )


def pages() -> list[Path]:
    """What may quote tables: the README and ``docs/*.md``."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


if __name__ == "__main__":
    for path in pages():
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
