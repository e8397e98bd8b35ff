"""Inputs and comparisons shared by the kernel tests."""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import os
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from siri_kernels.linear_logprob.portable import products

from .interpreter import INTERPRETED


def make_linear(tokens, width, vocabulary, dtype=torch.float64, peak=1.0):
    """Random inputs; ``peak`` pulls each row towards its target, so that some are nearly sure."""
    weight = torch.randn(vocabulary, width, dtype=torch.float64) / math.sqrt(width)
    targets = torch.randint(0, vocabulary, (tokens,))
    hidden = torch.randn(tokens, width, dtype=torch.float64)
    hidden = hidden + peak * torch.rand(tokens, 1, dtype=torch.float64) * weight[targets] * 5
    return hidden.to(dtype), weight.to(dtype), targets


def upstream(tokens):
    return torch.randn(tokens, dtype=torch.float64), torch.randn(tokens, dtype=torch.float64)


def eager_logprob(hidden, weight, targets, bias=None, temperature=1.0, softcap=None):
    """What a trainer writes without this library, in the dtype of its inputs; all rows count."""
    return eager_selective(
        torch.nn.functional.linear(hidden, weight, bias), targets, temperature, softcap
    )


def eager_selective(logits, targets, temperature=1.0, softcap=None):
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.to(logits.dtype)[..., None]
    log_softmax = torch.log_softmax(logits / temperature, -1)
    logprobs = log_softmax.gather(-1, targets[..., None])[..., 0]
    return logprobs, -(log_softmax.exp() * log_softmax).sum(-1)


def gradients(out, inputs, upstream):
    """Gradients of the sum of each output times its upstream gradient."""
    loss = sum((o * u.to(o.dtype)).sum() for o, u in zip(out, upstream, strict=True))
    return torch.autograd.grad(loss, inputs)


def error(got, exact):
    """Largest absolute error, and root of the mean square of it."""
    gap = got.double() - exact.double()
    return gap.abs().max().item(), gap.square().mean().sqrt().item()


def assert_no_worse(got, eager, exact, factor=2.0, floor=0.0):
    """flash-attention's rule: no more than ``factor`` times the error of eager PyTorch in the same
    dtype; ``floor`` is a few roundings, where eager happens to be exact."""
    assert got.shape == exact.shape
    for ours, theirs in zip(error(got, exact), error(eager, exact), strict=True):
        assert ours <= factor * theirs + floor, f"error {ours:.3g}, eager's {theirs:.3g}"


def products_of(library, monkeypatch):
    """Has "MKL" or "oneDNN" compute the float32 products, whatever the processor."""
    monkeypatch.setattr(products, "FORCED", library == "oneDNN")
    monkeypatch.setattr(products, "_onednn", functools.cache(products._onednn.__wrapped__))
    if library == "oneDNN" and products._onednn() is None:
        pytest.skip("this PyTorch has no oneDNN")


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


@contextlib.contextmanager
def unpoisoned():
    """Memory as users get it: the fill of a poisoned allocation is a kernel too, on a GPU."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill


def gpu_work(call, waits=False):
    """What ``call`` starts on the GPU: names of kernels, copies and fills.

    It must not wait, unless ``waits`` says that it reads a size on the host. Only the call itself
    is watched: the profiler waits for the GPU when it starts and ends.
    """
    from torch.profiler import ProfilerActivity, profile

    with unpoisoned(), profile(activities=[ProfilerActivity.CUDA]) as seen:
        torch.cuda.set_sync_debug_mode("default" if waits else "error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    return [e.name for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]


class NoHostRead(TorchDispatchMode):
    """Fails on every operation that would wait for a GPU."""

    waits = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "unique", "_unique2")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.waits, f"{name} waits for the GPU"
        return func(*args, **(kwargs or {}))


def two_processes(worker, *arguments):
    """Runs ``worker(rank, *arguments)`` in two processes; fails if one does.

    They are forked off a process that has imported what they need once, and nothing else.
    """
    imports = "tests.kernels.interpreter" if INTERPRETED else "tests.kernels.test_wrap"
    multiprocessing.set_forkserver_preload([imports])
    torch.multiprocessing.start_processes(worker, arguments, nprocs=2, start_method="forkserver")


def cpu_mesh():
    """The ranks of gloo's group: without one FSDP2 takes the GPU where there is one."""
    return torch.distributed.init_device_mesh("cpu", (torch.distributed.get_world_size(),))


def leave_process_group():
    """The end of a process of a test, in its ``finally``; without an error it ends at once, when
    the others are there too: they may still read what was sent.

    gloo's threads sometimes abort the process while the group is taken down ("terminate called
    without an active exception"), when everything has long been compared.
    """
    if sys.exc_info()[0] is None:
        dist = torch.distributed
        store, ranks = dist.distributed_c10d._get_default_store(), dist.get_world_size()
        store.set(f"leaves {dist.get_rank()}", "")
        store.wait([f"leaves {rank}" for rank in range(ranks)])
        os._exit(0)
    torch.distributed.destroy_process_group()
