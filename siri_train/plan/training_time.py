"""Seconds of a step that are not sampling: the update, its traffic, the weight sync."""

from __future__ import annotations

from dataclasses import dataclass

from siri_train.config import engines
from siri_train.config.run import RunConfig
from siri_train.plan.efficiency import Efficiency
from siri_train.plan.gpus import Gpu
from siri_train.plan.lengths import quantiles
from siri_train.plan.memory import Sizes

_HEAD_PASSES = 1.5
"""Passes over the head: one forward, and backward of the few entries that matter (docs/screen.md;
measured: the head is 3 to 4 % of a training step)."""
_POINTS = 64


@dataclass(frozen=True)
class Machines:
    """The GPUs of a run.

    Args:
        ranks: processes of the trainer, one GPU each.
        gpu: its figures.
        per_node: GPUs of one machine.
    """

    ranks: int
    gpu: Gpu
    per_node: int = 8

    @property
    def nodes(self) -> int:
        """Machines of the trainer."""
        return -(-self.ranks // self.per_node)

    def collective(self, size: float, speed: Efficiency) -> float:
        """Seconds to gather, or to reduce and scatter, ``size`` bytes over all ranks."""
        if self.ranks == 1:
            return 0.0
        moved = size * (self.ranks - 1) / self.ranks
        slowest = self.gpu.link
        if self.nodes > 1:  # a node's adapters carry what all of its GPUs need, once
            slowest = min(slowest, self.gpu.network * self.per_node)
        return moved / (slowest * speed.link)


@dataclass(frozen=True)
class TrainingTime:
    """Seconds of one step after its rollout.

    Args:
        work: forward and backward passes.
        traffic: of weights and gradients, as far as it is not hidden behind the work.
        optimizer: AdamW.
        sync: handing the new weights to the sampler.
        checks: of answers.
        rest: packing, statistics, files.
    """

    work: float
    traffic: float
    optimizer: float
    sync: float
    checks: float
    rest: float

    @property
    def seconds(self) -> float:
        """All of it."""
        parts = (self.work, self.traffic, self.optimizer, self.sync, self.checks, self.rest)
        return sum(parts)


def work(
    config: RunConfig, sizes: Sizes, prompt: float, lengths: list[float], reference: Sizes | None
) -> float:
    """Floating-point operations of an update over sequences, recomputation included.

    Args:
        config: the recipe.
        sizes: of the model.
        prompt: tokens of each prompt.
        lengths: response tokens of each sequence.
        reference: sizes of the model of the KL term; None: as ``sizes``.
    """
    passes = 3.0 if config.model.lora is None else 2.0  # adapters need no gradients of the weights
    if config.model.gradient_checkpointing:
        passes += 1
    if config.loss.old_logprobs == "recompute":
        passes += 1
    total = passes * _forward(sizes, prompt, lengths)
    head = 2 * sizes.vocabulary * sizes.hidden * sum(lengths)
    total += (_HEAD_PASSES + (config.loss.old_logprobs == "recompute")) * head
    if config.loss.kl_coef:
        other = reference or sizes
        total += _forward(other, prompt, lengths) + 2 * other.vocabulary * other.hidden * sum(
            lengths
        )
    return total


def _forward(sizes: Sizes, prompt: float, lengths: list[float]) -> float:
    """Operations of the layers in one forward pass; each token sees those before it."""
    tokens = sum(prompt + n for n in lengths)
    squares = sum((prompt + n) ** 2 for n in lengths)
    attention = 2 * sizes.layers * sizes.heads * sizes.head_dim * squares
    return 2 * sizes.layers * sizes.layer * tokens + attention


def training_time(
    config: RunConfig,
    sizes: Sizes,
    machines: Machines,
    *,
    cap: float,
    share: float,
    prompt: float,
    speed: Efficiency,
    reference: Sizes | None = None,
) -> TrainingTime:
    """Seconds of a step besides sampling.

    Args:
        config: the recipe.
        sizes: of the model.
        machines: the GPUs.
        cap: largest number of response tokens.
        share: mean response length over ``cap``.
        prompt: mean tokens of a prompt.
        speed: the efficiencies.
        reference: sizes of the KL term's model; None: as ``sizes``.
    """
    responses = config.rollout.prompts * config.rollout.group_size
    points = [cap * q for q in quantiles(share, _POINTS)]
    operations = work(config, sizes, prompt, points, reference) * responses / _POINTS
    fused = config.model.liger != "off"
    rate = machines.gpu.flops * (speed.training if fused else speed.without_fused)
    if config.model.dtype == "float32" and not _mixed(config, machines.ranks):
        rate /= 8  # float32 products; the sheets' TF32 is off by default
    busy = operations / machines.ranks / rate
    tokens = responses * (prompt + share * cap)
    rounds = max(config.train.mini_batches, tokens / machines.ranks / config.train.token_budget)
    bytes_each = 2 if _mixed(config, machines.ranks) else _stored(config)
    gathers = 2 if config.distributed.reshard_after_forward else 1
    moved = sizes.parameters * bytes_each * gathers + 4 * sizes.trained(config)
    traffic = rounds * machines.collective(moved, speed)
    hidden = max(busy, traffic) + speed.exposed * min(busy, traffic) - busy
    trained = sizes.trained(config)
    state = trained * (2 * _stored(config) + 24) / machines.ranks  # read and written
    where = speed.host_link if config.distributed.offload else machines.gpu.bandwidth * 0.8
    optimizer = config.train.mini_batches * state / where
    graders = machines.ranks * max(1, config.reward.workers)
    return TrainingTime(
        work=busy,
        traffic=hidden,
        optimizer=optimizer,
        sync=_sync(config, sizes, machines, speed),
        checks=responses * speed.check / graders,
        rest=speed.update,
    )


def _stored(config: RunConfig) -> int:
    return 4 if config.model.dtype == "float32" else 2


def _mixed(config: RunConfig, ranks: int) -> bool:
    """Whether products are in 16 bits although the weights are not."""
    return config.model.dtype == "bfloat16" or (
        ranks > 1 and config.distributed.compute_dtype is not None
    )


def _sync(config: RunConfig, sizes: Sizes, machines: Machines, speed: Efficiency) -> float:
    """Seconds until the sampler has the new weights."""
    spec = engines.engine_of(config)
    weights = sizes.parameters * 2.0
    gathered = machines.collective(weights, speed)
    if not spec.own_weights:
        return gathered
    copied = weights / machines.gpu.bandwidth
    if not spec.in_process and config.rollout.server.sync == "disk":
        copied = 2 * weights / speed.disk  # written and read
    return gathered + copied + speed.sync
