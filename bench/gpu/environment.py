"""Versions, GPU, driver, clocks and commit of a run, found without importing torch."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from bench.peers import packages
from bench.results_io import commit, source, versions

PACKAGES = (
    "torch", "triton", "transformers", "numpy", "pytest", "pytest-xdist", "pytest-timeout",
    "hypothesis", "safetensors", "pydantic",
)  # fmt: skip
QUESTIONS = {
    "gpu": "name", "driver": "driver_version", "memory_mib": "memory.total",
    "sm_mhz": "clocks.sm", "memory_mhz": "clocks.mem", "most_sm_mhz": "clocks.max.sm",
    "celsius": "temperature.gpu", "watt": "power.draw", "most_watt": "power.limit",
}  # fmt: skip


def gpu_state() -> dict[str, str]:
    """Facts of ``nvidia-smi`` about the first GPU; empty where there is none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(QUESTIONS.values())}",
             "--format=csv,noheader,nounits", "--id=0"],
            capture_output=True, text=True, timeout=15, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(QUESTIONS, values, strict=False))


def facts() -> dict[str, Any]:
    """The first record of a call."""
    return {
        **gpu_state(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "versions": versions(*PACKAGES, *packages()),
        "commit": commit(),
        "source": source(*sorted(Path(__file__).parent.rglob("*.py"))),
    }
