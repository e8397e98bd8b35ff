"""Launches of several gloo ranks, with what is needed to understand one that crashes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
_CRASHED = re.compile(r"Signal \d+ \((SIGABRT|SIGSEGV|SIGBUS|SIGILL)\)")


def torchrun(
    *arguments: str, folder: Path | None = None, ranks: int = 2, timeout: float = 3000
) -> subprocess.CompletedProcess[str]:
    """``torchrun --standalone`` with ``arguments`` from the root of the repository.

    Args:
        arguments: ``-m``, a module, and what the module takes.
        folder: all that the launch reads and writes. A launch in which native code has crashed is
            then made a second time, from this folder as it was, and a warning shows the stacks:
            our code is Python, and gloo or the allocator once ended a rank with "free(): invalid
            pointer", which 58 further launches, 40 of them under glibc's checks, did not show again
            (LOG.md).
            Two crashes in a row are a failure.
        ranks: processes.
        timeout: seconds for one launch.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": path}

    def launch() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *launcher, *arguments],
            env={**os.environ, **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    if folder is None:
        return launch()
    with tempfile.TemporaryDirectory() as kept:
        before = shutil.copytree(folder, Path(kept) / "before")
        done = launch()
        if _CRASHED.search(done.stderr):
            warnings.warn(f"a rank crashed in native code, launched again:\n{done.stderr}")  # noqa: B028
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
            done = launch()
    return done
