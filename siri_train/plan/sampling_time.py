"""Seconds of sampling: prompts are read at the speed of products, tokens at that of memory.

A decoding step reads all weights and the cache of every running sequence; at large batches its
products cost more than reading the weights. Sequences run in a fixed number of places, and the next
one waits for a free place; at the end the longest response of the slowest engine decides while the
others idle. This follows the engines' own scheduling, with lengths that stand for the distribution.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from itertools import islice

from siri_train.plan.efficiency import Efficiency
from siri_train.plan.gpus import Gpu
from siri_train.plan.lengths import quantiles
from siri_train.plan.memory import GB, Sizes

WORKSPACE = 2.5 * GB
"""Bytes of vLLM's share that neither weights nor cache get: activations and CUDA graphs."""


@dataclass(frozen=True)
class Sampler:
    """One rollout engine, as many of which share a step's responses.

    Args:
        engines: how many.
        gpus: of one engine (tensor parallel).
        places: sequences that it decodes at a time at most.
        cache_bytes: memory of one GPU for keys and values; None: no bound.
        eager: every operation is launched from Python (transformers).
        bytes_per_weight: of the dtype that it computes in.
    """

    engines: int
    gpus: int
    places: int
    cache_bytes: float | None
    eager: bool
    bytes_per_weight: int = 2


@dataclass(frozen=True)
class SamplingTime:
    """Seconds of one rollout.

    Args:
        prefill: reading prompts.
        decode: until the last response ends, prompts not counted.
        idle: share of ``decode`` x places that is empty, because fewer responses are left.
        places: sequences decoded at a time.
    """

    prefill: float
    decode: float
    idle: float
    places: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.prefill + self.decode


def cache_per_token(sizes: Sizes, width: int = 2) -> int:
    """Bytes of keys and values of a token.

    Args:
        sizes: of the model.
        width: bytes of a number.
    """
    return 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * width


def decoding_weights(sizes: Sizes) -> int:
    """Parameters that a decoding step reads: all but an embedding of its own."""
    return sizes.parameters - (0 if sizes.tied else sizes.vocabulary * sizes.hidden)


def step_seconds(
    sizes: Sizes, gpu: Gpu, sampler: Sampler, running: int, context: float, speed: Efficiency
) -> float:
    """Seconds of one decoding step.

    Args:
        sizes: of the model.
        gpu: on which it runs.
        sampler: the engine.
        running: sequences in the batch.
        context: tokens in the cache of all of them together.
        speed: the efficiencies.
    """
    weights = decoding_weights(sizes)
    share = sampler.gpus
    read = weights * sampler.bytes_per_weight / share / (gpu.bandwidth * speed.decode_bandwidth)
    multiply = 2 * weights * running / share / (gpu.flops * speed.matmul)
    cache = context * cache_per_token(sizes, sampler.bytes_per_weight) / share
    cache_time = cache / (gpu.bandwidth * speed.decode_bandwidth)
    own = speed.step_overhead + speed.sequence_overhead * running
    if sampler.eager:
        own += speed.eager_layer * sizes.layers
    # Two sums over the engine's GPUs a layer, of a row for each sequence.
    joined = 0.0
    if share > 1:
        rows = 2 * running * sizes.hidden * sampler.bytes_per_weight * 2 * (share - 1) / share
        joined = sizes.layers * (rows / (gpu.link * speed.link) + 2 * 1.2e-5)
    return max(read, multiply) + cache_time + own + joined


def places(sizes: Sizes, sampler: Sampler, prompt: float, lengths: list[float]) -> int:
    """Sequences that an engine runs at a time: its own bound, or what its cache holds.

    Args:
        sizes: of the model.
        sampler: the engine.
        prompt: tokens of a prompt.
        lengths: response lengths in tokens.
    """
    if sampler.cache_bytes is None:
        return sampler.places
    total = sum(lengths)
    # A running sequence is met in proportion to its length, on average half done.
    held = prompt + sum(n * n for n in lengths) / (2 * total)
    room = sampler.cache_bytes * sampler.gpus / cache_per_token(sizes, sampler.bytes_per_weight)
    return max(1, min(sampler.places, int(room / held)))


def sampling_time(
    sizes: Sizes,
    gpu: Gpu,
    sampler: Sampler,
    *,
    responses: int,
    per_prompt: int,
    prompt: float,
    cap: float,
    share: float,
    speed: Efficiency,
) -> SamplingTime:
    """Seconds until all responses of a rollout are there.

    Args:
        sizes: of the model.
        gpu: on which it runs.
        sampler: the engines.
        responses: of all engines together.
        per_prompt: responses to one prompt, whose prompt is read once.
        prompt: mean tokens of a prompt.
        cap: largest number of response tokens.
        share: mean response length over ``cap``.
        speed: the efficiencies.
    """
    mine = max(1, -(-responses // sampler.engines))
    lengths = [max(1.0, cap * q) for q in quantiles(share, mine)]
    read_tokens = prompt * max(1.0, mine / per_prompt)
    products = 2 * decoding_weights(sizes) * read_tokens
    prefill = products / sampler.gpus / (gpu.flops * speed.matmul)
    count = min(places(sizes, sampler, prompt, lengths), mine)
    order = lengths[:]
    random.Random(0).shuffle(order)  # nobody knows the lengths before
    decode, idle = _decode(sizes, gpu, sampler, order, count, prompt, speed)
    return SamplingTime(prefill, decode, idle, count)


def _decode(
    sizes: Sizes,
    gpu: Gpu,
    sampler: Sampler,
    order: list[float],
    count: int,
    prompt: float,
    speed: Efficiency,
) -> tuple[float, float]:
    """Seconds of decoding, and the share of places x time that is empty at its end."""
    waiting = iter(order)
    running: list[tuple[float, float]] = []  # (the step at which it ends, that at which it began)
    for length in islice(waiting, count):
        heapq.heappush(running, (length, 0.0))
    now = seconds = empty = 0.0
    began = 0.0  # sum over running sequences
    while running:
        end = running[0][0]
        alive = len(running)
        middle = (now + end) / 2
        context = alive * (prompt + middle) - began
        spent = (end - now) * step_seconds(sizes, gpu, sampler, alive, context, speed)
        seconds += spent
        empty += spent * (count - alive) / count
        now = end
        while running and running[0][0] <= now:
            began -= heapq.heappop(running)[1]
            for length in islice(waiting, 1):
                heapq.heappush(running, (now + length, now))
                began += now
    return seconds, empty / seconds if seconds else 0.0


def cache_bytes(sizes: Sizes, gpu: Gpu, share: float, gpus: int, width: int = 2) -> float:
    """Memory of one GPU for keys and values beside the weights, as vLLM plans it.

    Args:
        sizes: of the model.
        gpu: on which it runs.
        share: ``gpu_memory_utilization``.
        gpus: over which an engine's weights are spread.
        width: bytes of a number.
    """
    weights = sizes.parameters * width / gpus
    return max(share * gpu.memory_gb * GB - weights - WORKSPACE, 0.25 * GB)
