"""``siri-train report RUN --text`` and ``--json``: the verdict without a page."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from siri_train.config.base import ConfigError
from siri_train.files import shown
from siri_train.report.data import read_run_folder
from siri_train.report.verdict import judge
from siri_train.report.verdict.text import verdict_text
from siri_train.terminal.lines import terminal_width

_FILES = ("config.yaml", "metrics.jsonl", "eval.jsonl", "summary.json")
_WIDEST = 100


def told(folder: Path, as_json: bool) -> str:
    """The verdict on a run as text for standard output, or as JSON.

    Args:
        folder: of a run, of several, or of an ablation.
        as_json: give JSON.

    Raises:
        ConfigError: it is no folder, or holds no run.
    """
    if not folder.is_dir():
        raise ConfigError(f"report: {shown(folder)} is not a folder; takes a run's folder")
    places = ("", "*/", "*/*/", "*/*/*/")  # ARM/MEMBER/seed-N of an ablation
    if not any(any(folder.glob(place + name)) for place in places for name in _FILES):
        raise ConfigError(
            f"report: {shown(folder)} holds no run ({', '.join(_FILES)} are missing); give the "
            "folder of a run or of a demo"
        )
    verdict = judge(read_run_folder(folder))
    if as_json:
        return json.dumps(verdict.to_json(), indent=2, allow_nan=False)
    terminal = sys.stdout.isatty()
    width = min(terminal_width(), _WIDEST)
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return verdict_text(verdict, width, colour=terminal and not plain)
