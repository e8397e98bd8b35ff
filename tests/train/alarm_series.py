"""Drawn rows of ``metrics.jsonl``: a healthy run, and faults that begin at a step."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from siri_train.config.alarms import AlarmsConfig
from siri_train.monitor.alarms import ALARMS
from siri_train.monitor.alarms.history import kept

Row = dict[str, Any]
Fault = Callable[[Row, int, random.Random], None]
"""Changes a row; the number counts the steps since the fault began, from 1."""


def healthy(seed: int, steps: int, cycle: int = 120, longest: int = 4096) -> Iterator[Row]:
    """A run that learns slowly under a cosine cap, with noise and heavy tails.

    Args:
        seed: of the noise, and of how long, how fast and how noisy the run is.
        steps: how many rows.
        cycle: steps of a cycle.
        longest: the longest cap in tokens.
    """
    rng = random.Random(seed)
    noise, tail = rng.uniform(0.05, 0.25), rng.uniform(0.2, 0.5)
    norm, kl, wait = 10 ** rng.uniform(-2, 1), 10 ** rng.uniform(-4, -2.2), rng.uniform(2, 20)
    end, learned = rng.uniform(0.5, 2), rng.uniform(0, 0.3)  # the norm changes slowly by `end`
    speed, responses = 10 ** rng.uniform(3, 5), 256
    length = 0.6 * longest

    def about(value: float, spread: float = noise) -> float:
        return value * math.exp(rng.gauss(0, spread))

    for step in range(steps):
        done = step / max(1, steps - 1)
        wave = 0.5 * (1 + math.cos(2 * math.pi * step / cycle))  # 1: longest, 0: shortest
        cap = round(longest * (0.5 + 0.5 * wave))
        length += 0.03 * (0.55 * cap - length)
        share = length / longest
        accuracy = min(1.0, max(0.0, 0.4 + learned * done + rng.gauss(0, 0.03)))
        truncated = min(1.0, max(0.0, about(0.15 * (1.4 - wave), 0.3)))
        zero = min(0.8, about(0.3, 0.2))
        one = min(0.9 - zero, about(0.2 + 0.3 * done, 0.2))
        tokens = about(length * responses, 0.08)
        # A few steps in a hundred have a far larger gradient, and the first ones are slow.
        heavy = min(4.0, rng.paretovariate(1.0)) if rng.random() < 0.05 else 1.0
        slow = 4.0 if step < 3 else about(1.0, 0.3 if rng.random() < 0.05 else 0.02)
        yield {
            "step": step,
            "cycle": step // cycle + 1,
            "phase": "compression" if step % cycle < cycle // 2 else "expansion",
            "cap": cap,
            "reward_mean": accuracy,
            "accuracy": accuracy,
            "accuracy_finished": min(1.0, accuracy * 1.1),
            "truncated_frac": truncated,
            "truncated_correct_frac": 0.0,
            "unjudged": 0,
            "response_len_mean": tokens / responses,
            "response_len_p50": 0.9 * tokens / responses,
            "response_len_p95": float(cap),
            "groups_all_zero": zero,
            "groups_all_one": one,
            "entropy": about(0.3, noise),
            "loss": rng.gauss(0, 0.02),
            "grad_norm": about(norm * end**done * (1 - zero - one), tail) * heavy,
            "lr": 1e-6,
            "clip_frac_low": about(0.001, 0.8),
            "clip_frac_high": about(0.002, 0.8),
            "ratio_max": about(3.0, 0.5),
            "rollout_kl": about(kl, 0.4),
            "rollout_ratio_max": min(9.0, about(2.5, 0.3)),
            "probe_logprob_diff": about(kl, 0.3) if step % 5 == 0 else None,
            "dense_row_frac": min(1.0, about(0.15 + 0.1 * share, 0.2)),
            "tail_mass_max": about(0.004, 0.3),
            "backtrack_per_1k": about(wait * (0.3 + share), 0.2),
            "repetitive_frac": min(1.0, about(0.02, 0.6)),
            "think_mismatch_frac": min(1.0, about(0.05, 0.5)),
            "tokens": round(tokens),
            "rollout_tokens_per_s": about(speed * (1.5 - 0.7 * share), 0.15) / slow,
            "train_tokens_per_s": about(2 * speed, 0.1) / slow,
            "skipped_updates": 0,
            "groups_failed": 0,
        }


def watched(
    rows: Sequence[Row],
    only: Sequence[str],
    limits: AlarmsConfig | None = None,
    first: int = 0,
) -> list[tuple[int, str]]:
    """(step, alarm) of all that is true, step by step, with the history that a run keeps.

    Args:
        rows: of a run.
        only: the alarms to look for.
        limits: thresholds.
        first: the first step to look at.
    """
    history = [kept(row) for row in rows]
    return [
        (row["step"], name)
        for at, row in enumerate(rows)
        if row["step"] >= first
        for name in only
        if ALARMS[name].look(row, history[:at], limits) is not None
    ]


def faulty(seed: int, begins: int, steps: int, fault: Fault, **options: Any) -> list[Row]:
    """A healthy run with a fault.

    Args:
        seed: of the noise.
        begins: the first step with the fault.
        steps: how many rows.
        fault: changes each row from there on.
        options: of :func:`healthy`.
    """
    rng = random.Random(-seed - 1)
    rows = list(healthy(seed, steps, **options))
    for row in rows[begins:]:
        fault(row, row["step"] - begins + 1, rng)
    return rows
