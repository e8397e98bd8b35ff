"""Ablations whose results are committed: each a command of ``siri-train ablate``, by name."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import NamedTuple

from bench.results_io import RESULTS, write
from bench.workloads.phases import as_json, contrasts, page, read_phases
from siri_train.cli import main
from siri_train.config.base import ConfigError

FILES = ("ablate.json", "ablate.md", "ablate.svg")


class Part(NamedTuple):
    """One ablation.

    Args:
        question: that its table answers.
        arguments: of ``siri-train ablate``, without ``--out`` and ``--jobs``.
        before: arguments of ``siri-train`` for what must be there first; it continues too.
        phases: also compare what each phase of the schedule does.
    """

    question: str
    arguments: list[str]
    before: tuple[str, ...] = ()
    phases: bool = False


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
        ["demo", "--method", "constant-max,siri,asymmetric,step-up,step-down,truncation,toggle,"
         "dler,l1-exact,l1-max,dapo", "--seeds", "3"],
    ),
    "shapes": Part(
        "three shapes and three lengths of a cycle, at the scheduled ends",
        ["demo", "--vary", "schedule.shape=cosine,stair,stair-cosine",
         "--vary", "schedule.cycle=60,120,240", "--seeds", "3", "--at", "siri-low,siri-high"],
        phases=True,
    ),
    "penalties": Part(
        "SIRI's moving cap beside length in the reward under a constant cap",
        ["demo", "--method", "constant-max,siri,length-penalty,kimi,arora,gr3,laser",
         "--seeds", "3"],
    ),
    "normalisation": Part(
        "advantages over the group or over the batch, under the shortest cap",
        ["demo", "--vary", "advantage.scale=group_std,batch_std", "--seeds", "5",
         "schedule.shape=constant", "schedule.max_len=20", "schedule.min_len=20"],
    ),
    "entropy": Part(
        "an entropy bonus of its own in each phase, in the task where trying again pays",
        ["recheck", "--vary", "loss.compression.entropy_coef=0.05,0.01",
         "--vary", "loss.expansion.entropy_coef=0.05,0.01", "--seeds", "3"],
        phases=True,
    ),
    "entropy-constant": Part(
        "the same bonuses under the longest cap, as control",
        ["recheck", "--method", "constant-max", "--vary", "loss.entropy_coef=0.05,0.01",
         "--seeds", "3"],
    ),
    "language-model": Part(
        "SIRI beside a constant cap on SmolLM2-135M, which takes hours",
        ["smollm2-sums", "--method", "constant-max,siri", "--seeds", "2"],
        before=("sft", "smollm2-sums"),
        phases=True,
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
        The exit status of ``siri-train ablate``, or of what comes before it.
    """
    folder, part = runs / name, PARTS[name]
    if part.before and (status := main([*part.before])):
        return status
    status = main(["ablate", *part.arguments, "--out", str(folder), "--jobs", str(jobs)])
    target = f"evidence_{name.replace('-', '_')}"
    for file in FILES:
        if (folder / file).is_file():
            out.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / file, out / f"{target}{Path(file).suffix}")
    if part.phases and not status:
        found = read_phases(folder)
        compared = contrasts(found)
        write(out, f"{target}_phases", as_json(found, compared), page(found, compared))
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
        SystemExit: a signal ended a part; no other begins.
    """
    failed = []
    for name in arguments.names:
        status = make(name, arguments.runs, arguments.out, arguments.jobs)
        if status > 128:
            raise SystemExit(status)
        failed += [name] if status else []
    if failed:
        raise ConfigError(f"evidence: {', '.join(failed)}: runs failed; run the same command again")
