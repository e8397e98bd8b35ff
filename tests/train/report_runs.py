"""Drawn run folders with every key that the page reads, for its tests in a browser."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from tests.train.report_page import evaluation, jsonl

WORDS = ["so", "we", "wait", "check", "and", "\U0001d538", "x = 3", "hold on", "é", "<b>", "42"]
GROUPS = {"wait": "backtrack", "hold on": "backtrack", "check": "verify"}


def metrics(rng: random.Random, steps: int, cycle: int, *, lengths: bool = True) -> list[dict]:
    """Rows of a run whose tokens and seconds differ from step to step."""
    rows = []
    for step in range(steps):
        turn = step % cycle / cycle
        cap = 16 + round(16 * abs(1 - 2 * turn))
        row: dict[str, Any] = {
            "step": step, "phase": "compression" if turn < 0.5 else "expansion", "cap": cap,
            "cycle": step // cycle, "response_len_mean": rng.uniform(5, cap),
            "response_len_p50": 8.0, "response_len_p95": float(cap), "entropy": rng.uniform(0, 1),
            "accuracy": rng.random(), "truncated_frac": rng.random(),
            "grad_norm": rng.uniform(0.1, 2), "tokens": rng.randint(100, 3000),
            "tokens_discarded": rng.choice([0, 0, 500]), "time_rollout": rng.uniform(1, 9),
            "time_train": rng.uniform(1, 9),
        }  # fmt: skip
        if lengths:
            counts = [rng.randint(0, 9) if i * 2 < cap else 0 for i in range(16)]
            row["response_len_hist"] = {"width": 2, "counts": counts}
        rows.append(row)
    return rows


def responses(rng: random.Random, count: int, step: int) -> list[dict]:
    """Rows of a rollout file, with marks, questions and all grades."""
    rows = []
    for place in range(count):
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 60)))
        right = rng.choice([True, False, None])
        rows.append({
            "prompt": f"Question {place % 3}?", "response": text, "truncated": rng.random() < 0.4,
            "reward": None if right is None else float(right), "right": right, "cap": 20 + step,
            "tokens": rng.randint(1, 99), "answer": rng.choice([None, "4"]), "gold": "4",
            "question": f"q{place % 3}",
            "marks": [[*found.span(), GROUPS[found[0]]]
                      for found in re.finditer("wait|hold on|check", text)],
        })  # fmt: skip
    return rows


def make(folder: Path, seed: int, steps: int = 40, cycle: int = 20) -> Path:
    """A run folder drawn from a seed."""
    rng = random.Random(seed)
    jsonl(folder / "metrics.jsonl", metrics(rng, steps, cycle))
    rows = [evaluation(t, None, 0.5 + t / 200, 30 - t / 4) for t in range(0, steps + 1, cycle // 2)]
    jsonl(folder / "eval.jsonl", rows)
    for step in (0, steps // 2, steps - 1):
        jsonl(folder / "rollouts" / f"step_{step:06d}.jsonl", responses(rng, 12, step))
    (folder / "config.yaml").write_text("schedule:\n  shape: cosine\n")
    (folder / "checkpoints").mkdir(exist_ok=True)
    manifest = {"siri-low": {"step": cycle // 2}, "siri-high": {"step": cycle}}
    (folder / "checkpoints" / "manifest.json").write_text(json.dumps(manifest))
    jsonl(folder / "alarms.jsonl", [{"step": 3, "alarm": "grad-spike", "cause": "A jump.",
                                     "action": "Look."}])  # fmt: skip
    return folder


def pair(folder: Path, seed: int, steps: int = 40) -> Path:
    """A folder with two runs."""
    make(folder / "siri", seed, steps)
    make(folder / "other", seed + 1, steps)
    return folder
