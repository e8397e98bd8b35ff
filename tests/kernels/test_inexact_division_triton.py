"""What is promised to be exact, on a GPU's division: within 2 units in the last place, no better.

In the interpreter ``/`` is replaced by one that is wrong by as much as PTX allows (div.full.f32),
each way; ``tl.div_rn`` and float64 are rounded as IEEE says, there and here.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from siri_kernels import group_advantages, policy_loss

from .interpreter import INTERPRETED, direct
from .test_group_advantages import SCALES
from .test_policy_loss_triton import OBJECTIVES, assert_right, make, small_slots  # noqa: F401

pytestmark = [
    direct,
    pytest.mark.skipif(not INTERPRETED, reason="a GPU has its own division"),
]
UNITS = (-2, -1, 1, 2)


def off(exact, units):
    """``exact`` and so many units in the last place, where it is float32, finite and not 0."""
    if exact.dtype != np.float32:
        return exact
    wrong = exact
    for _ in range(abs(units)):
        wrong = np.nextafter(wrong, np.float32(np.inf * units))
    return np.where((exact == 0) | ~np.isfinite(exact), exact, wrong).astype(np.float32)


@pytest.fixture(params=UNITS)
def wrong_by(request, monkeypatch):
    """Every float32 quotient but 0 and those that are not finite is off by so many units."""
    from triton.runtime.interpreter import InterpreterBuilder

    def divide(self, lhs, rhs):
        return self.binary_op(lhs, rhs, lambda a, b: off(np.divide(a, b), request.param))

    monkeypatch.setattr(InterpreterBuilder, "create_fdiv", divide)
    if hasattr(InterpreterBuilder, "create_approx_divf"):
        monkeypatch.setattr(InterpreterBuilder, "create_approx_divf", divide)
    return request.param


@pytest.fixture
def wrong_exponentials(wrong_by, monkeypatch):
    """And every exponential but that of 0, as ex2.approx.f32 is."""
    from triton.runtime.interpreter import InterpreterBuilder

    def wrong(function):
        def one(x):
            exact = function(x)
            return np.where(x == 0, exact, off(exact, wrong_by)).astype(exact.dtype)

        return lambda self, argument: self.unary_op(argument, one)

    monkeypatch.setattr(InterpreterBuilder, "create_exp", wrong(np.exp))
    monkeypatch.setattr(InterpreterBuilder, "create_exp2", wrong(np.exp2))


def ids_of(groups, size):
    return torch.arange(groups * size) // size


@pytest.mark.draw(3)
@pytest.mark.parametrize("level", [0.1, -1e4 / 3, 7.0])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out", "none"])
def test_a_constant_batch_has_a_batch_std_of_exactly_0(wrong_by, level, baseline, monkeypatch):
    from siri_kernels.group_advantages import triton_kernels as kernels

    monkeypatch.setattr(kernels, "PARTIALS", 4)  # several tiles a program
    monkeypatch.setattr(kernels, "SCAN_LIMIT", 600)  # the interpreter compares pairs for minutes
    for groups, size in ((1, 1), (3, 5), (300, 16)):
        rewards = torch.full((groups * size,), level)
        ways = [{"groups": size}, {"groups": ids_of(groups, size)}]
        if groups < 100:
            ways.append({"groups": ids_of(groups, size), "num_groups": groups + 2})
        for way in ways:
            out = group_advantages(
                rewards, **way, baseline=baseline, scale="batch_std", backend="triton"
            )
            assert (out.advantages == 0).all()
            assert (out.std == 0).all() and out.degenerate.all()
            assert (out.mean[:groups] == torch.tensor(level)).all()


@pytest.mark.parametrize("scale", SCALES)
def test_a_reward_that_is_its_groups_mean_has_advantage_0(wrong_by, scale):
    rewards = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    for groups in (7, torch.arange(14) // 7):
        out = group_advantages(rewards, groups, scale=scale, backend="triton")
        zero = (out.advantages == 0).tolist()
        assert [i for i, z in enumerate(zero) if z][0] == 3 and out.mean[0] == 3
        if scale != "batch_std":
            assert all(zero[7:])


@pytest.mark.draw(8)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_the_tolerance_of_the_other_tests_holds(wrong_by, scale, baseline):
    """Two quotients an advantage, of 2 units of 1.2e-7 each, and the rounding of sums."""
    rewards = torch.randn(96)
    options = {"scale": scale, "baseline": baseline}
    want = group_advantages(rewards, 8, backend="reference", **options)
    for groups in (8, torch.arange(96) // 8):
        got = group_advantages(rewards, groups, backend="triton", **options)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=4e-6, atol=2e-6)


def test_the_ratio_of_an_unchanged_policy_is_exactly_1(wrong_by):
    logprobs = -torch.rand(77)
    cu_seqlens = torch.tensor([0, 20, 20, 77], dtype=torch.int32)
    for ratio in ("token", "sequence"):
        out = policy_loss(
            logprobs, logprobs, torch.ones(3), cu_seqlens, ratio=ratio, backend="triton"
        )
        metrics = {name: float(value) for name, value in out.metrics.items()}
        assert metrics["ratio_mean"] == metrics["ratio_max"] == 1 and metrics["tokens"] == 77
        assert metrics["approx_kl"] == metrics["clip_frac_low"] == metrics["clip_frac_high"] == 0
        assert float(out.loss) == -1


@pytest.mark.draw(4)
@pytest.mark.usefixtures("small_slots", "wrong_exponentials")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_tolerance_of_the_losses_tests_holds(name):
    """1e-4 of loss and gradient: a few quotients and exponentials of 2 units of 1.2e-7 each."""
    batch = make([20, 0, 33, 1], torch.float32)
    more = {"rollout_correction": "tis", "kl_coef": 0.1}
    assert_right(
        batch, ratio="sequence", aggregation="seq-mean-token-mean", **more, **OBJECTIVES[name]
    )
