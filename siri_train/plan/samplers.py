"""The rollout engines of a recipe as the time model sees them: how many, on how many GPUs."""

from __future__ import annotations

import math

from siri_train.config import engines
from siri_train.config.run import RunConfig
from siri_train.plan.gpus import Gpu
from siri_train.plan.memory import GB, Sizes
from siri_train.plan.sampling_time import WORKSPACE, Sampler, cache_bytes, cache_per_token
from siri_train.plan.training_time import Machines

_SERVER_SHARE, _SERVER_SEQUENCES = 0.9, 256
"""vLLM's own defaults of ``--gpu-memory-utilization`` and ``--max-num-seqs``."""


def flag(config: RunConfig, name: str) -> str | None:
    """The value of a flag among ``rollout.server.args``; None: it is not there.

    Args:
        config: the recipe.
        name: with its dashes, as ``--tensor-parallel-size``.
    """
    args = config.rollout.server.args
    for index, text in enumerate(args):
        if text == name and index + 1 < len(args):
            return str(args[index + 1])
        if text.startswith(f"{name}="):
            return text.partition("=")[2]
    return None


def tensor_parallel(config: RunConfig, sizes: Sizes, gpu: Gpu) -> int:
    """GPUs of one server engine: what its flags say, else the fewest that hold model and sequence.

    Args:
        config: the recipe.
        sizes: of its model.
        gpu: each of the server's.
    """
    told = _number(flag(config, "--tensor-parallel-size") or flag(config, "-tp"))
    if told is not None:
        return told
    if config.rollout.server.url is None:
        return 1  # vLLM's own default
    room = _share(config) * gpu.memory_gb * GB - WORKSPACE
    whole = sizes.parameters * 2 + config.longest_sequence * cache_per_token(sizes)
    return next((n for n in (1, 2, 4, 8, 16) if whole / n <= room), 32)


def engine_gpus(config: RunConfig, sizes: Sizes, machines: Machines) -> int:
    """GPUs of one engine of the recipe's vLLM server.

    Args:
        config: the recipe. Where the server has an address and the weights (bfloat16) would fill
            more than half of a GPU's share, its whole machine is one engine, as the comments of the
            packaged recipes start it.
        sizes: of its model.
        machines: the trainer's; the server's GPUs are the same.
    """
    tensor = tensor_parallel(config, sizes, machines.gpu)
    crowded = 2 * 2 * sizes.parameters > _share(config) * machines.gpu.memory_gb * GB
    if config.rollout.server.url is not None and (tensor > 1 or crowded):
        return max(tensor, machines.per_node)
    return tensor


def server_gpus(config: RunConfig, sizes: Sizes, machines: Machines) -> int:
    """GPUs of the recipe's vLLM server; 0: its engine is in the trainer's process.

    Args:
        config: the recipe. A server that it names by its address is taken for one whole machine.
        sizes: of its model.
        machines: the trainer's.
    """
    if engines.engine_of(config).in_process:
        return 0
    tensor = engine_gpus(config, sizes, machines)
    if config.rollout.server.url is not None:
        return max(tensor, machines.per_node)
    listed = config.rollout.server.gpus
    named = len(str(listed).split(",")) if listed else 0
    copies = _number(flag(config, "--data-parallel-size") or flag(config, "-dp")) or 1
    return max(named, tensor * copies)


def _number(text: str | None) -> int | None:
    plain = text is not None and text.isascii() and text.isdigit() and int(text) > 0
    return int(text) if plain and text is not None else None


def _share(config: RunConfig) -> float:
    """The server's ``--gpu-memory-utilization``."""
    try:
        return float(flag(config, "--gpu-memory-utilization") or _SERVER_SHARE)
    except ValueError:
        return _SERVER_SHARE


def sampler_of(config: RunConfig, sizes: Sizes, machines: Machines) -> Sampler:
    """The engines that sample a step's responses.

    Args:
        config: the recipe.
        sizes: of its model.
        machines: the trainer's; a server's GPUs are the same.
    """
    spec, gpu, ranks = engines.engine_of(config), machines.gpu, machines.ranks
    width = 2 if config.sampler_dtype == "bfloat16" else 4
    if not spec.in_process:
        tensor = engine_gpus(config, sizes, machines)
        held = cache_bytes(sizes, gpu, _share(config), tensor)
        seqs = _number(flag(config, "--max-num-seqs")) or _SERVER_SEQUENCES
        count = max(1, server_gpus(config, sizes, machines) // tensor)
        asked = config.rollout.server.concurrency * ranks
        return Sampler(count, tensor, min(seqs, max(1, asked // count)), held, False)
    if spec.section is not None:
        own = getattr(config.rollout, spec.section)
        held = cache_bytes(sizes, gpu, own.gpu_memory_utilization, 1, width)
        if own.cache_gib is not None:
            held = own.cache_gib * 2**30
        return Sampler(ranks, 1, own.max_num_seqs, held, own.enforce_eager, width)
    return Sampler(ranks, 1, config.rollout.batch_rows, None, True, width)


SEVERAL_GPUS = "with several GPUs an engine"
"""In the reason that :func:`sampler_problem` gives where one GPU cannot hold an engine."""


def sampler_problem(config: RunConfig, sizes: Sizes, gpu: Gpu) -> str | None:
    """The reason for which vLLM would not start, with the key to change; None: there is none.

    Its share of a GPU must hold the weights and the cache of one longest sequence.

    Args:
        config: the recipe.
        sizes: of its model.
        gpu: each rank's, and the server's.
    """
    spec = engines.engine_of(config)
    width = 2 if config.sampler_dtype == "bfloat16" else 4
    one = config.longest_sequence * cache_per_token(sizes, width)
    whole, memory = sizes.parameters * width + one, gpu.memory_gb * GB
    if not spec.in_process:
        room = _share(config) * memory - WORKSPACE
        if whole / tensor_parallel(config, sizes, gpu) <= room:
            return None
        least = next((n for n in (1, 2, 4, 8, 16) if whole / n <= room), 32)
        way = f'set rollout.server.args=[--tensor-parallel-size, "{least}"]'
        if config.rollout.server.url is not None:
            way = f"start it with --tensor-parallel-size {least}"
        return f"the server cannot hold the weights and one sequence: {way}"
    if spec.section is None:
        return None
    own = getattr(config.rollout, spec.section)
    if own.cache_gib is not None:
        least_gib = f"{math.ceil(one / 2**30 * 10) / 10:.1f}"
        held = own.cache_gib * 2**30
        return None if held >= one else f"set rollout.{spec.section}.cache_gib to {least_gib}"
    if whole + WORKSPACE <= own.gpu_memory_utilization * memory:
        return None
    share = math.ceil((whole + WORKSPACE) / memory * 20) / 20
    if share <= 0.9:
        return (
            f"vLLM's share holds less than its weights and one sequence: set rollout.{spec.section}"
            f".gpu_memory_utilization to {share:.2f}"
        )
    return (
        f"one GPU cannot hold vLLM's weights and one sequence ({whole / GB:.0f} GB): set "
        f"rollout.engine=vllm-server, {SEVERAL_GPUS}"
    )
