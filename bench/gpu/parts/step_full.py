"""The training step through the trainer's own code: ``bench.workloads.training_step_gpu``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from bench.gpu.context import Context
from bench.gpu.plan import ROOT
from bench.results_io import slug


def run(context: Context) -> None:
    """Its cases, one process each, with Liger where it is installed; its rows become records."""
    import json

    out = Path(tempfile.mkdtemp())
    command = [
        sys.executable, "-m", "bench", "step-gpu", "--out", str(out),
        "--limit", f"{max(10.0, context.left() - 5):.0f}",
    ]  # fmt: skip
    shape = "qwen2-1.5b"
    if context.rehearse:
        shape = "tiny"
        command += ["--shape", shape, "--device", "cpu", "--context", "64", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, check=False)
    file = out / f"training_step_{shape}.json"
    rows = json.loads(file.read_text())["cases"] if file.exists() else []
    for row in rows:
        context.say("step_full", **row)
        if "error" not in row:
            liger = "liger" if row["liger"] else "plain"
            key = f"step-full.tokens_per_s.{slug(liger)}.{row['context']}"
            context.number(key, row["tokens_per_s"])
    # 3: cases are left for the next call.
    context.check(
        "training_step_gpu", done.returncode in (0, 3) and bool(rows), exit=done.returncode
    )
