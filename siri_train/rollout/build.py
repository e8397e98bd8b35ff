"""The recipe's rollout engine: checked before anything is loaded, built afterwards."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from siri_train import distributed
from siri_train.config import engines
from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig
from siri_train.model import fsdp
from siri_train.model.policy import Policy
from siri_train.rollout.data_parallel import SharedEngine
from siri_train.rollout.engine import Engine


def check_engine(
    config: RunConfig, model_config: Any, device: torch.device, *, take_server: bool = True
) -> None:
    """Refuse an engine that cannot run here.

    Args:
        config: the recipe.
        model_config: the model's configuration (transformers' ``PretrainedConfig``).
        device: the trainer's.
        take_server: see :func:`siri_train.rollout.vllm.connect.check_server`.

    Raises:
        ConfigError: what the engine's own check refuses; see ``siri_train.config.engines``.
        EngineError: a server that the recipe names does not answer.
    """
    check = engines.engine_of(config).check
    if check is not None:
        engines.function(check)(config, model_config, device, take_server=take_server)


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
        EngineError: the engine does not start.
    """
    shards = config.rollout.shards or distributed.world_size()
    if shards % distributed.world_size():
        raise ConfigError(
            f"rollout.shards: got {shards}, must be a multiple of the "
            f"{distributed.world_size()} ranks"
        )
    spec = engines.engine_of(config)
    engine: Engine = engines.function(spec.build)(config, policy, ahead=ahead)
    if shards == 1:
        return engine
    if spec.own_weights:  # whole after a sync: nothing has to be gathered around sampling
        return SharedEngine(engine, shards, nullcontext, by=config.rollout.deal)
    return SharedEngine(engine, shards, lambda: fsdp.gathered(policy.model), by=config.rollout.deal)
