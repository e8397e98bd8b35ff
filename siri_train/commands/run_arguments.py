"""The arguments of the commands that take the folder of a run."""

from __future__ import annotations

import argparse

from siri_train.commands import arguments as kinds


def run_folder(sub: argparse.ArgumentParser) -> None:
    """The folder of a run."""
    kinds.completed(sub.add_argument("folder", type=kinds.path, help="the run's folder"), "run")


def report(sub: argparse.ArgumentParser) -> None:
    """The arguments of ``siri-train report``."""
    run_folder(sub)
    told = sub.add_mutually_exclusive_group()
    told.add_argument("--text", action="store_true", help="only print the verdict; write no page")
    told.add_argument("--json", action="store_true", help="the same as JSON")
    told.add_argument(
        "--serve",
        action="store_true",
        help="show the page at an address of this machine, anew when the run's files change",
    )
    sub.add_argument(
        "--port",
        type=kinds.port,
        metavar="N",
        help="of --serve; 0 takes a free one (default: 8484)",
    )


def compare(sub: argparse.ArgumentParser) -> None:
    """The arguments of ``siri-train compare``."""
    runs = sub.add_argument(
        "runs",
        nargs="+",
        type=kinds.path,
        metavar="RUN",
        help="folder of a run, of runs, or of a checkpoint that eval has graded",
    )
    kinds.completed(runs, "run")
    sub.add_argument(
        "--set",
        metavar="NAME",
        help="one evaluation set; default: a table of all, then the first in detail",
    )
    start = sub.add_argument(
        "--start",
        type=kinds.path,
        metavar="FOLDER",
        help="graded model that training began from, for dAcc/CR of graded checkpoints",
    )
    kinds.completed(start, "folder")
    how = sub.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="every checkpoint and number as JSON")
    how.add_argument(
        "--page", type=kinds.path, metavar="FILE", help="one page with the curves of all runs"
    )


def tokens(sub: argparse.ArgumentParser) -> None:
    """The arguments of ``siri-train tokens``."""
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


def export(sub: argparse.ArgumentParser) -> None:
    """The arguments of ``siri-train export``."""
    run_folder(sub)
    which = sub.add_argument(
        "--which",
        type=kinds.which,
        required=True,
        metavar="NAME|STEP",
        help=f"{', '.join(kinds.ENDS)} of the last cycle, best, or a number of steps",
    )
    kinds.completed(which, "which")
    out = sub.add_argument("--out", type=kinds.path, help="default: RUN/export/NAME")
    kinds.completed(out, "folder")
