"""What `make test-bare` asks beside the tests: nothing in a GPU run needs more than is there.

    ../bin/python scripts/bare_check.py imports | collect TEST... | rehearse OUT

Run in the copied tree, with the bare environment's Python.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))
ABSENT = ("pydantic", "math_verify", "latex2sympy2_extended", "liger_kernel", "trl", "siri")
# What an integration registers itself with; nothing else of ours may ask for it.
PEERS = {"verl", "torchtitan"}
LEAST_TESTS = 1000


def imports() -> None:
    """Every module of the kernels and of the GPU run can be imported."""
    here = [name for name in ABSENT if importlib.util.find_spec(name) is not None]
    assert not here, f"a bare machine does not have {here}"
    failed, names = (
        [],
        ["bench.device", "bench.inputs", "siri_train.model.attention", "siri_train.model.packing"],
    )
    for root in ("siri_kernels", "bench.gpu", "bench.peers"):
        package = importlib.import_module(root)
        names += [m.name for m in pkgutil.walk_packages(package.__path__, f"{root}.")]
    for name in names:
        if name.endswith("__main__"):
            continue
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not (name.startswith("siri_kernels.integrations.") and error.name in PEERS):
                failed.append(f"{name}: {error}")
    print(f"bare: {len(names)} modules")
    assert not failed, "\n".join(failed)


def collect(paths: list[str]) -> None:
    """The tests of a GPU run can be collected, and are there."""
    from bench.gpu.parts import tests

    ours = {path for run in tests.RUNS for path in run}
    assert ours <= set(paths), f"the GPU run has {sorted(ours)}, make test-gpu {paths}"
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider"]
    every = {**os.environ, "SIRI_TEST_DRAW": "all"}  # as a GPU run does
    done = subprocess.run([*command, *paths], env=every, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found = re.search(r"(\d+)(?:/\d+)? tests collected", done.stdout)
    assert found and int(found[1]) >= LEAST_TESTS, done.stdout[-500:]
    # A folder that needs more is left out with a line, and is no error.
    done = subprocess.run([*command, "-rs", "tests"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "pydantic is not installed" in done.stdout, done.stdout[-3000:]
    print(f"bare: {found[1]} tests of a GPU run")


def call(out: Path, *options: str, **limits: int) -> tuple[int, dict[str, dict]]:
    """One rehearsal; its exit code and, of each part, how it ended."""
    from bench.gpu import plan

    command = ["sh", "scripts/gpu_run.sh", "first", str(out), "--rehearse", *options]
    # Limits that no busy machine reaches, but for a part that is to hang.
    command += ["--budget=6000", *(f"--limit={n}={limits.get(n, 600)}" for n in plan.BY_NAME)]
    code = subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}).returncode
    lines = (out / "first.jsonl").read_text(encoding="utf-8").splitlines()
    return code, {r["part"]: r for r in map(json.loads, lines) if r["what"] == "end"}


def rehearse(out: Path) -> None:
    """The GPU run itself: whole, and with a part that crashes, one that hangs, one that lacks a
    package, whose neighbours' results are there."""
    from bench.gpu import plan

    code, ended = call(out / "whole")
    assert set(ended) == set(plan.BY_NAME), "every part has an end"
    lacking = {name for name, end in ended.items() if end["status"] == "missing"}
    assert code == 0 and all(
        end["status"] == ("missing" if name in lacking else "done") for name, end in ended.items()
    ), ended
    assert "step-full" in lacking and "pydantic" in ended["step-full"]["why"], ended
    needed = {"rates", "values", "head", "repeats", "tests", "losses", "step"}
    assert not lacking & needed, lacking
    faults = [
        f"--fault={fault}" for fault in ("hang:rates", "crash:repeats", "missing:transformers")
    ]
    code, ended = call(out / "faults", "--only=rates,repeats,losses,step", *faults, rates=8)
    status = {name: end["status"] for name, end in ended.items()}
    want = {"rates": "killed", "repeats": "failed", "losses": "done", "step": "missing"}
    assert code == 1 and status == want, ended
    assert "transformers" in ended["step"]["why"], ended
    text = (out / "faults/first.jsonl").read_text(encoding="utf-8")
    assert '"key": "losses.' in text, "the part behind the faults left its figures"
    print("bare: the GPU run rehearsed")


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "imports":
        imports()
    elif what == "collect":
        collect(rest)
    else:
        rehearse(Path(rest[0]))
