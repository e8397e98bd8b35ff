"""Updates whose gradients ``test_distributed.py`` compares: without ranks and with two."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from siri_train.config.loss import LossConfig
from siri_train.config.run import TrainConfig as Train
from siri_train.model import packing
from siri_train.model.packing import Sample
from siri_train.model.policy import Policy
from siri_train.train import update
from siri_train.trainer import update as parts
from siri_train.trainer.reference_model import Reference

AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "token-sum-norm")


class Recorder(torch.optim.SGD):
    """Keeps the whole gradient instead of stepping."""

    gradient: torch.Tensor

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # none is given
        parts = [p.grad for group in self.param_groups for p in group["params"]]
        whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in parts]
        self.gradient = torch.cat([p.flatten() for p in whole]).clone()


def samples(count: int, seed: int = 0) -> list[Sample]:
    """Random responses of very unequal lengths; a third have no advantage."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        n = 1 + int(40 * rng.random() ** 2)
        made.append(
            Sample(
                [1, *(rng.randrange(10, 37) for _ in range(rng.randrange(1, 8))), 3],
                [rng.randrange(4, 37) for _ in range(n)],
                [-3.6 + 0.3 * rng.random() for _ in range(n)],
                advantage=rng.choice([-1.2, -0.3, 0.0, 0.0, 0.7, 1.5]),
            )
        )
    return made


def some_zeroed() -> list[Sample]:
    """`samples`, of which two thirds lose the advantage of every other token."""
    batch = samples(24)
    for place, sample in enumerate(batch):
        if place % 3:
            sample.zeroed = [n % 2 == 1 for n in range(len(sample.response_ids))]
    return batch


def some_truncated() -> list[Sample]:
    """`samples`, of which the longer half is truncated."""
    batch = samples(24)
    for sample in batch:
        sample.truncated = len(sample.response_ids) > 10
    return batch


def random_plan(
    lengths: list[int], token_budget: int, *, ranks: int = 1, at_least: int = 1
) -> list[list[list[int]]]:
    """Another packing than ``packing.plan``: sequences thrown into rows at random."""
    rng = random.Random(len(lengths))
    rows: list[list[int]] = [[] for _ in range(ranks * at_least)]
    for index in range(len(lengths)):
        rng.choice(rows).append(index)
    return [rows[start : start + ranks] for start in range(0, len(rows), ranks)]


@contextlib.contextmanager
def rows_cut(micro_batches: int, shuffled: bool) -> Iterator[None]:
    """Rows of the update: how many rounds, and by which packing."""
    made = packing.micro_batches

    def fixed(*args: Any, **kwargs: Any) -> Any:
        return made(*args, **kwargs, at_least=micro_batches)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(parts, "micro_batches", fixed))
        if shuffled:
            stack.enter_context(mock.patch.object(packing, "plan", random_plan))
        yield


def gradient(
    policy: Policy, batch: list[Sample], loss: LossConfig, other: Policy
) -> tuple[torch.Tensor, Any]:
    """The gradient of one update over ``batch`` and its statistics; ``other``: the reference."""
    recorder = Recorder(policy.model.parameters(), lr=1.0)
    config = Train(mini_batches=1, token_budget=10_000, grad_clip=1e9)
    stats = update(
        policy, recorder, batch, config, loss, temperature=0.9, constant_length=24, seed=0,
        reference=Reference(other, own=True) if loss.kl_coef else None,
    )  # fmt: skip
    return recorder.gradient, stats


Case = tuple[str, LossConfig, int, bool, list[Sample]]


def cases(count: int | None = None) -> list[Case]:
    """(name, loss, micro-batches, shuffled, samples); the same without ranks and with two.

    Args:
        count: of the cases with several sequences; which ones is drawn anew each day. None: all.
    """
    made: list[Case] = []
    for aggregation in AGGREGATIONS:
        for coefficient in (0.0, 0.01):
            loss = LossConfig(aggregation=aggregation, entropy_coef=coefficient)
            for micro_batches in (1, 3):
                for shuffled in (False, True):
                    name = f"{aggregation} {coefficient} {micro_batches} {shuffled}"
                    made.append((name, loss, micro_batches, shuffled, samples(24)))
    for micro_batches in (1, 3):
        with_kl = LossConfig(kl_coef=0.5, kl_estimator="k2")
        made.append((f"kl {micro_batches} False", with_kl, micro_batches, False, samples(24)))
    for micro_batches in (1, 3):  # some tokens without their response's advantage
        made.append(
            (f"zeroed {micro_batches} False", LossConfig(), micro_batches, False, some_zeroed())
        )
    for aggregation in AGGREGATIONS:  # truncated responses are not counted
        loss = LossConfig(aggregation=aggregation, overlong_filter=True, entropy_coef=0.01)
        for micro_batches in (1, 3):
            name = f"filter {aggregation} {micro_batches} False"
            made.append((name, loss, micro_batches, False, some_truncated()))
    if count is not None:
        made = random.Random(os.environ["SIRI_TEST_DRAW"]).sample(made, count)
    one = [s for s in samples(24) if s.advantage][:1]
    # The second rank has a dummy only.
    return [*made, ("one sequence", LossConfig(), 1, False, one)]
