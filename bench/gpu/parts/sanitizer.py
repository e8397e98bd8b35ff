"""Small calls under ``compute-sanitizer``: accesses out of bounds, races in shared memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

from bench.gpu.context import Context
from bench.gpu.plan import ROOT

PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")


def run(context: Context) -> None:
    """Each tool in turn; in a rehearsal the calls alone, without a tool."""
    if context.rehearse:
        _watched(context, "none", [], "cpu")
        return
    found = shutil.which("compute-sanitizer", path=os.pathsep.join((os.environ["PATH"], *PLACES)))
    if found is None:
        why = "compute-sanitizer is not installed: it comes with the CUDA toolkit"
        context.say("missing", packages=["compute-sanitizer"], why=why)
        return
    for tool in ("memcheck", "racecheck"):
        if context.in_time(tool, 15):
            _watched(context, tool, [found, "--tool", tool, "--print-limit", "20"], "cuda")


def _watched(context: Context, tool: str, prefix: list[str], device: str) -> None:
    """Run the calls with a tool.

    PyTorch's cache of memory is off: its blocks would hide an access past the end of a tensor.
    """
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    environment.pop("TRITON_INTERPRET", None)
    command = [*prefix, sys.executable, "-m", "bench.gpu.small_calls", device]
    share = context.left() if tool != "memcheck" else context.left() * 0.6
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=max(5.0, share),
            capture_output=True, text=True, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        text = error.stdout.decode(errors="replace") if error.stdout else ""
        context.say("left_out", step=tool, why=f"not finished in time, ran {_ran(text)}")
        return
    text = done.stdout + done.stderr
    print(text[-20_000:], flush=True)
    if "Device not supported" in text:
        why = "compute-sanitizer does not support this device here (a virtual one, say)"
        context.say("left_out", step=tool, why=why)
        return
    summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", text)
    count = int(summary[1]) if summary else (0 if tool == "none" else None)
    kernels = sorted(set(re.findall(r"(?:at|in) (?:0x[0-9a-f]+ in )?(\w*kernel\w*)", text)))
    context.check(
        f"sanitizer {tool}", done.returncode == 0 and count == 0, errors_found=count,
        exit=done.returncode, calls=_ran(text), kernels=kernels[:20],
        first=[line[:200] for line in text.splitlines() if line.startswith("=========")][:12],
    )  # fmt: skip


def _ran(text: str) -> list[str]:
    """The calls that ended."""
    return re.findall(r"^ran (.*)$", text, re.M)
