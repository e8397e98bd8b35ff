"""Writes the tables and, where matplotlib is installed, the plots of ``kernels.json``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.reports.behind import behind
from bench.reports.tables import write_tables


def write_results(folder: Path) -> None:
    """Tables and plots of ``kernels.json`` in ``folder``, beside it."""
    write_tables(folder)
    result = json.loads((folder / "kernels.json").read_text(encoding="utf-8"))
    (folder / "behind.md").write_text(behind(result), encoding="utf-8")
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
