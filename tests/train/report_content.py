"""Drawn run folders with everything that the page shows: ends, groups, alarms, budgets, prices."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from siri_train.schedule import LengthSchedule
from siri_train.statistics.intervals import wilson
from tests.train.report_page import jsonl, metric

GROUPS = ("backtrack", "alternatives", "deduction", "check", "my own")
BUDGETS = [16, 20, 24, 28, 32]
Row = dict[str, Any]


def groups(rng: random.Random, step: int) -> Row:
    found: Row = {}
    for place, name in enumerate(GROUPS):
        level = 20 / (1 + place) * (1 + math.cos(step / 10)) + rng.random()
        found[name] = {"all": level, "right": level * 0.8, "wrong": level * (1 + rng.random())}
        if rng.random() < 0.1:
            found[name][rng.choice(["all", "right", "wrong"])] = None
    return found


def alarm_rows(rng: random.Random, steps: int, name: str) -> list[Row]:
    """Episodes that do not touch, as the trainer writes them; the last may still be on."""
    rows, step = [], rng.randint(0, steps // 3)
    while step < steps:
        until = step + rng.randint(1, max(2, steps // 4))
        told = {"alarm": name, "value": 1.0, "cause": f"{name} happened", "action": "do this"}
        rows.append({"step": step, "state": "raised", "since": step, "age": 0, **told})
        age = 2
        while step + age < min(until, steps):
            row = {"step": step + age, "state": "ongoing", "since": step, "age": age}
            rows.append({**row, **told})
            age *= 2
        if until >= steps:
            break
        rows.append({"step": until, "state": "cleared", "since": step, "age": until - step, **told})
        step = until + rng.randint(1, steps)
    return rows


def write_run(
    folder: Path, shape: str, rng: random.Random, *, steps: int = 60, cycle: int = 30,
    price: float | None = None, ranks: int | None = None, device: str = "auto",
    questions: int = 50, every: int = 15,
) -> None:  # fmt: skip
    """One run; its evaluations, their questions, metrics and alarms agree with each other."""
    schedule = LengthSchedule(shape, 32, 16, cycle)
    rows = []
    for step in range(steps):
        row = metric(schedule, step)
        row |= {
            "entropy": 0.3 * math.exp(-step / 40) + 0.05 * rng.random(),
            "tokens": rng.randint(500, 1500), "tokens_discarded": rng.randint(0, 50),
            "time_rollout": rng.random(), "time_train": rng.random(),
            "rollout_kl": rng.random() * 1e-12, "rollout_ratio_max": 1 + rng.random() * 1e-7,
            "ratio_max": 1 + rng.random(), "token_groups": groups(rng, step),
            "tokens_right": rng.randint(100, 500), "tokens_wrong": rng.randint(100, 500),
        }  # fmt: skip
        if ranks is not None:
            row["ranks"] = ranks
        rows.append(row)
    jsonl(folder / "metrics.jsonl", rows)
    low = {e: "siri-low" for e in schedule.compressed_ends(steps, steps)}
    names = {0: "start", **low}
    names |= {e: "siri-high" for e in schedule.expanded_ends(steps, steps) if e}
    evals, records = [], []
    hard = [rng.random() for _ in range(questions)]
    for step in sorted({*range(0, steps + 1, every), *names, steps}):
        name = names.get(step)
        skill = min(0.97, 0.4 + 0.6 * step / steps - 0.05 * (name == "siri-low"))
        reach = [
            rng.uniform(14, 34) if rng.random() * 0.3 + h * 0.7 < skill else 99.0 for h in hard
        ]
        right = [[int(one <= budget) for one in reach] for budget in BUDGETS]
        lengths = [round(min(one, 32.0), 3) for one in reach]
        evals.append({
            "step": step, "name": name, "budgets": BUDGETS,
            "accuracy": [sum(some) / questions for some in right],
            "accuracy_interval": [list(wilson(some)) for some in right],
            "tokens": sum(lengths) / questions, "questions": questions, "samples": 1,
            "tokens_at": [1.0] * 5, "truncated_frac": [0.0] * 5, "backtrack_per_1k": 1.0,
        })  # fmt: skip
        records.append({
            "step": step, "set": None, "budgets": BUDGETS, "samples": 1, "fingerprint": "same",
            "ids": [str(k) for k in range(questions)], "right": right, "tokens": lengths,
        })  # fmt: skip
    jsonl(folder / "eval.jsonl", evals)
    jsonl(folder / "eval_questions.jsonl", records)
    alarms = [row for name in ("low-entropy", "nothing-to-learn", "length-not-tracking")
              for row in alarm_rows(rng, steps, name)]  # fmt: skip
    jsonl(folder / "alarms.jsonl", sorted(alarms, key=lambda row: row["step"]))
    text = f"device: {device}\nmonitor:\n  price_per_gpu_hour: {json.dumps(price)}\n"
    (folder / "config.yaml").write_text(text)


def write_folder(folder: Path, seed: int, **options: Any) -> Path:
    """SIRI with two controls, and a summary that names one checkpoint of each end."""
    rng = random.Random(seed)
    for name, shape in (("siri", "cosine"), ("constant", "constant"), ("short", "constant")):
        write_run(folder / name, shape, rng, **options)
    summary = []
    rows = [json.loads(line) for line in (folder / "siri" / "eval.jsonl").open()]
    for name in ("start", "siri-low", "siri-high"):
        row = [row for row in rows if row["name"] == name][-1]
        summary.append({
            "name": name, "step": row["step"], "run": "siri", "path": "p",
            "accuracy": row["accuracy"][-1], "accuracy_interval": row["accuracy_interval"][-1],
            "tokens": row["tokens"], "budgets": row["budgets"], "accuracy_at": row["accuracy"],
            "accuracy_at_interval": row["accuracy_interval"],
        })  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
