"""Writes the tables and, where matplotlib is installed, the plots of ``kernels.json``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.reports.behind import behind
from bench.reports.tables import everything, summary


def write_results(folder: Path) -> None:
    """Tables and plots of ``kernels.json`` in ``folder``, beside it."""
    result = json.loads((folder / "kernels.json").read_text(encoding="utf-8"))
    tables = {"kernels.md": everything, "summary.md": summary, "behind.md": behind}
    for name, table in tables.items():
        (folder / name).write_text(table(result), encoding="utf-8")
    try:
        from bench.reports.plots import write_plots
    except ImportError:
        print("bench: no plots, matplotlib is not installed (pip install -e '.[bench]')")
        return
    write_plots(folder, result)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench tables``."""
    parser.add_argument("folder", type=Path, help="holds kernels.json")


def run(given: argparse.Namespace) -> None:
    """``python -m bench tables FOLDER``.

    Raises:
        SystemExit: there is no ``kernels.json``.
    """
    if not (given.folder / "kernels.json").is_file():
        raise SystemExit(f"bench tables: {given.folder} has no kernels.json")
    write_results(given.folder)
