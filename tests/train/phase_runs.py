"""Runs of train.py whose steps leave their gradient, and the same gradient by hand in float64."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from siri_train import train as loop
from siri_train.config.recipe import parse_config
from siri_train.rewards import REWARDS, Reward, RewardGroup
from siri_train.rollout.batch import RolloutBatch
from siri_train.trainer.run import Run
from tests.train.conftest import TINY

PLAIN = (
    "schedule.max_len=48", "schedule.min_len=32", "eval.at_start=false", "checkpoint.every=0",
    "monitor.rollouts_every=0", "train.steps=3", "train.mini_batches=1", "train.tail=0",
    "train.token_budget=120", "train.grad_clip=1e9", "reward.function=drawn", "data.eval.0.size=2",
    "rollout.prompts=6",
)  # fmt: skip
"""Caps that truncate a part of the tiny model's responses; several rows an update."""


@dataclass
class Recorded:
    """What the steps of a run left."""

    model: Any = None
    samples: list[Any] = field(default_factory=list)
    batches: list[RolloutBatch] = field(default_factory=list)
    gradients: list[torch.Tensor | None] = field(default_factory=list)


def drawn_rewards(question: str, texts: Sequence[str]) -> list[float]:
    """0 or 1 by the text of each response; the groups of some questions are all alike."""
    draw = random.Random(question)
    keys = [random.Random(text).random() for text in texts]
    levels = sorted(set(keys))
    bound = levels[draw.randrange(max(1, len(levels) - 1))]
    if draw.random() < 0.15:
        return [0.0] * len(texts)
    return [float(key > bound) for key in keys]


def drawn_reward(group: RewardGroup) -> list[float]:
    """`drawn_rewards` as a reward function."""
    return drawn_rewards(group.question, [r.text for r in group.responses])


@contextmanager
def drawn() -> Iterator[None]:
    """``reward.function=drawn`` while it is open."""
    REWARDS.data["drawn"] = Reward(drawn_reward)
    try:
        yield
    finally:
        del REWARDS.data["drawn"]


def recorded_run(folder: Path, seed: int, *options: str) -> Recorded:
    """A run of three steps, the last one in expansion, which all start from the same weights.

    Old log-probs are the sampler's with drawn noise, so that the clip acts in the first update.

    Args:
        folder: of the run.
        seed: of the run and of the noise.
        options: of the recipe.
    """
    found = Recorded()
    made, finish, update = loop.samples_of, Run.finish_step, loop.update

    def noisy(*args: Any) -> Any:
        noise = random.Random(f"{seed} {len(found.samples)}")
        samples = made(*args)
        for sample in samples:
            sample.old_logprobs = [v + noise.gauss(0, 0.4) for v in sample.old_logprobs]
        found.samples.append(samples)
        found.gradients.append(None)
        return samples

    def watched(policy: Any, *args: Any, **more: Any) -> Any:
        found.model = policy.model
        return update(policy, *args, **more)

    def kept(optimizer: Any, clip: float) -> float:  # the step itself is left out
        whole = torch.cat([p.grad.flatten() for p in found.model.parameters()])
        found.gradients[-1] = whole
        return float(whole.norm())

    def finished(run: Run, batch: RolloutBatch, *args: Any) -> None:
        found.batches.append(batch)
        finish(run, batch, *args)

    given = [f"output={folder}", f"seed={seed}", *PLAIN, *options]
    with (
        drawn(),
        mock.patch.object(loop, "samples_of", noisy),
        mock.patch.object(loop, "update", watched),
        mock.patch.object(loop, "step_if_finite", kept),
        mock.patch.object(Run, "finish_step", finished),
    ):
        loop.train(parse_config(copy.deepcopy(TINY), given))
    return found


@dataclass
class ByHand:
    """What a step does, in the words of docs/losses.md."""

    clip_high: float = 0.28
    entropy_coef: float = 0.0
    filtered: bool = False
    buffer: int | None = None
    factor: float = 1.0
    scale: str = "group_std"
    aggregation: str = "token-mean"


def gradient_by_hand(run: Recorded, step: int, rule: ByHand) -> torch.Tensor | None:
    """The gradient of a step in float64, response by response; None: nothing is counted.

    Args:
        run: its batch, old log-probs and weights are taken; no reward and no advantage.
        step: which.
        rule: what the step does.
    """
    batch = run.batches[step]
    model = copy.deepcopy(run.model).double().eval()
    rewards = []
    for group in batch.groups:
        own = drawn_rewards(group.question.prompt, group.texts)
        if rule.buffer is not None:
            for k, c in enumerate(group.completions):
                over = len(c.token_ids) - (batch.cap - rule.buffer)
                own[k] += min(-over / rule.buffer * rule.factor, 0.0)  # as verl writes it
        rewards.append(torch.tensor(own, dtype=torch.float64))
    spread = torch.cat(rewards).std()
    advantages: list[float] = []
    for own in rewards:
        by = {"group_std": own.std(), "batch_std": spread, "none": torch.tensor(1.0 - 1e-6)}
        if float(own.max() - own.min()) < 1e-9:
            advantages += [0.0] * len(own)
        else:
            advantages += ((own - own.mean()) / (by[rule.scale] + 1e-6)).tolist()
    pairs = list(zip(run.samples[step], advantages, strict=True))
    cut = [c.truncated for group in batch.groups for c in group.completions]
    if rule.filtered:
        pairs = [pair for pair, truncated in zip(pairs, cut, strict=True) if not truncated]
    if not pairs:
        return None
    tokens = sum(len(s.response_ids) for s, _ in pairs)
    total = torch.zeros((), dtype=torch.float64)
    for sample, advantage in pairs:
        ids = torch.tensor([[*sample.prompt_ids, *sample.response_ids]])
        logits = model(input_ids=ids).logits[0, len(sample.prompt_ids) - 1 : -1]
        logprobs = logits.log_softmax(-1)
        taken = logprobs.gather(1, torch.tensor(sample.response_ids)[:, None])[:, 0]
        ratio = (taken - torch.tensor(sample.old_logprobs, dtype=torch.float64)).exp()
        inside = ratio.clamp(0.8, 1 + rule.clip_high)
        loss = -torch.minimum(ratio * advantage, inside * advantage)
        loss = loss + rule.entropy_coef * (logprobs.exp() * logprobs).sum(-1)
        total = (
            total
            + {
                "token-mean": loss.sum() / tokens,
                "seq-mean-token-mean": loss.mean() / len(pairs),
                "seq-mean-token-sum": loss.sum() / len(pairs),
                "token-sum-norm": loss.sum() / (len(pairs) * 48),
            }[rule.aggregation]
        )
    parts = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    zero = [torch.zeros_like(p) for p in model.parameters()]
    return torch.cat([(z if g is None else g).flatten() for g, z in zip(parts, zero, strict=True)])
