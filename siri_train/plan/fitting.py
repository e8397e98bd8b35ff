"""Whether a run fits its GPUs, and what to change where it does not.

A change is looked for among the keys that trade memory for something, cheapest first: each alone,
then together, then more ranks, then adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from siri_train.config import engines
from siri_train.config.model import LoraConfig
from siri_train.config.run import RunConfig
from siri_train.plan.gpus import Gpu
from siri_train.plan.memory import GB, Memory, Sizes, estimate
from siri_train.plan.samplers import SEVERAL_GPUS, sampler_problem

USABLE = 0.9
"""Share of a GPU's memory that a run may plan with. CUDA, NCCL and fragmentation take the rest."""

_MANY = 16
"""Times the ranks that were asked for; before more than that adapters are tried."""

MOST_RANKS = 1024
"""Ranks up to which the search goes."""


@dataclass(frozen=True)
class Change:
    """One way to make a run fit.

    Args:
        settings: keys and values as they stand on a command line.
        ranks: how many ranks it then needs.
        peak: bytes of a rank with it.
    """

    settings: tuple[str, ...]
    ranks: int
    peak: int


def needed(
    config: RunConfig, sizes: Sizes, ranks: int, memory_gb: float, reference: Sizes | None = None
) -> Memory:
    """Memory of one rank on a GPU.

    Args:
        config: the recipe.
        sizes: of its model.
        ranks: how many share it.
        memory_gb: of the GPU, in 10**9 bytes.
        reference: sizes of the KL term's model.
    """
    return estimate(config, sizes, ranks=ranks, gpu=True, memory_gb=memory_gb, reference=reference)


def fits(
    config: RunConfig, sizes: Sizes, ranks: int, gpu: Gpu, reference: Sizes | None = None
) -> bool:
    """Whether the run fits, vLLM's share included.

    Args:
        config: the recipe.
        sizes: of its model.
        ranks: how many share it.
        gpu: each rank's.
        reference: sizes of the KL term's model.
    """
    memory = needed(config, sizes, ranks, gpu.memory_gb, reference)
    room = memory.peak <= USABLE * gpu.memory_gb * GB
    return room and sampler_problem(config, sizes, gpu) is None


def least_ranks(
    config: RunConfig, sizes: Sizes, gpu: Gpu, reference: Sizes | None = None
) -> int | None:
    """The smallest number of ranks that fits; None: no number up to :data:`MOST_RANKS` does.

    Args:
        config: the recipe.
        sizes: of its model.
        gpu: each rank's.
        reference: sizes of the KL term's model.
    """
    high = 1
    while not fits(config, sizes, high, gpu, reference):
        high *= 2
        if high > MOST_RANKS:
            return None
    low = high // 2
    while high - low > 1:  # more ranks never need more memory of one
        middle = (low + high) // 2
        if fits(config, sizes, middle, gpu, reference):
            high = middle
        else:
            low = middle
    return high


def remedy(
    config: RunConfig, sizes: Sizes, ranks: int, gpu: Gpu, reference: Sizes | None = None
) -> Change | None:
    """The first change that makes a run fit; None: none was found.

    Args:
        config: the recipe, which does not fit.
        sizes: of its model.
        ranks: how many share it.
        gpu: each rank's.
        reference: sizes of the KL term's model.
    """

    def fitting(changed: RunConfig, count: int = ranks) -> bool:
        return fits(changed, sizes, count, gpu, reference)

    def peak(changed: RunConfig, count: int = ranks) -> int:
        return needed(changed, sizes, count, gpu.memory_gb, reference).peak

    settings: list[str] = []
    together = config
    tensor = _server_needed(config, sizes, gpu)
    if tensor is not None:
        settings = ["rollout.engine=vllm-server", _tensor_setting(tensor)]
        for setting in settings:
            together = apply(together, setting)
        if fitting(together):
            return Change(tuple(settings), ranks, peak(together))
    for group in _groups(together, ranks):
        for setting in group:
            changed = apply(together, setting)
            if fitting(changed):
                return Change((*settings, setting), ranks, peak(changed))
    before, first = together, list(settings)

    def cost(changed: RunConfig) -> tuple[bool, int]:
        return sampler_problem(changed, sizes, gpu) is not None, peak(changed)

    for group in _groups(together, ranks):
        tried = [(setting, apply(together, setting)) for setting in group]
        setting, best = min(tried, key=lambda pair: cost(pair[1]), default=("", together))
        if cost(best) >= cost(together):
            continue
        together = best
        settings.append(setting)
        if fitting(together):
            return Change(tuple(settings), ranks, peak(together))
    for changed, told in ((before, first), (together, settings)):
        count = least_ranks(changed, sizes, gpu, reference)
        if count is not None and count <= _MANY * ranks:
            return Change(tuple(told), count, peak(changed, count))
    if config.model.lora is None:
        adapters = "model.lora={rank: 32}"
        adapted = apply(together, adapters)
        if fitting(adapted):
            return Change((*settings, adapters), ranks, peak(adapted))
    count = least_ranks(together, sizes, gpu, reference)
    return None if count is None else Change(tuple(settings), count, peak(together, count))


def apply(config: RunConfig, setting: str) -> RunConfig:
    """The recipe with one setting changed, as one of :func:`remedy`'s.

    Args:
        config: the recipe.
        setting: ``a.b=c``.
    """
    key, _, text = setting.partition("=")
    *sections, name = key.split(".")
    value: Any = LoraConfig(rank=32) if name == "lora" else yaml.safe_load(text)
    parents: list[Any] = [config]
    for section in sections:
        parents.append(getattr(parents[-1], section))
    for parent, part in zip(reversed(parents), [name, *reversed(sections)], strict=True):
        value = parent.model_copy(update={part: value})
    changed: RunConfig = value
    return changed


def _tensor_setting(gpus: int) -> str:
    return f'rollout.server.args=[--tensor-parallel-size, "{gpus}"]'


def _server_needed(config: RunConfig, sizes: Sizes, gpu: Gpu) -> int | None:
    """GPUs of an engine, where one GPU cannot hold vLLM's weights; None: it can, or must not."""
    spec = engines.engine_of(config)
    problem = sampler_problem(config, sizes, gpu)
    if problem is None or (spec.in_process and SEVERAL_GPUS not in problem):
        return None
    for gpus in (1, 2, 4, 8, 16):
        tried = apply(apply(config, "rollout.engine=vllm-server"), _tensor_setting(gpus))
        if sampler_problem(tried, sizes, gpu) is None:
            return gpus
    return None


def _groups(config: RunConfig, ranks: int) -> Iterator[list[str]]:
    """Settings that free memory, cheapest first; those of one key together, mildest first."""
    longest = config.data.max_prompt_len + config.schedule.max_len
    budget, budgets = config.train.token_budget, []
    while budget > longest:
        budget = max(longest, budget // 2)
        budgets.append(f"train.token_budget={budget}")
    yield budgets
    spec = engines.engine_of(config)
    if spec.section is not None:
        own = getattr(config.rollout, spec.section)
        if own.cache_gib is None:
            name = f"rollout.{spec.section}.gpu_memory_utilization"
            now = round(own.gpu_memory_utilization * 20)
            yield [f"{name}={n / 20:.2f}" for n in [*range(now - 1, 3, -1), *range(now + 1, 19)]]
    elif spec.in_process:
        rows, fewer = config.rollout.batch_rows, []
        while rows > 1:
            rows //= 2
            fewer.append(f"rollout.batch_rows={rows}")
        yield fewer
    if not config.model.gradient_checkpointing:
        yield ["model.gradient_checkpointing=true"]
    if config.model.dtype == "float32":
        if ranks > 1 and config.distributed.compute_dtype is None:
            yield ["distributed.compute_dtype=bfloat16"]
        if ranks == 1:
            yield ["model.dtype=bfloat16"]
    if ranks > 1 and not config.distributed.reshard_after_forward:
        yield ["distributed.reshard_after_forward=true"]
    if ranks > 1 and not config.distributed.offload:
        head = config.distributed.vocabulary_parallel_head  # not with offload
        if not head:
            yield ["distributed.offload=true"]
