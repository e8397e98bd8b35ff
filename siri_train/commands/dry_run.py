"""``siri-train train --dry-run``: what would run, its memory, its hours and their price."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig
from siri_train.plan.build import plan, share_of
from siri_train.plan.checks import look, offline
from siri_train.plan.gpus import Gpu, gpu_of, matching
from siri_train.plan.memory import GB, Sizes, estimate
from siri_train.plan.rates import measured_rates
from siri_train.plan.text import (
    describe_batch,
    describe_memory,
    describe_questions,
    describe_time,
    plan_text,
)


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of :func:`dry_run` from those of ``siri-train train``.

    Args:
        arguments: the command line.
    """
    return {
        "ranks": arguments.ranks,
        "memory_gb": arguments.gpu_memory,
        "rates_from": arguments.rates,
        "gpu_name": arguments.gpu,
        "gpus_per_node": arguments.gpus_per_node,
        "price": arguments.price,
        "mean_length": arguments.mean_length,
    }


def dry_run(
    config: RunConfig,
    *,
    ranks: int | None = None,
    memory_gb: float | None = None,
    rates_from: str | None = None,
    gpu_name: str | None = None,
    gpus_per_node: int = 8,
    price: float | None = None,
    mean_length: str | None = None,
) -> str:
    """The resolved configuration, memory per rank, tokens a step, hours and money.

    Every check is made that this machine allows, without a network. The text is YAML: everything
    after the configuration is a comment.

    Args:
        config: the recipe.
        ranks: processes that would share the model; default: torchrun's, else 1.
        memory_gb: of one GPU, in 10**9 bytes; default: that of ``gpu_name``, else of this machine's
            GPU, if it has one.
        rates_from: folder of a run whose ``metrics.jsonl`` has measured rates; default: the
            recipe's own, if it has been started.
        gpu_name: the GPU to plan for, see :func:`siri_train.plan.gpus.gpu_of`; default: this
            machine's.
        gpus_per_node: GPUs of one machine.
        price: money per GPU hour; default: the recipe's.
        mean_length: mean response length, see :func:`siri_train.plan.build.share_of`.

    Raises:
        ConfigError: as :func:`siri_train.plan.checks.look`; an unknown GPU; a length that is none;
            or ``rates_from`` has no rates.
    """
    offline()
    known = _this_gpu(config) if gpu_name is None else gpu_of(gpu_name)
    share = None if mean_length is None else share_of(config, mean_length)
    looked = look(config)
    ranks = ranks or _ranks_of_torchrun()
    if memory_gb is None:
        memory_gb = _this_memory(config) if known is None else known.memory_gb
    sizes = Sizes.of(looked.model)
    reference = None if looked.reference is None else Sizes.of(looked.reference)
    memory = estimate(
        config,
        sizes,
        ranks=ranks,
        gpu=memory_gb is not None,
        memory_gb=memory_gb,
        reference=reference,
    )
    rates = measured_rates(Path(rates_from) if rates_from else config.run_dir)
    if rates_from and not Path(rates_from).is_dir():
        raise ConfigError(f"--rates: there is no folder {rates_from}; give the folder of a run")
    if rates_from and rates is None:
        raise ConfigError(
            f"--rates: {rates_from}/metrics.jsonl has no finished step; give the folder "
            "of a run that has one"
        )
    held_out = looked.questions.graded(config) / config.eval.samples
    lines = describe_questions(looked)
    if known is None or rates is not None:
        lines += describe_memory(config, sizes, memory, ranks, memory_gb)
        lines += describe_time(config, rates, held_out)
    else:
        planned = plan(
            config, ranks=ranks, gpu=known, memory_gb=memory_gb, gpus_per_node=gpus_per_node,
            price=price, share=share, graded=looked.questions.graded(config), sizes=sizes,
            reference=reference,
        )  # fmt: skip
        lines += describe_memory(config, sizes, memory, ranks, None)
        lines += [*describe_batch(config), *plan_text(planned)]
    return "\n".join([config.to_yaml(), *(f"# {line}".rstrip() for line in lines)])


def _this_memory(config: RunConfig) -> float | None:
    """Memory of this machine's GPU in 10**9 bytes; None: it has none, or the recipe wants none."""
    if config.device == "cpu" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / GB


def _this_gpu(config: RunConfig) -> Gpu | None:
    """This machine's GPU, if it is a known one."""
    memory_gb = _this_memory(config)
    return None if memory_gb is None else matching(torch.cuda.get_device_name(0), memory_gb)


def _ranks_of_torchrun() -> int:
    text = os.environ.get("WORLD_SIZE", "1")
    if not (text.isascii() and text.isdigit() and len(text) < 8 and int(text)):
        raise ConfigError(
            f"WORLD_SIZE: got {text[:40]!r} in the environment; takes torchrun's number of "
            "processes, or none"
        )
    return int(text)
