"""The optimiser's state of a sharded model: written and read by shards, on any number of ranks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from siri_train.distributed import world_size


def sharded_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state for ``torch.distributed.checkpoint``, keyed by parameter names.

    Each rank's part holds its own shards (DTensors), so it can be loaded on another number of
    ranks. Collective.
    """
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return {"optimizer": get_optimizer_state_dict(model, optimizer)}


def save_sharded_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Every rank writes its :func:`sharded_state` into ``folder``. Collective.

    Args:
        folder: the same on every rank.
        model: the sharded model.
        optimizer: over its parameters.

    Raises:
        RuntimeError: on every rank, if any rank could not write.
    """
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        checkpoint.save(sharded_state(model, optimizer), checkpoint_id=folder)
    except CheckpointException as error:  # no Exception, and its text is every rank's traceback
        failed = [f"rank {rank}: {reason}" for rank, (reason, _) in error.failures.items()]
        raise RuntimeError("; ".join(failed)) from error


def load_sharded_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load what :func:`save_sharded_state` wrote, on any number of ranks. Collective.

    Args:
        folder: the same on every rank.
        model: the sharded model.
        optimizer: over its parameters.

    Raises:
        ValueError: the folder holds the state of another model.
    """
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    state = sharded_state(model, optimizer)
    try:
        with warnings.catch_warnings():
            # One process may load what several have written; torch warns that it is alone.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            checkpoint.load(state, checkpoint_id=folder, no_dist=world_size() == 1)
    except (CheckpointException, RuntimeError) as error:
        raise ValueError(f"the optimiser's state is another model's: {error}") from error
    set_optimizer_state_dict(model, optimizer, state["optimizer"])


def load_whole_state(
    state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Put an unsharded ``optimizer.state_dict()`` of one process into a sharded optimiser.

    Args:
        state: parameters are numbered in the order of the optimiser's groups, the same as here.
        model: the sharded model.
        optimizer: over its parameters.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    names = {id(p): name for name, p in model.named_parameters()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    named: dict[str, Any] = {
        "state": {order[number]: value for number, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [order[number] for number in group["params"]]}
            for group in state["param_groups"]
        ],
    }
    set_optimizer_state_dict(
        model, optimizer, named, options=StateDictOptions(full_state_dict=True)
    )
