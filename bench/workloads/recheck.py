"""Runs the recipe ``recheck.yaml`` over seeds beside a constant cap; writes ``recheck.json``.

Every checkpoint answers the same held-out questions under the longest cap. What falls and returns
is then what the model wants to write, not what a shorter cap leaves of it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.results_io import RESULTS, write
from siri_train.config.recipe import load_config
from siri_train.config.run import RunConfig
from siri_train.data.sources import encode_questions, read_sources
from siri_train.model.demo_model import WAIT, WORD_ID
from siri_train.model.policy import load_policy
from siri_train.rewards import Response, grade_responses, make_verifier
from siri_train.rollout import SamplingParams
from siri_train.rollout.transformers_engine import TransformersEngine
from siri_train.train import train


def measure(config: RunConfig, checkpoint: Path | None) -> dict[str, list[float]]:
    """Answer the recipe's held-out questions; "wait", tokens and right (0 or 1) of each.

    Args:
        config: of the run.
        checkpoint: whose weights answer; None: the supervised start's.
    """
    policy = load_policy(config.model, torch.device("cpu"), checkpoint)
    questions = encode_questions(
        read_sources(config.data.eval, "test", "data.eval"), policy.tokenizer, config.data
    )
    policy.model.eval()
    engine = TransformersEngine(
        policy.model, policy.tokenizer.pad_token_id, config.rollout.batch_rows
    )
    groups = engine.generate(
        [question.prompt_ids for question in questions],
        SamplingParams(
            max_tokens=config.schedule.max_len,
            n=1,
            temperature=1.0,
            top_p=1.0,
            stop_token_ids=policy.eos_ids,
            seed=config.seed + 7,
        ),
    )
    ids = [group[0].token_ids for group in groups]
    texts = policy.decode(ids)
    grades = grade_responses(
        [Response(t, g[0].finish_reason) for t, g in zip(texts, groups, strict=True)],
        [question.answer for question in questions],
        verifier=make_verifier("exact"),
        think="required",
    )
    return {
        "waits": [float(list(one).count(WORD_ID[WAIT])) for one in ids],
        "tokens": [float(len(one)) for one in ids],
        "right": [float(grade.right is True) for grade in grades],
    }


def difference(after: Sequence[float], before: Sequence[float]) -> tuple[float, float]:
    """Mean of ``after - before`` over questions, and the half width of its 95 % interval.

    Paired by question: 1.96 standard errors of the mean of the differences.
    """
    changes = [a - b for a, b in zip(after, before, strict=True)]
    return statistics.fmean(changes), 1.96 * statistics.stdev(changes) / math.sqrt(len(changes))


def turns(cycle: int, steps: int, lag: int) -> list[int]:
    """The start, and the steps where the length turns: ``lag`` after each extreme of the cap.

    Args:
        cycle: steps of a cycle.
        steps: of the run.
        lag: steps.
    """
    return sorted({0, *range(lag, steps + 1, cycle // 2)})


def compared(measured: Sequence[dict[str, list[float]]], at: Sequence[int]) -> list[dict[str, Any]]:
    """For each turn the means, and the changes since the turn before.

    Args:
        measured: what :func:`measure` gave at the steps.
        at: the steps.
    """
    rows: list[dict[str, Any]] = []
    for number, (step, one) in enumerate(zip(at, measured, strict=True)):
        row: dict[str, Any] = {"step": step}
        for key, values in one.items():
            row[key] = statistics.fmean(values)
            if number:
                row[f"{key}_change"] = difference(values, measured[number - 1][key])
        row["waits_per_1k"] = 1000 * row["waits"] / row["tokens"]
        rows.append(row)
    return rows


def table(runs: dict[str, dict[str, Any]]) -> str:
    """The turns of every run, with changes and their 95 % intervals.

    Args:
        runs: by name "shape-seed": ``turns`` as :func:`compared` gives them, and ``entropy``.
    """
    lines = [
        "| cap | seed | step | wait a response | change | wait per 1000 tokens | tokens "
        "| accuracy % | change | entropy of the run |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        shape, _, seed = name.partition("-")
        for row in run["turns"]:
            changes = ["", ""]
            if "waits_change" in row:
                (wait, wait_half), (right, right_half) = row["waits_change"], row["right_change"]
                changes = [
                    f"{wait:+.2f} ± {wait_half:.2f}",
                    f"{100 * right:+.1f} ± {100 * right_half:.1f}",
                ]
            low, high = run["entropy"]
            lines.append(
                f"| {shape} | {seed} | {row['step']} | {row['waits']:.2f} | {changes[0]} "
                f"| {row['waits_per_1k']:.1f} | {row['tokens']:.1f} | {100 * row['right']:.1f} "
                f"| {changes[1]} | {low:.3f} to {high:.3f} |"
            )
    return "\n".join(lines) + "\n"


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def entropy_band(folder: Path, width: int = 10) -> tuple[float, float]:
    """Least and greatest entropy of a run, as means of ``width`` steps, without the first of them.

    A run of fewer than two widths has narrower ones.
    """
    values = [row["entropy"] for row in rows_of(folder / "metrics.jsonl")]
    width = max(1, min(width, len(values) // 2))
    means = [statistics.fmean(values[i : i + width]) for i in range(width, len(values), width)]
    return min(means), max(means)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench recheck``."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--control-seeds", type=int, nargs="*", help="of the constant cap; default: --seeds"
    )
    parser.add_argument("--lag", type=int, default=10, help="steps after the cap's extremes")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-recheck"))
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu")
    parser.add_argument("overrides", nargs="*", help="key=value, for every run")


def run(arguments: argparse.Namespace) -> None:
    """``python -m bench recheck``; a second call continues the runs."""
    runs: dict[str, dict[str, Any]] = {}
    last: dict[str, dict[str, list[float]]] = {}
    controls = arguments.control_seeds
    seeds = {
        "cosine": arguments.seeds,
        "constant": arguments.seeds if controls is None else controls,
    }
    for shape, chosen in seeds.items():
        for seed in chosen:
            name = f"{shape}-{seed}"
            folder = arguments.runs / name
            given = [f"output={folder}", f"seed={seed}", f"schedule.shape={shape}", f"name={name}"]
            config = load_config("recheck.yaml", [*given, *arguments.overrides])
            train(config)
            at = turns(config.schedule.cycle, config.train.steps, arguments.lag)
            measured = [
                measure(config, folder / "checkpoints" / f"step_{step:06d}" if step else None)
                for step in at
            ]
            last[name] = measured[-1]
            runs[name] = {
                "turns": compared(measured, at),
                "entropy": entropy_band(folder),
                "evaluations": [
                    {key: row[key] for key in ("step", "accuracy", "tokens", "backtrack_per_1k")}
                    for row in rows_of(folder / "eval.jsonl")
                ],
            }
    ends = {
        str(seed): difference(last[f"cosine-{seed}"]["right"], last[f"constant-{seed}"]["right"])
        for seed in arguments.seeds
        if f"constant-{seed}" in last
    }
    text = table(runs) + "\nAccuracy at the last step, cosine minus constant, in points: "
    text += "; ".join(
        f"seed {seed} {100 * d:+.1f} ± {100 * half:.1f}" for seed, (d, half) in ends.items()
    )
    write(arguments.out, "recheck", {"cosine_minus_constant": ends, "runs": runs}, text + ".\n")
