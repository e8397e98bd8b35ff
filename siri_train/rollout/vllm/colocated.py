"""The recipe's vLLM in the trainer's process: checked before the run, and built."""

from __future__ import annotations

import os
from typing import Any

import torch

from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig
from siri_train.model.policy import Policy
from siri_train.rollout.vllm import versions
from siri_train.rollout.vllm.engine import VllmEngine, check_model


def check(
    config: RunConfig, model_config: Any, device: torch.device, *, take_server: bool = True
) -> None:
    """Refuse a recipe that a vLLM in this process cannot sample for.

    Args:
        config: the recipe.
        model_config: the model's configuration (transformers' ``PretrainedConfig``).
        device: the trainer's.
        take_server: without effect.

    Raises:
        ConfigError: vLLM is missing or of an unsupported version (what to install is named), has no
            kernel for the model, would take another GPU than the trainer, or the prompt and the
            longest response do not fit into the model's positions.
    """
    versions.features(versions.installed_version())
    check_model(model_config, device)
    positions = getattr(model_config, "max_position_embeddings", None)
    if positions is not None and config.longest_sequence > positions:
        raise ConfigError(
            f"rollout.engine: vLLM must hold data.max_prompt_len + the longest response = "
            f"{config.longest_sequence} tokens, but the model has {positions} positions"
        )
    alone = "WORLD_SIZE" not in os.environ
    if alone and device.type == "cuda" and device.index not in (None, 0):
        raise ConfigError(
            f"device: got {config.device!r}, but vLLM in the same process takes the first GPU it "
            f"sees; set CUDA_VISIBLE_DEVICES={device.index} and device=cuda"
        )


def build(config: RunConfig, policy: Policy, *, ahead: bool = False) -> VllmEngine:
    """A vLLM in this process with the policy's weights.

    Args:
        config: the recipe.
        policy: the trainer's.
        ahead: without effect: it is refused before the run.

    Raises:
        ConfigError: as :func:`check`.
        EngineError: vLLM does not start.
    """
    vllm = config.rollout.vllm
    return VllmEngine(
        policy.model,
        config.longest_sequence,
        device=policy.device,
        dtype=getattr(torch, config.sampler_dtype),
        gpu_memory_utilization=vllm.gpu_memory_utilization,
        cache_gib=vllm.cache_gib,
        sleep_level=vllm.sleep_level,
        max_num_seqs=vllm.max_num_seqs,
        enforce_eager=vllm.enforce_eager,
        lora_scaling=policy.lora_scaling,
    )


def diagnose() -> str:
    """Whether vLLM works here, and why not: a line of ``siri-train doctor``."""
    try:
        version = versions.installed_version()
        known = versions.features(version)
        versions.import_vllm()
    except ConfigError as error:
        return f"--  vllm: {str(error).removeprefix('rollout.engine: ')}"
    where = "tested here" if known.tested else "its interface is known here, not tested"
    return f"ok  vllm {version}: {where}"
