"""The kernels' tests on the GPU, in parallel; every failure is a line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

from bench.gpu.context import Context
from bench.gpu.plan import ROOT

WORKERS = 14  # each has a context on the GPU and compiles kernels on a core of its own
# One run each: a conftest that cannot be imported ends a run before it begins.
RUNS = (("tests/kernels",), ("tests/train/test_attention.py", "tests/train/test_packing.py"))
USAGE = 4  # pytest's exit code where a conftest needs a package that is not here, say
REHEARSAL = (("tests/kernels/test_varlen.py",),)


def run(context: Context) -> None:
    """All tests; in the second call only those that failed in the first, if they are known."""
    failed = list(dict.fromkeys(
        r["test"] for r in context.before
        if r["what"] == "test_failed" and r.get("call") != context.records.every["call"]
    ))  # fmt: skip
    known = [name for name in failed if (ROOT / name.partition("::")[0]).exists()][:100]
    if known:
        pytest_run(context, "failed before", tuple(known))
        return
    for number, paths in enumerate(REHEARSAL if context.rehearse else RUNS):
        there = tuple(path for path in paths if (ROOT / path).exists())
        if there and context.in_time(" ".join(there), 10):
            # The second run is short; the first one leaves time for it.
            kept = 15 if number == 0 and not context.rehearse else 0
            pytest_run(context, " ".join(there), there, kept)


def pytest_run(context: Context, name: str, paths: tuple[str, ...], kept: float = 0) -> None:
    """One run of pytest.

    Args:
        context: of the part.
        name: of the run.
        paths: for pytest.
        kept: seconds before the part's limit at which it is killed.
    """
    command = [
        sys.executable, "-m", "pytest", *paths, "-q", "-p", "bench.gpu.pytest_records",
        "-p", "no:cacheprovider", "--no-header", "-m", "not slow", "--tb=short",
    ]  # fmt: skip
    here = {n: importlib.util.find_spec(n) is not None for n in ("xdist", "pytest_timeout")}
    if here["xdist"]:
        count = 1 if context.rehearse else min(WORKERS, os.cpu_count() or 1)
        command += ["-n", str(count), "--dist", "load"]  # in their order
    if here["pytest_timeout"]:
        command += ["--timeout=150"]  # FlexAttention compiles, 500 batches of the error bound
    for plugin, found in here.items():
        if not found:
            context.say("note", text=f"{plugin} is not installed: tests run without it")
    environment = {
        **os.environ,
        "SIRI_TEST_DRAW": "all",  # every case of a wide matrix
        "GPU_RECORDS": str(context.records.path),
        "GPU_EVERY": json.dumps({**context.records.every, "run": name}),
    }
    if not context.rehearse:
        environment.pop("TRITON_INTERPRET", None)
    # In this part's process group, so that it is killed with the part.
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL)
    try:
        code = process.wait(max(1.0, context.left() - kept))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        context.check(f"tests {name}", False, why="not finished within the limit")
        return
    if code == USAGE and name != " ".join(RUNS[0]):
        context.say("left_out", step=f"tests {name}", why="pytest could not begin: see the log")
        return
    context.check(f"tests {name}", code == 0, exit=code)
