"""Run folders whose truth is known, for the tests of the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from siri_train.report.data import read_run_folder
from siri_train.report.verdict import Finding, Verdict, judge
from siri_train.schedule import LengthSchedule
from siri_train.statistics.intervals import share_interval
from tests.train.report_page import jsonl, metric


def found(folder: Path) -> tuple[Verdict, dict[str, Finding]]:
    """The verdict on a folder, and its findings by key."""
    verdict = judge(read_run_folder(folder))
    json.dumps(verdict.to_json(), allow_nan=False)
    return verdict, {one.key: one for one in verdict.findings}


def write_metrics(
    folder: Path,
    lengths: Sequence[float],
    *,
    cycle: int = 24,
    shape: str = "cosine",
    steps: int | None = None,
    caps: tuple[int, int] = (52, 20),
    **columns: Any,
) -> LengthSchedule:
    """metrics.jsonl and config.yaml; a column is a value or one a step."""
    schedule = LengthSchedule(shape, *caps, cycle)
    rows = []
    for step, length in enumerate(lengths):
        row = {**metric(schedule, step), "response_len_mean": float(length)}
        for key, value in columns.items():
            row[key] = value[step] if isinstance(value, (list, np.ndarray)) else value
        rows.append(row)
    jsonl(folder / "metrics.jsonl", rows)
    settings = {
        "schedule": {"shape": shape, "max_len": caps[0], "min_len": caps[1], "cycle": cycle},
        "train": {"steps": steps or len(lengths)},
        "eval": {"every": 4, "select": None},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return schedule


Answers = Mapping[int, Mapping[int, np.ndarray]]
"""Step to budget to the answers, [questions] of 0 and 1."""


def write_evals(
    folder: Path,
    answers: Answers,
    *,
    tokens: Mapping[int, float] | None = None,
    names: Mapping[int, str] | None = None,
    by_question: bool = True,
    fingerprint: str = "same",
) -> None:
    """eval.jsonl and eval_questions.jsonl of one set of questions."""
    rows, records = [], []
    for step, at in answers.items():
        budgets = sorted(at)
        shares = [at[budget] for budget in budgets]
        mean = (tokens or {}).get(step, 20.0)
        rows.append({
            "step": step, "name": (names or {}).get(step), "budgets": budgets,
            "accuracy": [float(one.mean()) for one in shares],
            "accuracy_interval": [list(share_interval(one.tolist(), draws=300)) for one in shares],
            "pass_at_k": [float(one.mean()) for one in shares], "tokens": mean,
            "backtrack_per_1k": 1.0, "questions": len(shares[0]), "samples": 1,
        })  # fmt: skip
        records.append({
            "step": step, "set": None, "budgets": budgets, "samples": 1,
            "ids": [str(place) for place in range(len(shares[0]))], "fingerprint": fingerprint,
            "right": [one.astype(int).tolist() for one in shares],
            "tokens": [mean] * len(shares[0]),
        })  # fmt: skip
    jsonl(folder / "eval.jsonl", rows)
    if by_question:
        jsonl(folder / "eval_questions.jsonl", records)


def keep(folder: Path, *steps: int) -> None:
    """Checkpoints on disk, as far as the verdict looks at them."""
    for step in steps:
        place = folder / "checkpoints" / f"step_{step:06d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text("{}")
    (folder / "checkpoints" / "manifest.json").write_text('{"cycles": []}')
