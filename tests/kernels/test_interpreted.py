"""The tests of the Triton kernels without a GPU, in one process that has Triton interpret them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .interpreter import DEVICE, INTERPRETED

FILES = sorted(map(str, Path(__file__).parent.glob("test_*_triton*.py")))


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the files run by themselves here")
@pytest.mark.timeout(3600)  # against hanging alone; each test has its own limit
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_interpreted(which):
    pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")
    assert len(FILES) == 14
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", which, *FILES]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(run.stdout)
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-5000:] + run.stderr[-2000:]
