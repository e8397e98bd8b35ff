"""FSDP2: shards a model over the ranks, gathers its whole weights, loads weights into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from siri_train.distributed import is_main, world_size


def shard(
    model: nn.Module,
    device: torch.device,
    *,
    methods: Mapping[str, Callable[..., Any]] | None = None,
    reshard_after_forward: bool = True,
    compute_dtype: torch.dtype | None = None,
    offload: bool = False,
    vocabulary_parallel_head: bool = False,
) -> None:
    """Shard a transformers model over all ranks with FSDP2 (``fully_shard``), in place.

    Every decoder layer is a unit of its own; embedding, final norm and head belong to the root
    (a tied head and its embedding must be gathered together). Gradients are averaged over the
    ranks, in float32.

    Args:
        model: a causal language model, the same on every rank; its ``base_model`` has ``layers``.
            Best on the CPU: one layer at a time goes to ``device``, where only its shard stays.
        device: where this rank computes.
        methods: functions that take the model first, to be attached to it under these names and to
            gather weights as ``model(...)`` does.
        reshard_after_forward: free a layer's gathered weights after its forward pass and gather
            them again in backward; False trades that memory for less communication.
        compute_dtype: dtype of gathered weights and of the computation (bfloat16 over float32
            weights is mixed precision with float32 master weights); None: as they are stored.
        offload: keep weights, gradients and optimiser state in CPU memory between uses.
        vocabulary_parallel_head: never gather the head (a ``LogprobHead``), see
            :mod:`siri_train.model.vocab_parallel`.

    Raises:
        ValueError: no process group, a model without a list of ``layers``, or a head that cannot
            be sharded: tied to the embedding, with a bias, or of a vocabulary that the number of
            ranks does not divide.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    if not dist.is_initialized():
        raise ValueError("shard: no process group; start the program with torchrun")
    layers = getattr(getattr(model, "base_model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"shard: {type(model).__name__}.base_model has no ModuleList 'layers'")
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (world_size(),)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32),
    }
    if offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=device.type == "cuda")
    for layer in layers:
        fully_shard(layer, reshard_after_forward=reshard_after_forward, **options)
        layer._siri_reshard_after_forward = reshard_after_forward  # type: ignore[assignment]
    if vocabulary_parallel_head:
        from siri_train.model.vocab_parallel import shard_head

        options["ignored_params"] = {shard_head(model, options["mesh"], device)}
    # The root is used first in forward and first in backward: gathering it twice in a row is waste.
    fully_shard(model, reshard_after_forward=False, **options)
    for name, method in (methods or {}).items():
        setattr(model, name, MethodType(method, model))
        register_fsdp_forward_method(model, name)
    model.siri_device = device  # type: ignore[assignment]
    model.siri_compute_dtype = compute_dtype  # type: ignore[assignment]


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` has been applied (also while the weights are gathered)."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Whole weights on every rank inside the body; ranks may then call the model independently.

    Sampling needs this: ranks decode different numbers of tokens, so a layer must not wait for
    the other ranks. Costs the whole model's weights in the computation's dtype on each rank.
    Collective at its beginning; not for training.
    """
    from siri_train.model.vocab_parallel import VocabularyParallelHead

    units = [m for m in model.modules() if hasattr(m, "unshard")] if is_sharded(model) else []
    if units:
        model.set_reshard_after_forward(False, recurse=True)  # type: ignore[operator]
        for unit in units:
            unit.unshard()  # type: ignore[operator]
    dtype = getattr(model, "siri_compute_dtype", None)
    try:
        with ExitStack() as stack:
            for module in model.modules():
                if isinstance(module, VocabularyParallelHead):
                    stack.enter_context(module.gathered(dtype))
            yield
    finally:
        for unit in units:
            unit.reshard()  # type: ignore[operator]
            if unit is not model:
                policy = getattr(unit, "_siri_reshard_after_forward", True)
                unit.set_reshard_after_forward(policy, recurse=False)  # type: ignore[operator]


def reshard(model: nn.Module) -> None:
    """Free the gathered weights of a sharded model, where no backward pass will do so.

    Args:
        model: sharded by :func:`shard`; any other model stays as it is.
    """
    if is_sharded(model):
        for module in model.modules():
            if hasattr(module, "unshard"):
                module.reshard()  # type: ignore[operator]


def full_state_dict(model: nn.Module) -> dict[str, Any]:
    """The whole model's state on the CPU of rank 0, plain tensors; empty on the other ranks.

    Collective: every rank must call it. Names are those of ``model.state_dict()``, so
    ``model.save_pretrained(folder, state_dict=...)`` on rank 0 writes a consolidated checkpoint.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    if world_size() == 1 and not is_sharded(model):
        return model.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    return state if is_main() else {}


def load_weights(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load whole tensors, the same on every rank, into a model that may be sharded.

    Args:
        model: changed in place.
        state: some of the model's weights under their names; the others stay as they are.

    Raises:
        ValueError: a name or shape that the model does not have.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    shapes = {name: value.shape for name, value in model.named_parameters()}
    for name, value in state.items():
        if shapes.get(name) != value.shape:
            raise ValueError(
                f"{name}: {list(value.shape)} was saved, the model has "
                f"{list(shapes[name]) if name in shapes else 'no such weight'}"
            )
    set_model_state_dict(
        model, dict(state), options=StateDictOptions(full_state_dict=True, strict=False)
    )
