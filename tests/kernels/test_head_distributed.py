"""LogprobHead where PyTorch wraps it: FSDP2 in two processes, torch.compile, checkpointing."""

from __future__ import annotations

import datetime

import pytest
import torch
import torch.distributed as dist
from torch import nn

from siri_kernels import LogprobHead, linear_logprob

from .helpers import cpu_mesh, leave_process_group, leaves, two_processes

VOCABULARY, WIDTH, TOKENS = 8200, 16, 12  # large enough for top entries


class Model(nn.Module):
    def __init__(self, tied):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.body = nn.Linear(WIDTH, WIDTH)
        head = nn.Linear(WIDTH, VOCABULARY, bias=not tied)
        if tied:
            head.weight = self.embed.weight
        self.lm_head = LogprobHead(head)

    def forward(self, tokens, targets):
        return self.lm_head(self.body(self.embed(tokens)) * 4, targets, temperature=0.9)


def loss(model, rank):
    generator = torch.Generator().manual_seed(100 + rank)
    tokens, targets = torch.randint(0, VOCABULARY, (2, TOKENS), generator=generator)
    out = model(tokens, targets)
    up = torch.randn(2, TOKENS, generator=generator)
    return (out.logprobs * up[0] + out.entropy * up[1]).sum()


def worker(rank, folder, tied):
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(minutes=10),
    )
    try:
        model, alone = Model(tied), Model(tied)
        names = list(model.state_dict())
        mesh = cpu_mesh()
        if not tied:  # tied parameters must be sharded together, by the root
            fully_shard(model.lm_head, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert list(model.state_dict()) == names == list(alone.state_dict())
        loss(model, rank).backward()
        sum(loss(alone, r) for r in range(2)).div(2).backward()
        for (name, got), want in zip(model.named_parameters(), alone.parameters(), strict=True):
            assert type(got).__name__ == "DTensor" and got.to_local().numel() < want.numel(), name
            torch.testing.assert_close(got.grad.full_tensor(), want.grad, rtol=1e-5, atol=1e-6)
    finally:
        leave_process_group()


@pytest.mark.costly
@pytest.mark.draw(1)
@pytest.mark.parametrize("tied", [False, True])
def test_fsdp2_in_two_processes_gives_the_gradients_of_one(tied, tmp_path):
    if not dist.is_available():
        pytest.skip("this PyTorch is built without torch.distributed")
    two_processes(worker, tmp_path, tied)


def test_compiled_models_run_and_do_not_compile_again_each_step():
    from torch._dynamo.utils import counters

    model = Model(tied=True)
    compiled = torch.compile(model, backend="aot_eager")
    torch._dynamo.reset()
    counters.clear()
    frames = []
    for step in range(5):
        rows = TOKENS + step  # a packed batch has another length each time
        tokens, targets = torch.randint(0, VOCABULARY, (2, rows))
        grads = []
        for run in (model, compiled):
            model.zero_grad()
            out = run(tokens, targets)
            (out.logprobs.sum() + out.entropy.sum()).backward()
            grads.append([p.grad.clone() for p in model.parameters()])
        for got, want in zip(grads[1], grads[0], strict=True):
            torch.testing.assert_close(got, want)
        frames.append(counters["frames"]["total"])
    assert frames[0] > 0 and frames[2:] == frames[2:3] * 3, frames
    torch._dynamo.reset()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(reentrant):
    model = Model(tied=False)
    hidden, targets = 4 * torch.randn(20, WIDTH), torch.randint(0, VOCABULARY, (20,))
    results = []
    for wrapped in (False, True):
        (h,) = leaves(hidden)
        model.zero_grad()
        if wrapped:
            out = torch.utils.checkpoint.checkpoint(
                model.lm_head, h, targets, use_reentrant=reentrant
            )
        else:
            out = model.lm_head(h, targets)
        (out[0].sum() + out[1].sum()).backward()
        results.append([h.grad, *(p.grad for p in model.lm_head.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_double_backward_of_lists_is_refused():
    inputs = leaves(torch.randn(5, 4), torch.randn(VOCABULARY, 4))
    out = linear_logprob(*inputs, torch.arange(5))
    (grad,) = torch.autograd.grad(out.entropy.sum(), inputs[1], create_graph=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
        grad.sum().backward()
