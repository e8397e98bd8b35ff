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
    "constant-cap": "longest cap, constant",
    "constant-36": "constant 36, SIRI's mean",
    "constant-28": "constant 28",
    "constant-24": "constant 24",
    "constant-20": "shortest cap, constant",
    "siri-low-scheduled": "siri-low at the shortest cap",
    "siri-low": "**siri-low**",
    "siri-high": "**siri-high**",
}
SHORT = 24
"""Tokens of the column "accuracy within"."""


def table(summaries: dict[int, list[dict[str, Any]]]) -> str:
    """Means over the seeds, with the range in brackets; the intervals are those of one run."""
    runs = [{entry["name"]: entry for entry in summary} for summary in summaries.values()]
    lines = [
        f"| | accuracy (range) ± 95 % | mean tokens | accuracy within {SHORT} tokens "
        "| points against the longest cap | training tokens | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, label in NAMES.items():
        entries = [run[name] for run in runs]
        accuracy = [e["accuracy"] for e in entries]
        half = [(e["accuracy_interval"][1] - e["accuracy_interval"][0]) / 2 for e in entries]
        short = [e["accuracy_at"][e["budgets"].index(SHORT)] for e in entries]
        points = [
            100 * (e["accuracy"] - run["constant-cap"]["accuracy"])
            for e, run in zip(entries, runs, strict=True)
        ]
        trained = [e["trained_tokens"] / 1e6 for e in entries]
        spent = [e["train_seconds"] for e in entries]
        cells = [
            label,
            f"{_spread(accuracy, '.1%')} ± {_mean(half):.1%}",
            _spread([e["tokens"] for e in entries], ".1f"),
            _spread(short, ".1%"),
            "" if name in ("start", "constant-cap") else f"{_mean(points):+.1f}",
            "" if name == "start" else f"{_mean(trained):.2f} M",
            "" if name == "start" else f"{_mean(spent):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    best = [e["name"] for run in runs for e in run.values() if e.get("best_constant")]
    count = len(runs)
    of = f"Mean of {count} seeds (smallest to largest)" if count > 1 else "One seed"
    named = ", ".join(NAMES[name] for name in best)
    lines += [
        "",
        f"{of}, two runs at a time, CPU. Best constant cap by the validation questions: {named}.",
    ]
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
