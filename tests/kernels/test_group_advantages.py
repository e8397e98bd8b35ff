from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_kernels import group_advantages

from .helpers import NoHostRead

BACKENDS = ["reference", "portable"]
BASELINES = ["mean", "leave_one_out", "none"]
SCALES = ["group_std", "batch_std", "none"]
NAN = float("nan")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options, right, wrong",
    [
        ({}, 1.6202, -0.5401),
        ({"eps": 1e-4}, 1.6198, -0.5399),
        ({"correction": 0}, 1.7320, -0.5773),
        ({"baseline": "leave_one_out", "scale": "none"}, 0.8571, -0.2857),
        ({"scale": "none"}, 0.75, -0.25),
        ({"baseline": "none", "scale": "none"}, 1.0, 0.0),
        ({"scale": "batch_std"}, 1.6202, -0.5401),
    ],
)
@pytest.mark.parametrize("groups", [8, torch.full((8,), 5)])
def test_two_right_of_eight(backend, options, right, wrong, groups):
    rewards = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0])
    out = group_advantages(rewards, groups, backend=backend, **options)
    want = torch.tensor([right] * 2 + [wrong] * 6)
    torch.testing.assert_close(out.advantages, want, rtol=0, atol=6e-5)
    torch.testing.assert_close(out.mean, torch.tensor([0.25]))
    std = math.sqrt(0.1875 * 8 / (8 - options.get("correction", 1)))
    torch.testing.assert_close(out.std, torch.tensor([std]))
    assert out.degenerate.tolist() == [False]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("level", [0.0, 0.1, 1e4, -1e4 / 3, 1e15])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", SCALES)
def test_a_constant_group_gives_exact_zeros(backend, level, baseline, scale):
    rewards = torch.cat([torch.full((7,), level), torch.randn(7)])
    for groups in (7, torch.arange(14) // 7):
        out = group_advantages(rewards, groups, baseline=baseline, scale=scale, backend=backend)
        assert (out.advantages[:7] == 0).all() and (out.advantages[7:] != 0).all()
        assert out.std[0] == 0 and out.degenerate.tolist() == [True, False]
        torch.testing.assert_close(out.mean[0], torch.tensor(level))


def test_a_large_mean_costs_no_precision():
    small = torch.randint(0, 8, (64,)).float() / 8  # exact next to 1e4
    got = group_advantages(small + 1e4, 16)
    want = group_advantages(small, 16, backend="reference")
    torch.testing.assert_close(got.advantages, want.advantages, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.std, want.std, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_not_scored(backend):
    rewards = torch.tensor([1.0, NAN, 0.0, 0.0, NAN, NAN, NAN, 1.0])
    out = group_advantages(rewards, 4, backend=backend)
    alone = group_advantages(torch.tensor([1.0, 0.0, 0.0]), 3, backend=backend)
    torch.testing.assert_close(out.advantages[[0, 2, 3]], alone.advantages)
    assert out.advantages[1] == 0 and (out.advantages[4:] == 0).all()
    assert out.mean.tolist() == pytest.approx([1 / 3, 1.0])
    assert out.degenerate.tolist() == [False, True] and out.std[1] == 0
    nothing = group_advantages(torch.full((4,), NAN), 2, scale="batch_std", backend=backend)
    assert (nothing.advantages == 0).all() and nothing.degenerate.all()
    assert (nothing.mean == 0).all() and (nothing.std == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_group_of_one(backend):
    rewards = torch.tensor([3.0, -1.0, 2.0])
    ids = torch.tensor([4, 0, 9])
    for baseline in ("mean", "leave_one_out"):
        for scale in SCALES:
            options = {"baseline": baseline, "scale": scale, "backend": backend}
            out = group_advantages(rewards, ids, **options)
            assert (out.advantages == 0).all() and out.degenerate.all()
    # Without a baseline a reward stands for itself, but there is no std to measure it by.
    plain = group_advantages(rewards, ids, baseline="none", scale="none", backend=backend)
    assert torch.equal(plain.advantages, rewards)
    scaled = group_advantages(rewards, 1, baseline="none", backend=backend)
    assert (scaled.advantages == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_verls_group_of_one(backend):
    rewards = torch.tensor([3.0, 1.0, 0.0, NAN, 2.0])
    ids = torch.tensor([4, 0, 0, 9, 9])  # 9: one scored
    options = {"singleton": "verl", "backend": backend}
    alone = [0, 4]
    for baseline in BASELINES:
        for scale, divisor in (("group_std", 1 + 1e-6), ("none", 1.0)):
            got = group_advantages(rewards, ids, baseline=baseline, scale=scale, **options)
            torch.testing.assert_close(got.advantages[alone], rewards[alone] / divisor)
            want = group_advantages(rewards, ids, baseline=baseline, scale=scale, backend=backend)
            assert torch.equal(got.advantages[1:4], want.advantages[1:4])
            assert got.degenerate.tolist() == [False, True, True]
    batch = group_advantages(rewards, ids, scale="batch_std", **options)
    std = rewards[~rewards.isnan()].std()
    torch.testing.assert_close(batch.advantages[alone], rewards[alone] / (std + 1e-6))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_known_number_of_groups_needs_no_look_at_the_ids(monkeypatch, backend):
    from siri_kernels import _checks

    rewards, ids = torch.tensor([1.0, 0.0, 5.0, 0.0]), torch.tensor([3, 1, 1, 3])
    want = group_advantages(rewards, ids)
    if backend == "portable":
        monkeypatch.setattr(_checks, "may_read", lambda tensor: False)  # as on a GPU
        with NoHostRead():
            got = group_advantages(rewards, ids, num_groups=5, backend=backend)
    else:
        got = group_advantages(rewards, ids, num_groups=5, backend=backend)
    assert torch.equal(got.advantages, want.advantages)
    assert got.mean.tolist() == [0, 2.5, 0, 0.5, 0]
    assert got.degenerate.tolist() == [True, False, True, False, True]
    torch.testing.assert_close(got.std[[1, 3]], want.std)
    assert (got.std[[0, 2, 4]] == 0).all()


@pytest.mark.parametrize("size", [1, 4096])
def test_a_million_rewards(size):
    rewards = torch.rand(1 << 20)
    order = torch.randperm(1 << 20)
    want = group_advantages(rewards, size)
    ids = torch.arange(1 << 20) // size
    got = group_advantages(rewards[order], ids[order])
    torch.testing.assert_close(got.advantages, want.advantages[order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.std, want.std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_in_any_order_with_gaps(backend):
    rewards = torch.randn(40)
    ids = torch.tensor([7, 2, 900, 3])[torch.randint(0, 4, (40,))]
    out = group_advantages(rewards, ids, backend=backend)
    for place, group in enumerate(sorted(set(ids.tolist()))):
        members = ids == group
        mean, std = rewards[members].mean(), rewards[members].std()
        torch.testing.assert_close(out.mean[place], mean)
        torch.testing.assert_close(out.std[place], std)
        torch.testing.assert_close(out.advantages[members], (rewards[members] - mean) / std)


def test_int_groups_and_equal_ids_agree():
    rewards = torch.randn(60)
    by_size = group_advantages(rewards, 6)
    by_id = group_advantages(rewards, torch.arange(60) // 6)
    for a, b in zip(by_size, by_id, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64]
    + [torch.float16, torch.bfloat16, torch.float32, torch.float64],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rewards_of_any_dtype_give_float32(dtype, backend):
    rewards = torch.tensor([1, 0, 0, 1, 1, 0]).to(dtype)
    out = group_advantages(rewards, 3, backend=backend)
    assert [t.dtype for t in out] == [torch.float32] * 3 + [torch.bool]
    want = group_advantages(rewards.double(), 3, backend="reference")
    torch.testing.assert_close(out.advantages, want.advantages)


def test_integers_beyond_float32():
    rewards = torch.tensor([2**40, 2**40 + 1, 2**40, 2**40 + 1])
    out = group_advantages(rewards, 4)
    torch.testing.assert_close(out.advantages.abs(), torch.full((4,), math.sqrt(0.75)))


def test_no_gradient_flows_and_runs_repeat_bit_for_bit():
    rewards = torch.randn(1000, requires_grad=True)
    ids = torch.randint(0, 50, (1000,))
    first = group_advantages(rewards, ids)
    assert not first.advantages.requires_grad
    for _ in range(5):
        again = group_advantages(rewards, ids)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    baseline=st.sampled_from(BASELINES),
    scale=st.sampled_from(SCALES),
    kind=st.sampled_from(["binary", "normal", "far", "constant"]),
    unscored=st.sampled_from([0.0, 0.3, 1.0]),
    correction=st.integers(0, 1),
    eps=st.sampled_from([0.0, 1e-6, 1e-2]),
    singleton=st.sampled_from(["zero", "verl"]),
    num_groups=st.sampled_from([None, 99]),
    seed=st.integers(0, 2**31),
)
def test_portable_equals_reference(sizes, kind, unscored, num_groups, seed, **options):
    torch.manual_seed(seed)
    total = sum(sizes)
    ids = torch.repeat_interleave(torch.randperm(99)[: len(sizes)], torch.tensor(sizes))
    ids = ids[torch.randperm(total)]
    rewards = {
        "binary": torch.randint(0, 2, (total,)).double(),
        "normal": torch.randn(total).double(),
        "far": torch.randn(total).double() + 1e6,
        "constant": torch.full((total,), 0.1).double(),
    }[kind]
    rewards[torch.rand(total) < unscored] = NAN
    for groups in (ids, sizes[0] if total % sizes[0] == 0 else 1):
        want, got = (
            group_advantages(
                rewards,
                groups,
                num_groups=None if isinstance(groups, int) else num_groups,
                backend=backend,
                **options,
            )
            for backend in BACKENDS
        )
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)
        assert got.advantages.isfinite().all()
        assert torch.equal(got.advantages == 0, want.advantages == 0)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
def test_equal_groups_read_nothing_on_the_host(monkeypatch, baseline, scale):
    from siri_kernels import _checks

    monkeypatch.setattr(_checks, "may_read", lambda tensor: False)  # as on a GPU
    with NoHostRead():
        group_advantages(torch.tensor([1.0, NAN, 0.0, 1.0]), 2, baseline=baseline, scale=scale)


@pytest.mark.parametrize("backend", ["portable", "reference"])
@pytest.mark.parametrize("scale, share", [("group_std", 0.0), ("batch_std", None), ("none", 1.0)])
def test_without_a_baseline_one_answer_is_scaled_as_any_other(scale, share, backend):
    rewards, groups = torch.tensor([3.0, 1.0, 2.5]), torch.tensor([0, 1, 1])
    out = group_advantages(rewards, groups, baseline="none", scale=scale, eps=0.0, backend=backend)
    if share is None:
        share = 1 / rewards.std().item()
    torch.testing.assert_close(out.advantages[0], rewards[0] * share)
