"""Runs ``siri-train demo`` for several seeds; writes ``demo.json`` and ``demo.md``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from bench.results_io import RESULTS, write
from siri_train.commands.demo import demo

NAMES = {
    "start": "start",
    "constant-cap": "constant cap",
    "siri-low": "siri-low",
    "siri-high": "siri-high",
}


def table(summaries: dict[int, list[dict[str, Any]]]) -> str:
    """Means over the seeds, with the range in brackets; the intervals are those of one run."""
    runs = [{entry["name"]: entry for entry in summary} for summary in summaries.values()]
    low_budget = runs[0]["start"]["low_budget"]
    lines = [
        f"| | accuracy (95 % interval) | mean tokens | accuracy, change | tokens, change "
        f"| accuracy within {low_budget} tokens |",
        "|---|---|---|---|---|---|",
    ]
    for name, label in NAMES.items():
        entries = [run[name] for run in runs]
        accuracy = [e["accuracy"] for e in entries]
        tokens = [e["tokens"] for e in entries]
        half = [(e["accuracy_interval"][1] - e["accuracy_interval"][0]) / 2 for e in entries]
        short = [e["accuracy_low_budget"] for e in entries]
        better = [
            e["accuracy"] / run["start"]["accuracy"] - 1
            for e, run in zip(entries, runs, strict=True)
        ]
        fewer = [
            e["tokens"] / run["start"]["tokens"] - 1 for e, run in zip(entries, runs, strict=True)
        ]
        change = ["", ""] if name == "start" else [f"{_mean(better):+.0%}", f"{_mean(fewer):+.0%}"]
        lines.append(
            f"| {label} | {_spread(accuracy, '.1%')} ± {_mean(half):.1%} "
            f"| {_spread(tokens, '.1f')} | {change[0]} | {change[1]} | {_spread(short, '.1%')} |"
        )
    count = len(runs)
    lines += ["", f"Mean of {count} seeds{' (smallest to largest)' if count > 1 else ''}, CPU."]
    return "\n".join(lines) + "\n"


def _mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def _spread(values: list[float], form: str) -> str:
    """``mean (smallest to largest)``; only the mean when they agree as printed."""
    least, most = format(min(values), form), format(max(values), form)
    text = format(_mean(values), form)
    return text if least == most else f"{text} ({least} to {most})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench demo``."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-demo"))
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu")


def run(arguments: argparse.Namespace) -> None:
    """``python -m bench demo``."""
    summaries, seconds = {}, {}
    for seed in arguments.seeds:
        started = time.monotonic()
        summaries[seed] = demo(arguments.runs / f"seed{seed}", seed)
        seconds[seed] = time.monotonic() - started
    write(arguments.out, "demo", {"seconds": seconds, "seeds": summaries}, table(summaries))
