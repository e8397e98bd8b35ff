"""Ablations whose results are committed: each a command of ``siri-train ablate``, by name."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import NamedTuple

from bench.results_io import RESULTS
from siri_train.cli import main
from siri_train.config.base import ConfigError

FILES = ("ablate.json", "ablate.md", "ablate.svg")


class Part(NamedTuple):
    """One ablation.

    Args:
        question: that its table answers.
        arguments: of ``siri-train ablate``, without ``--out`` and ``--jobs``.
    """

    question: str
    arguments: list[str]


_CONTROLS = "constant-max,siri,constant-mean,constant-min,constant-best"
_CAPS = "20,24,28,36,52"

PARTS = {
    "controls": Part(
        "SIRI beside constant caps, equal steps",
        ["demo", "--method", _CONTROLS, "--caps", _CAPS, "--seeds", "5"],
    ),
    "controls-tokens": Part(
        "SIRI beside constant caps, equal training tokens",
        ["demo", "--method", _CONTROLS, "--caps", _CAPS, "--seeds", "5", "--match", "tokens"],
    ),
    "rivals": Part(
        "SIRI beside the methods of other papers, equal steps",
        ["demo", "--method", "siri,asymmetric,step-up,step-down,truncation,toggle,dler,l1-exact,"
         "l1-max,dapo", "--seeds", "3"],
    ),
    "shapes": Part(
        "three shapes and three lengths of a cycle, at the scheduled ends",
        ["demo", "--vary", "schedule.shape=cosine,stair,stair-cosine",
         "--vary", "schedule.cycle=60,120,240", "--seeds", "3", "--at", "siri-low,siri-high"],
    ),
    "penalties": Part(
        "a moving cap beside length in the reward under a constant cap",
        ["demo", "--vary", "reward.function=length-cap,length-penalty,kimi,arora,gr3",
         "--seeds", "3", "schedule.shape=constant"],
    ),
    "normalisation": Part(
        "advantages over the group or over the batch, under the shortest cap",
        ["demo", "--vary", "advantage.scale=group_std,batch_std", "--seeds", "5",
         "schedule.shape=constant", "schedule.max_len=20", "schedule.min_len=20"],
    ),
}  # fmt: skip
"""Every part by name."""


def make(name: str, runs: Path, out: Path, jobs: int) -> int:
    """Run a part, or continue it, and copy its results.

    Args:
        name: in `PARTS`.
        runs: folder of the runs; the part has a folder of its own in it.
        out: folder of results; the files begin with ``evidence_NAME``.
        jobs: runs at a time.

    Returns:
        The exit status of ``siri-train ablate``.
    """
    folder = runs / name
    status = main(["ablate", *PARTS[name].arguments, "--out", str(folder), "--jobs", str(jobs)])
    for file in FILES:
        if (folder / file).is_file():
            out.mkdir(parents=True, exist_ok=True)
            target = f"evidence_{name.replace('-', '_')}{Path(file).suffix}"
            shutil.copy(folder / file, out / target)
    return status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench evidence``."""
    parser.add_argument(
        "names",
        nargs="+",
        choices=list(PARTS),
        metavar="NAME",
        help="; ".join(f"{name}: {part.question}" for name, part in PARTS.items()),
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")


def run(arguments: argparse.Namespace) -> None:
    """``python -m bench evidence``.

    Raises:
        ConfigError: a run failed; the same command continues.
    """
    failed = [
        name
        for name in arguments.names
        if make(name, arguments.runs, arguments.out, arguments.jobs)
    ]
    if failed:
        raise ConfigError(f"evidence: {', '.join(failed)}: runs failed; run the same command again")
