"""The recipe's rollout engine: checked before anything is loaded, built afterwards."""

from __future__ import annotations

import os
from typing import Any

import torch

from siri_train import distributed
from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig
from siri_train.model import fsdp
from siri_train.model.policy import Policy
from siri_train.rollout.data_parallel import SharedEngine
from siri_train.rollout.engine import Engine
from siri_train.rollout.transformers_engine import TransformersEngine


def check_engine(
    config: RunConfig, shape: Any, device: torch.device, *, take_server: bool = True
) -> None:
    """Refuse an engine that cannot run here.

    Args:
        config: the recipe.
        shape: the model's configuration (transformers' ``PretrainedConfig``).
        device: the trainer's.
        take_server: see :func:`.check_server`.

    Raises:
        ConfigError: vLLM is missing or of an unsupported version (what to install is named), has no
            kernel for the model, would take another GPU than the trainer, or the prompt and the
            longest response do not fit into the model's positions. Of a server: as
            :func:`.check_server`.
        EngineError: a server that is named does not answer.
    """
    if config.rollout.engine == "vllm-server":
        from siri_train.rollout.vllm.connect import check_server

        return check_server(config, shape, device, take=take_server)
    if config.rollout.engine != "vllm":
        return
    # Imported here: without vLLM its modules are never needed.
    from siri_train.rollout.vllm.engine import check_model, installed_version
    from siri_train.rollout.vllm.weight_sync import interface

    interface(installed_version())
    check_model(shape, device)
    positions = getattr(shape, "max_position_embeddings", None)
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


def build_engine(config: RunConfig, policy: Policy, *, ahead: bool = False) -> Engine:
    """The recipe's rollout engine with the policy's weights, shared among the ranks.

    Args:
        config: the recipe.
        policy: the trainer's.
        ahead: batches are sampled while the policy is updated, so an engine that would sample from
            the policy's own weights needs a copy of them.

    Raises:
        ConfigError: ``rollout.shards`` is not a multiple of the number of ranks; or as
            :func:`check_engine`.
        EngineError: vLLM does not start.
    """
    shards = config.rollout.shards or distributed.world_size()
    if shards % distributed.world_size():
        raise ConfigError(
            f"rollout.shards: got {shards}, must be a multiple of the "
            f"{distributed.world_size()} ranks"
        )
    engine: Engine
    if config.rollout.engine == "vllm":
        from siri_train.rollout.vllm.engine import VllmEngine

        vllm = config.rollout.vllm
        engine = VllmEngine(
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
        # Its weights are whole after a sync: nothing has to be gathered around sampling.
        return engine if shards == 1 else SharedEngine(engine, shards)
    if config.rollout.engine == "vllm-server":
        from siri_train.rollout.vllm.connect import build_server_engine

        engine = build_server_engine(config, policy)
        return engine if shards == 1 else SharedEngine(engine, shards)
    engine = TransformersEngine(
        policy.model,
        policy.pad_token_id,
        config.rollout.batch_rows,
        own_weights=ahead,
    )
    if shards == 1:
        return engine
    return SharedEngine(engine, shards, lambda: fsdp.gathered(policy.model))
