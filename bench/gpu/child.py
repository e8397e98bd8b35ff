"""One part, in the process that the runner makes for it."""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import importlib.util
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from bench.gpu import plan
from bench.gpu.context import Context, interpreter_works, records_of
from bench.gpu.records import Records


def options() -> argparse.Namespace:
    """The command line, as :class:`bench.gpu.runner.Call` writes it."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.child", description=__doc__)
    parser.add_argument("part", choices=plan.BY_NAME)
    parser.add_argument("out", type=Path)
    parser.add_argument("--call", choices=plan.BUDGETS, default="first")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--after", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--fault", action="append", default=[])
    return parser.parse_args()


def missing(part: plan.Part, faults: list[str]) -> list[str]:
    """Packages that the part needs and that are not installed."""
    hidden = {f.partition(":")[2] for f in faults if f.startswith("missing:")}
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # an import of it fails from now on

    def found(name: str) -> bool:
        if "." in name:  # one of ours: looked for without importing torch
            return plan.there(name)
        return name not in hidden and importlib.util.find_spec(name) is not None

    return [name for name in part.needs if not found(name)]


def injected(part: plan.Part, faults: list[str]) -> None:
    """Crash or hang, if a fault of this part says so."""
    if f"crash:{part.name}" in faults:
        os.kill(os.getpid(), signal.SIGSEGV)
    if f"hang:{part.name}" in faults:
        while True:
            time.sleep(60)


def main() -> int:
    """Exit code 0, or 1 if the part raised or something in it failed."""
    given = options()
    faulthandler.enable()
    part = plan.BY_NAME[given.part]
    records = Records(given.out / f"{given.call}.jsonl", {"call": given.call, "part": part.name})
    absent = missing(part, given.fault)
    if absent:
        why = "; ".join(map(plan.remedy, absent))
        records.write("missing", packages=absent, why=why)
        return 0
    if given.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if interpreter_works():
            os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    context = Context(
        part.name, records, given.seconds, given.rehearse, part.option,
        records_of((given.after, given.out)),
    )  # fmt: skip
    records.write("running", rehearsal=given.rehearse)
    injected(part, given.fault)
    try:
        importlib.import_module(f"bench.gpu.parts.{part.file}").run(context)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        text = (str(error).strip().splitlines() or [""])[0]
        context.say("error", why=f"{type(error).__name__}: {text[:400]}",
                    trace=traceback.format_exc(limit=-4)[-1500:])  # fmt: skip
        return 1
    if context.failures:
        context.say("error", why=f"failed: {', '.join(context.failures)}"[:400])
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Threads of a GPU library that is stuck would keep the process from ending.
    os._exit(code)
