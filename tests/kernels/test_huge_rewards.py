"""Rewards of any finite size and at any level: squares neither overflow nor lose their digits."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_kernels import group_advantages

from .interpreter import DEVICE
from .test_group_advantages import BASELINES, NAN, SCALES


def exact(rewards, ids, baseline, scale, correction, eps=1e-6):
    """In float64, of rewards divided by their largest size first: nothing overflows."""
    r = rewards.double()
    size = r.nan_to_num(0.0).abs().max().clamp(min=1.0)
    r, eps = r / size, eps / size
    out = torch.zeros_like(r)
    scored = ~r.isnan()
    batch = r[scored].std(correction=correction)
    for group in ids.unique():
        members = ((ids == group) & scored).nonzero()[:, 0]
        x = r[members]
        constant = len(x) < 2 or bool((x == x[0]).all())
        std = torch.zeros(()).double() if constant else x.std(correction=correction)
        if baseline == "none":
            a = x
        elif constant:
            a = torch.zeros_like(x)
        else:
            a = x - x.mean()
            a = a * len(x) / (len(x) - 1) if baseline == "leave_one_out" else a
        if scale == "none":
            a = a * size
        else:
            by = std if scale == "group_std" else batch
            a = a / (by + eps) if by > 0 else torch.zeros_like(a)
        out[members] = a
    return out


def check(exponent, dtype, backend, seed, offset=0.0, few=False):
    """Groups of huge rewards beside constant, small and unscored ones."""
    torch.manual_seed(seed)
    rewards = (2 * torch.rand(32, dtype=torch.float64) - 1) * 10.0**exponent + offset
    rewards[8:12] = rewards[8]
    rewards[12:16] = rewards[0]
    rewards[3] = NAN
    if exponent >= 0:
        rewards[20:] = torch.rand(12, dtype=torch.float64)
    if dtype == torch.float32:
        rewards = rewards.clamp(-3e38, 3e38)
    rewards = rewards.to(dtype)
    ids = torch.randint(0, 6, (32,))
    ways = [(4, torch.arange(32) // 4, {}), (ids, ids, {}), (ids, ids, {"num_groups": 6})]
    cases = list(itertools.product(ways, BASELINES, SCALES, (0, 1)))
    for (groups, of, more), baseline, scale, correction in cases[seed % 5 :: 5] if few else cases:
        on_device = groups if isinstance(groups, int) else groups.to(DEVICE)
        options = {"baseline": baseline, "scale": scale, "correction": correction}
        got = group_advantages(rewards.to(DEVICE), on_device, backend=backend, **options, **more)
        want = exact(rewards, of, baseline, scale, correction)
        assert got.mean.isfinite().all()
        ours = got.advantages.cpu().double()
        fits = want.abs() <= torch.finfo(torch.float32).max
        assert fits.all() or scale == "none"
        gap = (ours - want).abs()[fits]
        assert bool((gap <= 4e-6 * want[fits].abs().max() + 1e-30).all()), (options, more, of)


@pytest.mark.parametrize("backend", ["portable", "reference"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    exponent=st.integers(17, 38),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
def test_huge_rewards(backend, exponent, dtype, seed):
    check(exponent, dtype, backend, seed, few=True)


@pytest.mark.parametrize("backend", ["portable", "reference"])
@pytest.mark.parametrize("exponent", [100, 160, 307])
def test_huge_rewards_of_float64(backend, exponent):
    """Means and unscaled advantages do not fit float32, the results' dtype; scaled ones do."""
    rewards = torch.tensor([1.0, -1.0, 0.5, 0.25] * 2, dtype=torch.float64) * 10.0**exponent
    want = group_advantages(rewards / 10.0**exponent, 4, backend=backend, eps=0.0)
    got = group_advantages(rewards, 4, backend=backend, eps=0.0)
    torch.testing.assert_close(got.advantages, want.advantages)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    offset=st.floats(-1e5, 1e5),
    spread=st.integers(-4, 0),
    seed=st.integers(0, 10**6),
)
def test_offsets_of_rewards(offset, spread, seed):
    """What all rewards have in common costs no digit of a std, the batch's included."""
    check(spread, torch.float64, "portable", seed, offset=offset, few=True)
