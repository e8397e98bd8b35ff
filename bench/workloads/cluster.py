"""A simulated cluster: idle time by cap and phase, and what scheduling gains. No GPU is used.

The trainer's own code deals questions to shards and ranks (`SharedEngine`, `deal`), collects rounds
(`Collector`) and packs micro-batches (`plan`). Lengths are drawn and time is virtual: see
`bench.workloads.cluster_lengths` and `bench.workloads.cluster_time` for what is assumed.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.results_io import RESULTS, versions, write
from bench.workloads.cluster_lengths import POINTS, Lengths, published, recorded
from bench.workloads.cluster_page import page, plot
from bench.workloads.cluster_step import (
    MINI_BATCHES,
    POLICIES,
    TOKEN_BUDGET,
    Policy,
    Step,
    draw_step,
    simulate,
)
from bench.workloads.cluster_time import QWEN_7B, Clock
from siri_train.config.rollout import RolloutConfig

RANKS = (8, 16, 64)
PAPER = RolloutConfig(engine="vllm")  # 128 questions x 16 responses, 256 rows
BY_NAME = {policy.name: policy for policy in POLICIES}
BASE, DEALT, DIVIDED, KNOWN = (
    BY_NAME[name]
    for name in (
        "in order", "dealt by expected length", "groups divided over ranks", "lengths known",
    )
)  # fmt: skip
LONGEST_FIRST = BY_NAME["longest first in a rank"]
ENDS = (0, 2, 4)


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and 95 % interval of a figure over seeds, by Student's t.

    Args:
        values: one a seed.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "low": mean, "high": mean}
    half = float(_student(len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return {"mean": mean, "low": mean - half, "high": mean + half}


@cache
def _student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, from draws."""
    return float(np.quantile(np.random.default_rng(0).standard_t(degrees, 10**6), 0.975))


def _whole(step: Step, clock: Clock) -> float:
    return step.rollout + step.train + clock.between


def arm(
    model: Lengths,
    point: int,
    ranks: int,
    policies: Sequence[Policy],
    seeds: int,
    clock: Clock,
    config: RolloutConfig = PAPER,
) -> list[dict[str, Any]]:
    """The figures of each policy on the same draws; gains are paired with the first policy.

    Args:
        model: of lengths.
        point: of the cycle.
        ranks: of the cluster.
        policies: the first is the one that others are compared with.
        seeds: how many draws.
        clock: seconds.
        config: of a step.
    """
    draws = [draw_step(model, point, config, seed) for seed in range(seeds)]
    rows: list[dict[str, Any]] = []
    base: list[float] = []
    for policy in policies:
        steps = [simulate(draw, policy, config, clock, ranks) for draw in draws]
        whole = [_whole(step, clock) for step in steps]
        base = base or whole
        gains = [1 - mine / first for mine, first in zip(whole, base, strict=True)]
        rows.append(
            {
                "lengths": model.name, "model": clock.shape.name, "ranks": ranks,
                "point": POINTS[point][0], "cap": POINTS[point][2], "policy": policy.name,
                "max_num_seqs": config.vllm.max_num_seqs, "max_rounds": config.max_rounds,
                "waiting": interval([s.waiting for s in steps]),
                "rollout_s": interval([s.rollout for s in steps]),
                "train_s": interval([s.train for s in steps]),
                "train_waiting": interval([s.train_waiting for s in steps]),
                "step_s": interval(whole),
                "gain": interval(gains),
                "tokens": interval([s.tokens for s in steps]),
                "groups": interval([s.groups for s in steps]),
                "interrupted": interval([s.interrupted for s in steps]),
                "cut": interval([float(np.mean(d.lengths >= d.cap)) for d in draws]),
            }
        )  # fmt: skip
    return rows


def ahead(model: Lengths, point: int, ranks: int, seeds: int, clock: Clock) -> list[dict[str, Any]]:
    """One step ahead: some GPUs only sample, the others only train, both at the same time.

    Args:
        model: of lengths.
        point: of the cycle; the next batch is of the same point.
        ranks: of the cluster.
        seeds: how many draws.
        clock: seconds.

    Returns:
        A row for each share of GPUs that sample, with the gain over all GPUs in turn, both with
        groups divided.
    """
    draws = [draw_step(model, point, PAPER, seed) for seed in range(seeds + 1)]
    turns = [_whole(simulate(d, DIVIDED, PAPER, clock, ranks), clock) for d in draws]
    rows = []
    for share in (0.5, 0.75, 0.875):
        samplers = int(share * ranks)
        own = [
            simulate(d, DIVIDED, PAPER, clock, samplers, training_ranks=ranks - samplers)
            for d in draws
        ]
        both = [
            max(after.rollout, now.train) + clock.between
            for now, after in zip(own, own[1:], strict=False)
        ]
        gains = [1 - mine / turn for mine, turn in zip(both, turns, strict=False)]
        rows.append(
            {
                "ranks": ranks, "point": POINTS[point][0], "samplers": samplers,
                "step_s": interval(both), "gain": interval(gains),
            }
        )  # fmt: skip
    return rows


def measure(seeds: int) -> dict[str, Any]:
    """All figures of the page.

    Args:
        seeds: draws of each figure.
    """
    clock, big = Clock(), Clock(shape=QWEN_7B)
    (fitted, fit_facts), (real, real_facts) = published(), recorded()
    few = max(2, seeds // 2)

    def sized(rows: int) -> RolloutConfig:
        return PAPER.model_copy(
            update={"vllm": PAPER.vllm.model_copy(update={"max_num_seqs": rows})}
        )

    points = range(len(POINTS))
    main = [
        row
        for model in (fitted, real)
        for ranks in RANKS
        for point in points
        for row in arm(model, point, ranks, (BASE, DEALT, DIVIDED, KNOWN), seeds, clock)
    ]
    larger = [row for point in ENDS for row in arm(fitted, point, 16, (BASE, DIVIDED), few, big)]
    order = [
        row
        for rows in (32, 64, 128, 256)
        for row in arm(fitted, 0, 8, (BASE, LONGEST_FIRST, DIVIDED), few, clock, sized(rows))
    ]
    known = [
        {"within": within, "epochs": epochs, **row}
        for within in (0.3, 0.5, 0.8)
        for epochs in (0.0, 0.9, 1.0)
        for row in arm(
            replace(fitted, within=within, epochs=epochs),
            2, 16, (BASE, DEALT, DIVIDED), seeds, clock,
        )
    ]  # fmt: skip
    rounds = [
        row
        for count in (1, 3)
        for row in arm(
            fitted, 2, 16, (BASE, DIVIDED), few, clock,
            PAPER.model_copy(update={"max_rounds": count}),
        )
    ]  # fmt: skip
    asynchronous = [
        row for ranks in RANKS for point in ENDS for row in ahead(fitted, point, ranks, few, clock)
    ]
    return {
        "simulated": True,
        "seeds": seeds,
        "questions": PAPER.prompts,
        "group_size": PAPER.group_size,
        "mini_batches": MINI_BATCHES,
        "token_budget": TOKEN_BUDGET,
        "clock": asdict(clock),
        "lengths": {"published": fit_facts, "recorded": real_facts},
        "main": main,
        "larger_model": larger,
        "rows_and_order": order,
        "knowledge": known,
        "rounds": rounds,
        "asynchronous": asynchronous,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``python -m bench cluster``."""
    parser.add_argument("--seeds", type=int, default=6, help="draws of each figure, at least 2")
    parser.add_argument("--out", type=Path, default=RESULTS / "simulated")


def run(arguments: argparse.Namespace) -> None:
    """``python -m bench cluster``: write the result, its page and its plot.

    Raises:
        SystemExit: fewer than 2 seeds.
    """
    if arguments.seeds < 2:
        raise SystemExit(
            f"--seeds: got {arguments.seeds}, takes at least 2: the intervals are over seeds"
        )
    begun = time.process_time()
    measured = measure(arguments.seeds)
    measured["versions"] = versions("numpy", "torch")
    measured["processor_seconds"] = round(time.process_time() - begun, 1)
    write(arguments.out, "cluster", measured, page(measured))
    plot(measured, arguments.out / "cluster.svg")
