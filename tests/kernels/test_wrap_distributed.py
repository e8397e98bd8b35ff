"""A wrapped model under FSDP2 in two processes and under DDP."""

from __future__ import annotations

import datetime

import pytest
import torch
import torch.distributed as dist

from siri_kernels import LogprobHead

from .helpers import cpu_mesh, leave_process_group, two_processes
from .test_wrap import batch, make


def loss(model, rank, temperature=0.9):
    torch.manual_seed(100 + rank)
    inputs, targets = batch()
    out = model(**inputs, targets=targets, temperature=temperature)
    up = torch.randn(2, *targets.shape)
    return (out.logprobs * up[0] + out.entropy * up[1]).sum()


def compare(rank, family, kind):
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model, alone = LogprobHead.wrap(make(family)), LogprobHead.wrap(make(family))
    names = list(model.state_dict())
    if kind == "ddp":
        outer = torch.nn.parallel.DistributedDataParallel(model)
    else:
        outer = model
        half = torch.bfloat16 if kind == "bfloat16" else None
        policy = {"mp_policy": MixedPrecisionPolicy(param_dtype=half), "mesh": cpu_mesh()}
        layers = model.transformer.h if family == "gpt2" else model.model.layers
        for layer in layers:
            fully_shard(layer, **policy)
        if not model.config.tie_word_embeddings:  # tied weights belong to the root
            fully_shard(model.lm_head, **policy)
        fully_shard(model, **policy)
        with pytest.raises(ValueError, match="sharded already"):
            LogprobHead.wrap(fully_shard(make(family), mesh=policy["mesh"]))
    assert list(model.state_dict()) == names == list(alone.state_dict())
    assert LogprobHead.wrap(model) is model
    loss(outer, rank).backward()
    sum(loss(alone, r) for r in range(2)).div(2).backward()
    for (name, got), want in zip(model.named_parameters(), alone.parameters(), strict=True):
        grad = got.grad
        if kind != "ddp":
            assert type(got).__name__ == "DTensor", name
            assert got.to_local().numel() < want.numel(), name
            grad = grad.full_tensor()
        if kind == "bfloat16":
            assert (grad - want.grad).norm() < 0.15 * want.grad.norm(), name
        else:
            torch.testing.assert_close(grad, want.grad, rtol=1e-4, atol=1e-5)


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(minutes=10),
    )
    try:
        for family in ("qwen2", "gpt2"):
            for kind in ("fsdp2", "bfloat16", "ddp"):
                compare(rank, family, kind)
    finally:
        leave_process_group()


def test_two_processes_give_the_gradients_of_one(tmp_path):
    """Untied (Qwen2) and tied (GPT-2), in float32, in bfloat16 and under DDP."""
    if not dist.is_available():
        pytest.skip("this PyTorch is built without torch.distributed")
    two_processes(worker, tmp_path)
