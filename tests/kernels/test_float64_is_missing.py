"""Devices without float64 (Apple's GPUs and others): the portable path runs there.

A CPU plays such a device: whatever makes a float64 tensor there fails.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from siri_kernels import group_advantages, policy_loss

from .test_default_dtype_and_device import CALLS, drawn


class NoFloat64(TorchDispatchMode):
    """What PyTorch does on such a device, whichever operator would make the tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else [out]
        if any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in made):
            raise TypeError(f"{func}: this device has no float64")
        return out


def without_doubles(calls, given):
    for made in calls(given, "portable"):
        yield [x.detach() for x in made]


def test_the_device_is_one():
    with NoFloat64(), pytest.raises(TypeError, match="no float64"):
        torch.ones(3).double()


@pytest.mark.parametrize("calls", [c for c in CALLS if c.__name__ != "advantage_calls"])
def test_portable_runs_forward_and_backward(calls):
    given = drawn(1)
    want = list(without_doubles(calls, given))
    with NoFloat64():
        got = list(without_doubles(calls, given))
    for a, b in zip(got, want, strict=True):
        assert len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.float16])
@pytest.mark.parametrize("level", [0, 1000, 2**40, -(2**61)])
def test_advantages_of_integers_keep_their_differences(dtype, level):
    if abs(level) > 2**31 and dtype != torch.int64:
        level = 3
    small = torch.randint(-9, 9, (24,))
    for groups in (4, torch.randint(0, 5, (24,))):
        for baseline in ("mean", "leave_one_out", "none"):
            for scale in ("group_std", "batch_std", "none"):
                options = {"baseline": baseline, "scale": scale}
                with NoFloat64():
                    got = group_advantages((small + level).to(dtype), groups, **options)
                # The level changes the mean alone, and next to it float64 is not exact either.
                want = group_advantages(small, groups, backend="reference", **options)
                torch.testing.assert_close(got.mean, want.mean + level)
                torch.testing.assert_close(got.std, want.std)
                assert torch.equal(got.degenerate, want.degenerate)
                if baseline == "none" and abs(level) > 2**40:
                    continue  # the reference's std is not exact either
                if baseline == "none":
                    want = group_advantages(small + level, groups, backend="reference", **options)
                torch.testing.assert_close(got.advantages, want.advantages, rtol=3e-6, atol=1e-6)


def test_sums_of_long_sequences_lose_nothing_without_float64():
    """One running sum of float32 over 50 000 tokens is off by 1e-4 and more."""
    lengths = torch.tensor([50_000, 3, 14_000, 0, 1])
    total, starts = int(lengths.sum()), torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    logprobs = -3 * torch.rand(total)
    old = logprobs + 0.01 * torch.randn(total) - 0.3
    advantages = torch.randn(5)
    out = {}
    for dtype in (torch.float32, torch.float64):
        given = [x.to(dtype) for x in (logprobs, old, advantages)]
        given[0] = given[0].requires_grad_()
        loss = policy_loss(*given, starts, ratio="sequence", aggregation="seq-mean-token-sum")
        (grad,) = torch.autograd.grad(loss.loss, given[0])
        out[dtype] = loss.loss.detach().double(), grad.double()
    for a, b in zip(out[torch.float32], out[torch.float64], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-9)
