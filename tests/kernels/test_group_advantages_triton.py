"""The Triton kernels of grouped advantages: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_kernels import group_advantages

from .helpers import gpu_work
from .interpreter import DEVICE, direct
from .test_group_advantages import BASELINES, NAN, SCALES

pytestmark = direct


def assert_right(rewards, groups, **options):
    on_device = groups.to(DEVICE) if isinstance(groups, torch.Tensor) else groups
    got = group_advantages(rewards.to(DEVICE), on_device, backend="triton", **options)
    want = group_advantages(rewards, groups, backend="reference", **options)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.cpu(), b, rtol=4e-6, atol=2e-6)
    assert torch.equal(got.advantages.cpu() == 0, want.advantages == 0)


@pytest.mark.draw(9)
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("singleton", ["zero", "verl"])
def test_options(baseline, scale, singleton):
    rewards = torch.randn(48)
    rewards[::7] = NAN
    ids = torch.cat([torch.randint(0, 9, (40,)), torch.arange(100, 108)])
    for groups in (1, 16, ids):
        options = {"baseline": baseline, "scale": scale, "singleton": singleton}
        assert_right(rewards, groups, **options)


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
    + [torch.float16, torch.bfloat16, torch.float32, torch.float64],
)
def test_dtypes(dtype):
    rewards = torch.tensor([1, 0, 0, 1, 1, 0, 1, 1]).to(dtype)
    assert_right(rewards, 4, scale="batch_std")


@pytest.mark.parametrize("level", [0.1, 1e4, -1e4 / 3])
@pytest.mark.parametrize("scale", ["group_std", "batch_std"])
def test_a_constant_group_gives_exact_zeros(level, scale):
    rewards = torch.cat([torch.full((35,), level), torch.randn(7)]).to(DEVICE)
    for groups in (7, (torch.arange(42) // 7).to(DEVICE)):
        out = group_advantages(rewards, groups, scale=scale, backend="triton")
        assert (out.advantages[:35] == 0).all() and (out.advantages[35:] != 0).all()
        assert (out.std[:5] == 0).all() and out.degenerate.tolist() == [True] * 5 + [False]
    nothing = group_advantages(
        rewards[:35], 7, scale="batch_std", baseline="none", backend="triton"
    )
    assert (nothing.advantages == 0).all(), "no std to divide by"


@pytest.mark.parametrize("scale", SCALES)
def test_a_large_mean_costs_no_precision(scale):
    small = torch.randint(0, 8, (64,)).float() / 8  # exact next to 1e4
    got = group_advantages((small + 1e4).to(DEVICE), 16, scale=scale, backend="triton")
    want = group_advantages(small, 16, scale=scale, backend="reference")
    torch.testing.assert_close(got.advantages.cpu(), want.advantages, rtol=1e-5, atol=1e-5)
    large = torch.tensor([2**40, 2**40 + 1, 2**40, 2**40 + 1]).to(DEVICE)
    assert_right(large.cpu(), 4, scale=scale)


@pytest.mark.parametrize("groups", [8, 5000, "ids"])
def test_a_large_mean_costs_the_batchs_std_no_precision(groups):
    """Means of groups that differ by less than float32 can say at their level."""
    rewards = 1000 + 1e-3 * torch.randn(5000 if groups == 5000 else 256)
    options = {"scale": "batch_std"}
    if groups == "ids":
        groups, options["num_groups"] = torch.arange(len(rewards)) // 8, 32
    want = group_advantages(rewards, groups, backend="reference", **options)
    groups = groups.to(DEVICE) if isinstance(groups, torch.Tensor) else groups
    got = group_advantages(rewards.to(DEVICE), groups, backend="triton", **options)
    torch.testing.assert_close(got.advantages.cpu(), want.advantages, rtol=1e-5, atol=1e-5)


def test_nothing_scored():
    for scale in SCALES:
        assert_right(torch.full((6,), NAN), 3, scale=scale)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("limit", [0, 1000])
def test_known_groups_with_and_without_a_sort(monkeypatch, scale, limit):
    from siri_kernels.group_advantages import triton_kernels as kernels

    monkeypatch.setattr(kernels, "SCAN_LIMIT", limit)
    rewards, ids = torch.randn(150) + 3, torch.randint(0, 40, (150,))
    rewards[::9] = NAN
    for num_groups in (40, 75):
        assert_right(rewards, ids, scale=scale, singleton="verl", num_groups=num_groups)


@pytest.mark.draw(3)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("on_host", [False, True])
def test_ids_whose_number_of_groups_is_not_known(monkeypatch, scale, on_host):
    from siri_kernels.group_advantages import triton

    monkeypatch.setattr(triton, "_on_host", lambda ids: on_host)
    total = int(torch.randint(1, 200, ()))
    known = torch.tensor([0, 1, 7, 2**31 + 1, 2**62])
    ids = known[torch.randint(0, len(known), (total,))]
    rewards = torch.randn(total) + 3
    rewards[ids == known[int(torch.randint(0, 5, ()))]] = NAN
    assert_right(rewards, ids, scale=scale)
    assert_right(rewards, torch.randperm(total) // 3 * 5, scale=scale, singleton="verl")


@pytest.mark.parametrize("scale", SCALES)
def test_groups_wider_than_a_tile_and_many_of_them(monkeypatch, scale):
    from siri_kernels.group_advantages import triton_kernels as kernels

    monkeypatch.setattr(kernels, "COLUMNS", 16)
    monkeypatch.setattr(kernels, "TILE", 64)
    monkeypatch.setattr(kernels, "PARTIALS", 4)
    rewards = torch.randn(120) + 3
    ids = torch.randint(0, 5, (120,)) * torch.randint(0, 2, (120,)) + torch.arange(120) // 50
    for groups in (40, 2, ids, torch.arange(120).flip(0)):
        assert_right(rewards, groups, scale=scale)


@pytest.mark.parametrize("examples", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_equals_reference(examples):
    @settings(max_examples=examples, deadline=None)
    @given(
        sizes=st.lists(st.integers(1, 40), min_size=1, max_size=9),
        baseline=st.sampled_from(BASELINES),
        scale=st.sampled_from(SCALES),
        kind=st.sampled_from(["binary", "normal", "constant"]),
        unscored=st.sampled_from([0.0, 0.3, 1.0]),
        correction=st.integers(0, 1),
        eps=st.sampled_from([1e-6, 1e-2]),
        singleton=st.sampled_from(["zero", "verl"]),
        num_groups=st.sampled_from([None, 99]),
        seed=st.integers(0, 2**31),
    )
    def run(sizes, kind, unscored, num_groups, seed, **options):
        torch.manual_seed(seed)
        total = sum(sizes)
        ids = torch.repeat_interleave(torch.randperm(99)[: len(sizes)], torch.tensor(sizes))
        ids = ids[torch.randperm(total)]
        rewards = {
            "binary": torch.randint(0, 2, (total,)).float(),
            "normal": torch.randn(total),
            "constant": torch.full((total,), 0.1),
        }[kind]
        rewards[torch.rand(total) < unscored] = NAN
        assert_right(rewards, ids, num_groups=num_groups, **options)
        assert_right(rewards, sizes[0] if total % sizes[0] == 0 else total, **options)

    run()


def test_runs_repeat_bit_for_bit():
    rewards, ids = torch.randn(500).to(DEVICE), torch.randint(0, 20, (500,)).to(DEVICE)
    first = group_advantages(rewards, ids, scale="batch_std", backend="triton")
    for _ in range(2):
        again = group_advantages(rewards, ids, scale="batch_std", backend="triton")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("scale, launches", [("group_std", 1), ("batch_std", 2)])
@pytest.mark.parametrize("by_id", [False, True])
def test_launches_and_waits_on_a_gpu(scale, launches, by_id):
    rewards = torch.randn(1 << 14 if by_id else 1 << 20, device="cuda")
    groups, options = 16, {"scale": scale, "backend": "triton"}
    if by_id:
        groups = torch.randint(0, 1024, rewards.shape, device="cuda")
        options["num_groups"] = 1024
    group_advantages(rewards, groups, **options)
    names = gpu_work(lambda: group_advantages(rewards, groups, **options))
    assert len(names) == launches, names
    if by_id:  # two more to find the number of groups, which is copied to the host
        del options["num_groups"]
        names = gpu_work(lambda: group_advantages(rewards, groups, **options), waits=True)
        assert launches + 2 <= len(names) <= launches + 3, names
