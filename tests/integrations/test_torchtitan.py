"""torchtitan 0.3.0: its own chunked loss around its own DAPO loss, against ours."""

from __future__ import annotations

import copy
import datetime
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

torchtitan = pytest.importorskip("torchtitan", reason="torchtitan is not installed")
losses = pytest.importorskip("torchtitan.components.loss")

from siri_kernels.integrations.torchtitan import SiriLoss  # noqa: E402
from tests.kernels.helpers import leave_process_group, two_processes  # noqa: E402

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 8, 16, 61


@pytest.fixture(scope="module")
def dapo():
    """``DAPOLoss``, loaded by path: its package's ``__init__`` wants vLLM and Monarch."""
    path = Path(torchtitan.__path__[0]) / "experiments" / "rl" / "losses" / "dapo.py"
    spec = importlib.util.spec_from_file_location("torchtitan_dapo", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up there
    spec.loader.exec_module(module)
    yield module.DAPOLoss
    del sys.modules[spec.name]


def batch(head):
    hidden = 2 * torch.randn(ROWS, LENGTH, WIDTH)
    labels = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    logprobs = head(hidden).log_softmax(-1).gather(-1, labels[..., None])[..., 0].detach()
    generator = logprobs + 0.4 * torch.randn_like(logprobs)
    generator[0, 2] = float("nan")
    mask = torch.rand(ROWS, LENGTH) < 0.8
    mask[0, 2] = True
    return hidden, labels, {
        "generator_logprobs": generator,
        "advantages": torch.randn(ROWS, 1).expand(-1, LENGTH).contiguous(),
        "loss_mask": mask,
    }  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [None, 17.0, torch.tensor(23.0)])
def test_equals_the_chunked_dapo_loss(dapo, bias, count):
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=bias)
    hidden, labels, inputs = batch(head)
    wrapper = losses.ChunkedLossWrapper.Config(
        num_chunks=2, loss_fn=dapo.Config(ratio_clip_low=0.1, ratio_clip_high=0.3)
    )
    ours = SiriLoss.Config(ratio_clip_low=0.1, ratio_clip_high=0.3, tail=0.0)
    results = []
    for config in (wrapper, ours):
        loss_fn, own = config.build(), copy.deepcopy(head)
        assert isinstance(loss_fn, losses.ChunkedLossWrapper)  # what torchtitan's trainers ask
        loss_fn.set_lm_head(own)
        leaf = hidden.clone().requires_grad_()
        loss, metrics = loss_fn(leaf * 1.0, labels, count, **inputs)
        loss.backward()
        gradients = [leaf.grad, *(p.grad for p in own.parameters())]
        results.append((loss, gradients, metrics))
    (want, theirs, reported), (got, mine, metrics) = results
    torch.testing.assert_close(got, want)
    assert want.abs() > 1e-3
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert set(metrics) == set(reported) - {"bit_wise/ratio_tokens_different/mean"}
    for name in set(metrics) - {"loss/ratio_clipped_frac"}:
        want = pytest.approx(reported[name].item(), rel=1e-4, abs=1e-5)
        assert metrics[name].item() == want, name
    # torchtitan counts ratios past either bound, ours those where the clip is active.
    assert 0 < metrics["loss/ratio_clipped_frac"] <= reported["loss/ratio_clipped_frac"]


def test_no_logits(monkeypatch, dapo):
    """The head's own forward, which would make them, is never called."""
    head = torch.nn.Linear(WIDTH, VOCABULARY)
    hidden, labels, inputs = batch(head)
    loss_fn = SiriLoss.Config().build()
    loss_fn.set_lm_head(head)
    monkeypatch.setattr(torch.nn.functional, "linear", None)
    loss, _ = loss_fn(hidden.requires_grad_(), labels, 5.0, **inputs)
    loss.backward()
    assert head.weight.grad.abs().max() > 0


def sharded_worker(rank, folder):
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    wait = datetime.timedelta(minutes=10)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=wait)
    try:
        torch.manual_seed(0)
        alone = torch.nn.Linear(WIDTH, VOCABULARY)
        batches = [batch(alone) for _ in range(2)]
        head = copy.deepcopy(alone)
        fully_shard(head)

        def loss(own, which):
            loss_fn = SiriLoss.Config(tail=0.0).build()
            loss_fn.set_lm_head(own)
            hidden, labels, inputs = batches[which]
            return loss_fn(hidden.clone().requires_grad_(), labels, 20.0, **inputs)[0]

        loss(head, rank).backward()
        (sum(loss(alone, which) for which in range(2)) / 2).backward()
        for got, want in zip(head.parameters(), alone.parameters(), strict=True):
            assert got.to_local().numel() < want.numel()
            torch.testing.assert_close(got.grad.full_tensor(), want.grad, rtol=1e-5, atol=1e-6)
    finally:
        leave_process_group()


def test_a_head_sharded_by_fsdp2(tmp_path):
    """As torchtitan's ``parallelize_fn`` leaves it, before the trainer calls ``set_lm_head``."""
    two_processes(sharded_worker, tmp_path)


def test_refusals():
    with pytest.raises(RuntimeError, match="set_lm_head"):
        SiriLoss.Config().build()(None, None, generator_logprobs=None, advantages=None,
                                  loss_mask=None)  # fmt: skip
    with pytest.raises(ValueError, match="lm_head must have a weight.*Identity"):
        SiriLoss.Config().build().set_lm_head(torch.nn.Identity())


@pytest.mark.parametrize("options", [{}, {"screen": "int8", "logprob_tol": 1e-3}])
def test_a_screen_reaches_the_head(monkeypatch, options):
    import siri_kernels.integrations.torchtitan as module

    seen, exact = [], module.linear_logprob

    def watch(*tensors, screen, logprob_tol, **rest):
        seen.append((screen, logprob_tol))
        return exact(*tensors, **rest)

    monkeypatch.setattr(module, "linear_logprob", watch)
    head = torch.nn.Linear(WIDTH, VOCABULARY)
    hidden, labels, inputs = batch(head)
    loss_fn = SiriLoss.Config(**options).build()
    loss_fn.set_lm_head(head)
    loss_fn(hidden, labels, 5.0, **inputs)
    assert seen == [(options.get("screen"), options.get("logprob_tol", 1e-4))]
    with pytest.raises(ValueError, match="SiriLoss: screen must be None.*got 'int4'"):
        SiriLoss.Config(screen="int4").build()
