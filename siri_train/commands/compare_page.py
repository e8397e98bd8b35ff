"""``siri-train compare RUN... --page FILE``: several runs on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from siri_train.commands.compare import compare
from siri_train.commands.compare_text import comparison_text
from siri_train.config.base import ConfigError
from siri_train.files import replace_text, shown
from siri_train.report.page import build_page
from siri_train.report.several import read_several


def write_comparison(
    folders: Sequence[Path], wanted: str | None, page: Path, start: Path | None = None
) -> str:
    """Write the page of several runs, with the comparison question by question where there is one.

    Args:
        folders: of runs, or of folders that hold runs.
        wanted: the evaluation set; None: the first.
        page: the file, which is replaced.
        start: see :func:`siri_train.commands.compare.compare`.

    Returns:
        Why the page has no comparison question by question; empty where it has one. Runs that
        were evaluated on other questions still have curves to look at.

    Raises:
        ConfigError: a folder does not exist or holds no run.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"compare: {shown(folder)} is not a folder; takes folders of runs")
    found = read_several(folders, page.stem)
    if not any(run.metrics or run.evals for run in found.runs):
        raise ConfigError(
            f"compare: {', '.join(shown(folder) for folder in folders)} hold no metrics.jsonl and "
            "no eval.jsonl; takes folders of runs"
        )
    reason = ""
    try:
        text = comparison_text(compare(folders, wanted, start))
    except ConfigError as error:
        text, reason = "", str(error).removeprefix("compare: ")
        found.notes.insert(0, f"No comparison question by question: {reason}")
    replace_text(page.resolve(), build_page(found, comparison=text))
    return f"the page has no comparison question by question: {reason}" if reason else ""
