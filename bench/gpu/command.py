"""Runs all parts of a GPU run, or those of ``--only``, within a budget of minutes.

``first`` runs everything; ``second``, after it, what failed or was not reached, and then the main
timings again. ``scripts/gpu_run.sh`` starts it with any Python; docs/benchmarks.md describes it.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from bench.gpu import plan
from bench.gpu.records import read
from bench.gpu.runner import Call, Runner
from bench.gpu.summary import summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench gpu``."""
    parser.epilog = f"{parser.epilog or ''}\n\nparts: {', '.join(plan.BY_NAME)}"
    parser.add_argument("call", choices=plan.BUDGETS, help="first: 9 minutes; second: 4 minutes")
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--after", type=Path, help="second: folder of the first call's results")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on this CPU")
    parser.add_argument("--only", default="", metavar="PART,...", help="these parts alone")
    parser.add_argument("--budget", type=float, default=0.0, help="seconds of the whole call")
    parser.add_argument("--limit", action="append", default=[], metavar="PART=SECONDS")
    parser.add_argument("--fault", action="append", default=[], metavar="FAULT",
                        help="for tests: crash:PART, hang:PART, missing:PACKAGE")  # fmt: skip


def call_of(given: argparse.Namespace) -> Call:
    """The call that the command line requests.

    Raises:
        SystemExit: there is no part of a name that is given.
    """
    only = tuple(name for name in given.only.split(",") if name)
    limits = dict(pair.split("=") for pair in given.limit)
    for name in {*only, *limits} - set(plan.BY_NAME):
        raise SystemExit(f"bench gpu: no part is called {name!r}; takes {', '.join(plan.BY_NAME)}")
    return Call(
        name=given.call, out=given.out.resolve(),
        after=given.after and given.after.resolve(), rehearse=given.rehearse,
        faults=tuple(given.fault), only=only, budget=given.budget,
        limits={name: float(seconds) for name, seconds in limits.items()},
    )  # fmt: skip


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(143)  # by an exception, so that the runner kills its part


def run(given: argparse.Namespace) -> int:
    """``python -m bench gpu``: print the table; 1 if a part failed or was killed."""
    call = call_of(given)
    signal.signal(signal.SIGTERM, _terminated)
    ended = Runner(call).run()
    print(summary(list(read(call.out))))
    return int(any(status in ("failed", "killed") for status in ended.values()))
