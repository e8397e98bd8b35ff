"""``python -m bench.gpu first|second OUT``: see ``scripts/gpu_run.sh`` and docs/benchmarks.md."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from bench.gpu import plan
from bench.gpu.records import read
from bench.gpu.runner import Call, Runner
from bench.gpu.summary import summary


def call_of(arguments: list[str]) -> Call:
    """The call that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_run.sh", description=__doc__,
        epilog="parts: " + ", ".join(plan.BY_NAME),
    )  # fmt: skip
    parser.add_argument("call", choices=plan.BUDGETS, help="first: 9 minutes; second: 4 minutes")
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--after", type=Path, help="second: folder of the first call's results")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on this CPU")
    parser.add_argument("--only", default="", metavar="PART,...", help="these parts alone")
    parser.add_argument("--budget", type=float, default=0.0, help="seconds of the whole call")
    parser.add_argument("--limit", action="append", default=[], metavar="PART=SECONDS")
    parser.add_argument("--fault", action="append", default=[], metavar="FAULT",
                        help="for tests: crash:PART, hang:PART, missing:PACKAGE")  # fmt: skip
    given = parser.parse_args(arguments)
    only = tuple(name for name in given.only.split(",") if name)
    limits = dict(pair.split("=") for pair in given.limit)
    for name in {*only, *limits} - set(plan.BY_NAME):
        parser.error(f"no part is called {name!r}; there are {', '.join(plan.BY_NAME)}")
    return Call(
        name=given.call, out=given.out.resolve(),
        after=given.after and given.after.resolve(), rehearse=given.rehearse,
        faults=tuple(given.fault), only=only, budget=given.budget,
        limits={name: float(seconds) for name, seconds in limits.items()},
    )  # fmt: skip


def main() -> int:
    """Run a call and print its table; exit code 1 if a part failed or was killed."""
    call = call_of(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part is killed first
    ended = Runner(call).run()
    print(summary(list(read(call.out))))
    return int(any(status in ("failed", "killed") for status in ended.values()))


if __name__ == "__main__":
    raise SystemExit(main())
