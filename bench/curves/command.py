"""Runs of training beside the first of them: does a setting separate the curves?

Sampling is chaotic: two runs that differ by roundings alone sample the same tokens for some steps,
then other ones. So a single step says nothing after that. The table has the mean over the steps,
the mean difference from the first run with a 95 % interval (bootstrap of blocks of 10 steps), and
the mean distance at a step. Give, beside the run in question, runs that differ by chance alone:
one with other roundings (``train.token_budget``), one with another seed (other questions at each
step). Keep all responses (``monitor.rollouts_every=1``, ``monitor.rollouts_kept`` at least those
of a step): they tell up to which step the runs sampled the same tokens. An interval is about the
two runs, not about all runs that could be made with their settings.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path
from typing import Any

from bench.curves.paired import Series, paired
from bench.curves.runs import Run, changed, read_run, settings_of
from bench.results_io import RESULTS, versions, write
from siri_train.config.base import ConfigError
from siri_train.config.recipe import load_config

KEYS = (
    "accuracy", "response_len_mean", "truncated_frac", "entropy", "loss", "grad_norm",
    "rollout_kl",
)  # fmt: skip
SHORT = ("accuracy", "response_len_mean", "entropy", "grad_norm")
WINDOW = 50
FIRST = "first run"


def series(run: Run, key: str, steps: range) -> list[float | None]:
    """A metric of a run, step by step.

    Args:
        run: that has these steps.
        key: of ``metrics.jsonl``.
        steps: which.
    """
    return [run.metrics[step].get(key) for step in steps]


def compare(first: Run, other: Run) -> dict[str, Any]:
    """Another run beside the first, over the steps that both have.

    Args:
        first: the run that others are compared with.
        other: a run of the same length, or shorter or longer.
    """
    steps = range(min(len(first.metrics), len(other.metrics)))
    same = _same_steps(first, other, steps)
    alike = range(min(same, len(steps)))
    windows = [steps[start : start + WINDOW] for start in steps[::WINDOW]]
    return {
        "changed": changed(other.settings, first.settings),
        "steps": len(steps),
        "steps_with_the_same_responses": same,
        "largest_difference_until_then": {
            key: _largest(series(first, key, alike), series(other, key, alike)) for key in KEYS
        },
        **_screen(other),
        "evaluations": _evaluations(other),
        "metrics": {key: _metric(first, other, key, steps) for key in KEYS},
        "windows": [
            {
                "steps": [window.start, window.stop - 1],
                "same_responses": _same_share(first, other, window),
                "distance": {
                    key: (_metric(first, other, key, window) or {}).get("distance") for key in SHORT
                },
            }
            for window in windows
        ],
    }


def _metric(first: Run, other: Run, key: str, steps: range) -> dict[str, Any] | None:
    mine, theirs = series(first, key, steps), series(other, key, steps)
    found = paired(mine, theirs)
    if found is None:
        return None
    return {"mean": _mean(theirs), "mean_of_first": _mean(mine), **found._asdict()}


def _mean(values: Series) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def _largest(first: Series, other: Series) -> float | None:
    gaps = [
        abs(b - a) for a, b in zip(first, other, strict=True) if a is not None and b is not None
    ]
    return max(gaps, default=None)


def _same_steps(first: Run, other: Run, steps: range) -> int:
    """Steps from the beginning in which both runs kept the same responses."""
    for step in steps:
        if not first.responses[step] or first.responses[step] != other.responses[step]:
            return step
    return len(steps)


def _same_share(first: Run, other: Run, steps: range) -> float | None:
    """Share of the responses that are the same, place by place."""
    pairs = [
        pair
        for step in steps
        for pair in zip(first.responses[step], other.responses[step], strict=False)
    ]
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else None


def _screen(run: Run) -> dict[str, Any]:
    """The share of screened tokens and the largest error; None without a screen."""
    shares = [x for x in series(run, "screened_frac", range(len(run.metrics))) if x is not None]
    errors = [x for x in series(run, "screen_error_max", range(len(run.metrics))) if x is not None]
    return {
        "screened_frac": _mean(shares) if shares else None,
        "steps_screened_by_half": sum(x >= 0.5 for x in shares) if shares else None,
        "steps_with_screen": len(shares) or None,
        "screen_error_max": max(errors, default=None),
    }


def _evaluations(run: Run) -> list[dict[str, Any]]:
    kept = ("step", "questions", "budgets", "accuracy", "tokens")
    return [{key: record.get(key) for key in kept} for record in run.evaluations]


def label(entry: dict[str, Any]) -> str:
    """A run's name in the tables: what it changes.

    Args:
        entry: of :func:`compare`.
    """
    return ", ".join(f"`{k}={v}`" for k, v in entry["changed"].items()) or "the same settings"


def table(result: dict[str, Any]) -> str:
    """The tables: how long runs are the same, the metrics, windows, the others among themselves.

    Args:
        result: of :func:`run`.
    """
    runs = {label(entry): entry for entry in result["runs"]}
    lines = [
        "| run | steps | screened tokens | largest error, nats | same responses in the first "
        "| largest difference in these: loss | gradient norm | evaluation |",
        "|---|---|---|---|---|---|---|---|",
        f"| {FIRST} | {result['steps']} |  |  |  |  |  | {_last(result['evaluations'])} |",
    ]
    for name, entry in runs.items():
        until = entry["largest_difference_until_then"]
        share, error = entry["screened_frac"], entry["screen_error_max"]
        lines.append(
            f"| {name} | {entry['steps']} | {'' if share is None else f'{share:.1%}'} "
            f"| {_number(error)} | {entry['steps_with_the_same_responses']} steps "
            f"| {_number(until['loss'])} | {_number(until['grad_norm'])} "
            f"| {_last(entry['evaluations'])} |"
        )
    lines += [
        "",
        "| metric | run | mean | of the first | difference (95 % interval) | distance at a step |",
        "|---|---|---|---|---|---|",
    ]
    for key in KEYS:
        for name, entry in runs.items():
            if found := entry["metrics"][key]:
                lines.append(
                    f"| {key} | {name} | {_number(found['mean'])} "
                    f"| {_number(found['mean_of_first'])} | {_difference(found)} "
                    f"| {_number(found['distance'])} |"
                )
    lines += [
        "",
        f"| run | steps | same responses | {' | '.join(f'{key}, distance' for key in SHORT)} |",
        "|---|---|---|" + "---|" * len(SHORT),
    ]
    for name, entry in runs.items():
        for window in entry["windows"]:
            share = window["same_responses"]
            cells = [_number(window["distance"][key]) for key in SHORT]
            lines.append(
                f"| {name} | {window['steps'][0]} to {window['steps'][1]} "
                f"| {'' if share is None else f'{share:.1%}'} | {' | '.join(cells)} |"
            )
    return "\n".join([*lines, *_among(result)]) + "\n"


def _among(result: dict[str, Any]) -> list[str]:
    """Differences between every two of the other runs."""
    lines = [
        "",
        f"| run | less | steps | {' | '.join(f'{key} (95 % interval)' for key in SHORT)} |",
        "|---|---|---|" + "---|" * len(SHORT),
    ]
    for pair in result["among_others"]:
        minus, name = (label(result["runs"][place]) for place in pair["runs"])
        cells = [_difference(pair["metrics"][key]) for key in SHORT]
        lines.append(f"| {name} | {minus} | {pair['steps']} | {' | '.join(cells)} |")
    return lines if len(lines) > 3 else []


def _difference(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{found['difference']:+.3g} ({found['low']:+.3g} to {found['high']:+.3g})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _last(evaluations: list[dict[str, Any]]) -> str:
    """The last evaluation: accuracy at the largest budget, and questions."""
    if not evaluations:
        return ""
    return f"{evaluations[-1]['accuracy'][-1]:.1%} of {evaluations[-1]['questions']}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench curves``."""
    parser.add_argument("first", type=Path, help="the run that the others are compared with")
    parser.add_argument("others", type=Path, nargs="+", help="runs of the same recipe")
    parser.add_argument("--recipe", help="what the first run changes in it is in the result")
    parser.add_argument("--note", default="", help="how the runs were made, for the result")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu")


def run(given: argparse.Namespace) -> None:
    """``python -m bench curves``: write ``curves.json`` and ``curves.md``.

    Raises:
        SystemExit: a folder is no run, or the recipe is none.
    """
    first = read_run(given.first)
    others = [read_run(folder) for folder in given.others]
    base: dict[str, Any] = {}
    if given.recipe:
        try:
            base = settings_of(load_config(given.recipe))
        except ConfigError as error:
            raise SystemExit(f"bench curves: {error}") from None
    result = {
        "versions": versions("transformers", "reasoning-gym"),
        "note": given.note,
        "recipe": given.recipe,
        "overrides": changed(first.settings, base),
        "steps": len(first.metrics),
        "evaluations": _evaluations(first),
        "runs": [compare(first, other) for other in others],
        "among_others": [
            {
                "runs": [i, j],
                "steps": len(steps),
                "metrics": {key: _metric(others[i], others[j], key, steps) for key in KEYS},
            }
            for i, j in combinations(range(len(others)), 2)
            for steps in (range(min(len(others[i].metrics), len(others[j].metrics))),)
        ],
        "curves": [
            {
                key: [None if x is None else float(f"{x:.6g}") for x in series(r, key, steps)]
                for key in (*KEYS, "screened_frac")
            }
            for r in (first, *others)
            for steps in (range(len(r.metrics)),)
        ],
    }
    write(given.out, "curves", result, table(result))
