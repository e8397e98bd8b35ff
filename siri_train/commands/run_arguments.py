"""The arguments of commands that compare and count the files of runs.

Standard library only, see ``parser.py``.
"""

from __future__ import annotations

import argparse

from siri_train.commands import arguments as kinds


def compare(sub: argparse.ArgumentParser) -> None:
    """Add those of ``siri-train compare``."""
    runs = sub.add_argument(
        "runs",
        nargs="+",
        type=kinds.path,
        metavar="RUN",
        help="folder of a run, of runs, or of a checkpoint that eval has graded",
    )
    kinds.completed(runs, "run")
    sub.add_argument("--set", metavar="NAME", help="the evaluation set; default: the first")
    how = sub.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="every checkpoint and number as JSON")
    how.add_argument(
        "--page", type=kinds.path, metavar="FILE", help="one page with the curves of all runs"
    )


def tokens(sub: argparse.ArgumentParser) -> None:
    """Add those of ``siri-train tokens``."""
    runs = sub.add_argument("runs", nargs="+", type=kinds.path, metavar="RUN", help="its folder")
    kinds.completed(runs, "run")
    sub.add_argument(
        "--words",
        type=kinds.names,
        default=[],
        metavar="WORD,WORD",
        help="words or phrases; default: the groups that the run counted",
    )
    sub.add_argument("--json", action="store_true", help="all counts as JSON")
