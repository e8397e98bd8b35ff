"""The command ``python -m siri_kernels.aot``.

Prints, for each variant and GPU generation: registers, bytes of stack a thread (spills are there),
shared memory, the widest and the narrowest global load and store in bytes a thread, instructions a
thread on the common path (see :mod:`siri_kernels.aot.machine_code`), the same for each element of a
tile (instructions * threads / BLOCK; where there is a loop, of a turn that takes BLOCK elements,
with all that stands outside), instructions of one turn of each loop, and the constants.
``--check`` fails on what :mod:`siri_kernels.aot.limits` and :mod:`siri_kernels.aot.hazards` find.

All variants are compiled for sm_90. For the other parts every fourth of a kernel's variants is, its
first among them; with ``--all`` all are.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator

from siri_kernels.aot.parts import PARTS
from siri_kernels.aot.record import Variant

_variants: list[Variant] = []  # a forked process finds them here


def _report(index: int) -> tuple[str, list[str]]:
    from siri_kernels.aot.compiler import report
    from siri_kernels.aot.limits import faults_of

    made = report(_variants[index])
    return made.line(), faults_of(made)


def _reports(jobs: int) -> Iterator[tuple[str, list[str]]]:
    if jobs == 1:
        yield from map(_report, range(len(_variants)))
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap(_report, range(len(_variants)), chunksize=4)


def _some(variants: list[Variant]) -> list[Variant]:
    """All of the part that most runs are on, and every fourth of each kernel for the others."""
    seen: Counter[tuple[str, str]] = Counter()
    chosen = []
    for variant in variants:
        place = variant.name, variant.part.name
        if variant.part.name == "sm_90" or seen[place] % 4 == 0:
            chosen.append(variant)
        seen[place] += 1
    return chosen


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m siri_kernels.aot", description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 on any fault")
    parser.add_argument("--part", choices=[p.name for p in PARTS], action="append")
    parser.add_argument("--kernel", default="", help="only kernels with this in their name")
    parser.add_argument("--all", action="store_true", help="all variants for all parts")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile")
    given = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 compiles nothing; unset it")
    from siri_kernels.aot.variants import recorded

    parts = [part for part in PARTS if not given.part or part.name in given.part]
    found = recorded(parts).values()
    _variants[:] = [variant for variant in found if given.kernel in variant.name]
    if not given.all:
        _variants[:] = _some(_variants)
    print(f"{len(_variants)} variants", flush=True)
    faults = 0
    for line, wrong in _reports(given.jobs):
        faults += bool(wrong)
        print(line + (f"  FAULT: {'; '.join(wrong)}" if wrong else ""), flush=True)
    print(f"{faults} of the variants have faults")
    return 1 if given.check and faults else 0


if __name__ == "__main__":
    sys.exit(main())
