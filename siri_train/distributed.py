"""Ranks: process group, sharing work and results, FSDP2 and the state of sharded models.

Everything here also works in a single process, where it costs nothing. Start several with
``torchrun --nproc-per-node N -m siri_train train RECIPE.yaml``.
"""

from __future__ import annotations

import datetime
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

Item = TypeVar("Item")
Result = TypeVar("Result")


_LEFT: list[Any] = []


def leave(wait: float = 60.0) -> None:
    """Leave the process group, if there still is one, together with all ranks.

    A rank that closes its sockets while another still reads resets the connection, which fails
    there ("Connection reset by peer", after everything was done). So the ranks first count
    themselves in the store, which is no part of gloo.

    The group's object outlives the call: gloo's own threads may let go of it last, and a thread
    that destroys the group waits for itself ("terminate called without an active exception", one
    run in some hundreds with two ranks on two cores).

    Args:
        wait: seconds for the others at most; 0 where this rank leaves because of an error.
    """
    if not active():  # a vLLM in this process takes the group down with itself
        return
    until = time.monotonic() + wait
    try:
        store = dist.distributed_c10d._get_default_store()
        here = store.add("siri_train/leaving", 1)
        while here < dist.get_world_size() and time.monotonic() < until:
            time.sleep(0.01)
            here = store.add("siri_train/leaving", 0)
    except RuntimeError:
        pass  # the store was another rank's, which has seen all of us and gone
    _LEFT.append(dist.group.WORLD)
    dist.destroy_process_group()


@contextmanager
def session(device: str, timeout_minutes: float = 60.0) -> Iterator[None]:
    """Join the process group that torchrun describes for as long as the body runs.

    Without torchrun's environment (``RANK``, ``WORLD_SIZE``), or inside another session, nothing
    happens. On a GPU both gloo (objects on the CPU) and nccl (tensors) are opened and the process
    takes the GPU ``LOCAL_RANK``. Ranks other than 0 print nothing; their errors are still shown.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        timeout_minutes: a collective that takes longer is an error; ranks wait for one another
            while the slowest samples, so this is long.
    """
    if dist.is_initialized() or "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=timeout_minutes))
    _LEFT.append(dist.group.WORLD)
    try:
        if is_main():
            yield
        else:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                yield
    except BaseException:
        leave(wait=0)
        raise
    leave()


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """Processes in the group, 1 without one."""
    return dist.get_world_size() if active() else 1


def active() -> bool:
    """Whether there is a process group, which may be of one process."""
    return dist.is_available() and dist.is_initialized()


def is_main() -> bool:
    """Whether this process writes the run's files."""
    return rank() == 0


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        gather(None)  # over gloo: a barrier of nccl would need to know the GPU


def gather(value: Result) -> list[Result]:
    """Every rank's ``value`` (anything that pickles), in the order of the ranks, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: Result) -> Result:
    """Rank 0's ``value`` on every rank."""
    if world_size() == 1:
        return value
    box: list[Any] = [value if is_main() else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_main(function: Callable[..., Result], *args: Any) -> Result:
    """Rank 0's ``function(*args)`` on every rank; what it raises is raised on every rank."""
    if world_size() == 1:
        return function(*args)
    outcome: tuple[bool, Any] = (True, None)
    if is_main():
        try:
            outcome = (True, function(*args))
        except Exception as error:  # the others wait for this broadcast: they must get something
            outcome = (False, error)
    fine, value = from_main(outcome)
    if not fine:
        raise value
    return value


@contextmanager
def main_first() -> Iterator[None]:
    """Run the body on rank 0 before the others, who then find what it left on the disk."""
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()


def share(count: int) -> slice:
    """This rank's contiguous part of ``count`` items; the parts differ by one item at most."""
    size, number = world_size(), rank()
    return slice(count * number // size, count * (number + 1) // size)


def spread(
    work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
) -> list[Result]:
    """``work(items)`` with every rank doing its :func:`share`; the whole result on every rank.

    Args:
        work: one result per item, in order; must be fine with an empty sequence.
        items: the same on every rank.
    """
    parts = gather(list(work(items[share(len(items))])))
    return [result for part in parts for result in part]


def total(values: Sequence[float]) -> list[float]:
    """Element-wise sum over the ranks, in float64 and in the order of the ranks."""
    return [sum(column) for column in zip(*gather(list(values)), strict=True)]


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
            :mod:`siri_train.vocabulary`.

    Raises:
        ValueError: no process group, a model without a list of ``layers``, or a head that cannot
            stay cut: tied to the embedding, with a bias, or not divided by the ranks.
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
        from siri_train.vocabulary import cut_head

        options["ignored_params"] = {cut_head(model, options["mesh"], device)}
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
    from siri_train.vocabulary import VocabularyParallelHead

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


def sharded_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state for ``torch.distributed.checkpoint``, keyed by parameter names.

    Each rank's part holds its own shards (DTensors), so it can be loaded on another number of
    ranks. Collective.
    """
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return {"optimizer": get_optimizer_state_dict(model, optimizer)}


def save_sharded_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Every rank writes its :func:`sharded_state` into ``folder``. Collective.

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
    """Put back what :func:`save_sharded_state` wrote, on any number of ranks. Collective.

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
