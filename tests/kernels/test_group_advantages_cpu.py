"""The NumPy path of a CPU: right where it is taken, and not taken where it would not be."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_kernels import group_advantages
from siri_kernels.group_advantages import cpu
from siri_kernels.group_advantages.validate import checked_options

from .helpers import NoHostRead
from .test_group_advantages import BASELINES, NAN, SCALES

INF = float("inf")


def direct(rewards, groups, num_groups=None, **options):
    chosen = {
        "baseline": "mean",
        "scale": "group_std",
        "eps": 1e-6,
        "correction": 1,
        "singleton": "zero",
        **options,
    }
    return cpu.group_advantages(rewards, groups, num_groups, checked_options(**chosen))


@settings(max_examples=120, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    baseline=st.sampled_from(BASELINES),
    scale=st.sampled_from(SCALES),
    kind=st.sampled_from(["binary", "normal", "far", "constant", "half", "bytes"]),
    correction=st.integers(0, 1),
    eps=st.sampled_from([0.0, 1e-6, 1e-2]),
    singleton=st.sampled_from(["zero", "verl"]),
    num_groups=st.sampled_from([None, 99]),
    block=st.sampled_from([1, 7, 40, cpu.BLOCK]),
    seed=st.integers(0, 2**31),
)
def test_equals_the_reference(sizes, kind, num_groups, block, seed, **options):
    torch.manual_seed(seed)
    total = sum(sizes)
    ids = torch.repeat_interleave(torch.randperm(99)[: len(sizes)], torch.tensor(sizes))
    ids = ids[torch.randperm(total)]
    rewards = {
        "binary": torch.randint(0, 2, (total,)).float(),
        "normal": torch.randn(total),
        "far": torch.randn(total) + 1e5,
        "constant": torch.full((total,), 0.1),
        "half": torch.randn(total).to(torch.bfloat16),
        "bytes": torch.randint(0, 200, (total,), dtype=torch.uint8),
    }[kind]
    counts = ids.bincount()
    for groups in (ids, sizes[0] if total % sizes[0] == 0 else 1):
        by_id = isinstance(groups, torch.Tensor)
        more = {"num_groups": num_groups if by_id else None}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "BLOCK", block)
            got = direct(rewards, groups, **more, **options)
        alone = bool((counts == 1).any()) if by_id else groups == 1
        if alone and options["singleton"] == "verl":
            assert got is None
            continue
        want = group_advantages(rewards, groups, backend="reference", **more, **options)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        assert torch.equal(got[0] == 0, want.advantages == 0)


@pytest.mark.parametrize("level", [0.1, -1e4 / 3, 1e15, 2.0**-130])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", SCALES)
def test_a_constant_group_gives_exact_zeros(level, baseline, scale):
    size = int(torch.randint(2, 3000, ()))
    rewards = torch.cat([torch.full((size,), level), torch.randn(size)])
    for eps in (0.0, 1e-6):
        for groups in (size, torch.arange(2 * size) // size):
            out = direct(rewards, groups, baseline=baseline, scale=scale, eps=eps)
            assert (out[0][:size] == 0).all() and (out[0][size:] != 0).any()
            assert out[2][0] == 0 and out[3].tolist() == [True, False]
            assert out[1][0] == torch.tensor(level)
    constant = direct(rewards[:size], size, baseline=baseline, scale=scale, eps=0.0)
    assert (constant[0] == 0).all()


def test_the_error_is_below_that_of_eager():
    groups, size = int(torch.randint(1, 5000, ())), int(torch.randint(2, 70, ()))
    rewards = torch.randn(groups * size) + 3

    def eager(r):
        rows = r.view(-1, size)
        spread = rows.std(1, keepdim=True) + 1e-6
        return ((rows - rows.mean(1, keepdim=True)) / spread).flatten()

    want = eager(rewards.double())
    order = torch.randperm(len(rewards))
    by_size = direct(rewards, size)[0]
    by_id = direct(rewards[order], (torch.arange(len(rewards)) // size)[order])[0]
    allowed = (eager(rewards) - want).norm()
    assert (by_size - want).norm() <= allowed
    assert (by_id - want[order]).norm() <= allowed


def test_ids_that_are_rows_are_taken_for_rows_and_no_others():
    size, groups = int(torch.randint(2, 9, ())), int(torch.randint(4, 9, ()))
    rewards = torch.randn(size * groups)
    rows = torch.arange(size * groups) // size
    swapped = rows.clone()
    place = int(torch.randint(2, groups - 1, ())) * size  # not in the first or the last group
    swapped[[place - 1, place]] = rows[[place, place - 1]]
    for ids, count in ((rows, None), (rows, groups), (rows, groups + 1), (swapped, None)):
        got = direct(rewards, ids, num_groups=count)
        want = group_advantages(rewards, ids, num_groups=count, backend="reference")
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)
    assert cpu._consecutive(rows.numpy(), None) == cpu._consecutive(rows.numpy(), groups) == size
    for ids, count in ((rows, groups + 1), (swapped, None), (rows + 1, None), (-rows, None)):
        assert cpu._consecutive(ids.numpy(), count) == 0
    assert all(map(torch.equal, direct(rewards, rows), direct(rewards, size)))


def test_what_is_unusual_is_left_to_others(monkeypatch):
    rewards = torch.rand(12)
    ids = torch.arange(12) // 3
    assert direct(rewards, 3) is not None and direct(rewards, ids) is not None
    for value in (NAN, INF, -INF, 1e37):
        spoilt = rewards.clone()
        spoilt[int(torch.randint(12, ()))] = value
        assert direct(spoilt, 3) is None and direct(spoilt, ids) is None
    for dtype in (torch.float64, torch.int64, torch.int32):
        assert direct(rewards.to(dtype), 3) is None
    for wrong in (ids - 1, ids + 2**40):
        assert direct(rewards, wrong) is None
    assert direct(rewards, ids, num_groups=3) is None
    assert direct(rewards, ids, num_groups=2**31 - 1) is None
    with NoHostRead():  # under a mode operators are to be seen
        assert direct(rewards, 3) is None
    assert direct(torch._neg_view(rewards), 3) is None
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    assert direct(rewards, 3) is None


def test_what_is_left_is_refused_as_ever():
    rewards, ids = torch.rand(6), torch.tensor([0, 0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match="got an infinity"):
        group_advantages(torch.tensor([1.0, -INF, INF, 0.0]), 2)
    with pytest.raises(ValueError, match="groups must hold ids >= 0; got -1"):
        group_advantages(rewards, ids - 1)
    with pytest.raises(ValueError, match="larger than every id; got 1"):
        group_advantages(rewards, ids, num_groups=1)


@pytest.mark.parametrize("value", [NAN, INF, 3e38, "tiny"])
def test_numpys_settings_and_warnings_stay_out(value):
    """The user's own arithmetic may be strict."""
    rewards = torch.rand(8)
    if value == "tiny":
        rewards *= 1e-40
    else:
        rewards[int(torch.randint(8, ()))] = value
    options = {"scale": "none", "baseline": "leave_one_out"}
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for groups in (4, torch.arange(8) // 4):
            if value == INF:
                with pytest.raises(ValueError, match="infinity"):
                    group_advantages(rewards, groups, **options)
                continue
            got = group_advantages(rewards, groups, **options)
            want = group_advantages(rewards, groups, backend="reference", **options)
            torch.testing.assert_close(got.advantages, want.advantages)


def test_the_given_rewards_and_their_layout():
    base = torch.randn(60, requires_grad=True)
    for rewards in (base, base[::2], base[:1].expand(30), base.flip(0)):
        before = rewards.detach().clone()
        for groups in (5, torch.arange(len(rewards)) // 5):
            got = direct(rewards, groups)
            want = group_advantages(before.double(), groups, backend="reference")
            assert not any(t.requires_grad for t in got)
            torch.testing.assert_close(got[0], want.advantages)
        assert torch.equal(rewards, before)
