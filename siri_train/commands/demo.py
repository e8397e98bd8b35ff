"""``siri-train demo``: the whole method on a CPU, beside a control without a schedule."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from siri_train.checkpoint.save_load import write_json
from siri_train.commands.output import encodable
from siri_train.config.base import ConfigError
from siri_train.config.recipe import load_config
from siri_train.config.run import RunConfig
from siri_train.data.demo_task import questions as embedded
from siri_train.model import demo_model
from siri_train.monitor.progress import duration
from siri_train.report import summary_table, write_report
from siri_train.train import train
from siri_train.trainer.lock import run_lock

INTRODUCTION = """\
SIRI on a CPU: a model of {parameters:,} parameters that was taught to think wastefully (it
re-checks behind "wait" and writes every step out) learns by reinforcement which thoughts pay.
  task      {example}
  control   {steps} steps with the cap fixed at {max_len} tokens
  SIRI      {steps} steps, the cap swinging {max_len} -> {min_len} -> {max_len}, {cycles:g} cycles
"""


def demo(out: Path, seed: int = 0) -> list[dict[str, Any]]:
    """Train a control and a SIRI run from the shipped start; write summary.json and report.html.

    A second call with the same folder and seed reuses whatever is finished and continues the rest.

    Args:
        out: the folder; the runs are OUT/constant and OUT/siri.
        seed: of sampling and question order; the start is the same for every seed.

    Returns:
        The entries of summary.json: start, constant-cap, siri-low, siri-high.

    Raises:
        ConfigError: the folder holds a demo with another seed, or a run of ``siri-train train``;
            another process writes there; or it cannot be written.
    """
    with run_lock(out, "--out"):
        return _demo(out, seed)


def _demo(out: Path, seed: int) -> list[dict[str, Any]]:
    for name in ("config.yaml", "metrics.jsonl"):
        if (out / name).exists():
            raise ConfigError(
                f"--out: {out} holds a run of `siri-train train` ({name}), whose table and page "
                "the demo would replace; give another folder"
            )
    started = time.monotonic()
    siri = demo_config(out / "siri", seed, "cosine")
    schedule = siri.schedule
    print(
        INTRODUCTION.format(
            parameters=demo_model.start_parameters(),
            example=embedded.questions(1, seed=3)[0].prompt,
            steps=siri.train.steps,
            max_len=schedule.max_len,
            min_len=schedule.min_len,
            cycles=siri.train.steps / schedule.cycle,
        ),
        flush=True,
    )
    control = demo_config(out / "constant", seed, "constant")
    train(control)
    train(siri)
    summary = _combine(out)
    write_json(out / "summary.json", summary)
    page = write_report(out)
    print(f"\n{encodable(summary_table(summary))}\n")
    print(f"report: {page}   ({duration(time.monotonic() - started)})", flush=True)
    return summary


def demo_config(folder: Path, seed: int, shape: str) -> RunConfig:
    """The packaged recipe ``demo.yaml`` with another folder, seed and schedule shape.

    Args:
        folder: of the run.
        seed: of sampling and question order.
        shape: ``schedule.shape``.
    """
    return load_config(
        "demo.yaml",
        [f"output={folder}", f"seed={seed}", f"schedule.shape={shape}", f"name={folder.name}"],
    )


def _combine(out: Path) -> list[dict[str, Any]]:
    """One summary of both runs, with paths relative to ``out``."""
    import json

    entries = []
    for run, names in (
        ("siri", ("start",)),
        ("constant", ("constant-cap",)),
        ("siri", ("siri-low", "siri-high")),
    ):
        rows = json.loads((out / run / "summary.json").read_text(encoding="utf-8"))
        for row in rows:
            if row["name"] in names:
                path = row["path"]
                if path.startswith("checkpoints/"):
                    path = f"{run}/{path}"
                entries.append({**row, "path": path, "run": run})
    return entries
