"""Bad input is refused with the argument's name, what it got and what it takes."""

from __future__ import annotations

import pytest
import torch

import siri_kernels
from siri_kernels import group_advantages, linear_logprob, policy_loss, selective_logprob

NAN, INF = float("nan"), float("inf")


def linear(**changes):
    arguments = {
        "hidden": torch.randn(4, 3),
        "weight": torch.randn(7, 3),
        "targets": torch.tensor([0, 6, -100, 2]),
        **changes,
    }
    return linear_logprob(
        arguments.pop("hidden"), arguments.pop("weight"), arguments.pop("targets"), **arguments
    )


def selective(**changes):
    arguments = {"logits": torch.randn(4, 7), "targets": torch.tensor([0, 6, -100, 2]), **changes}
    return selective_logprob(arguments.pop("logits"), arguments.pop("targets"), **arguments)


def grouped(**changes):
    arguments = {"rewards": torch.randn(6), "groups": 3, **changes}
    return group_advantages(arguments.pop("rewards"), arguments.pop("groups"), **arguments)


def policy(**changes):
    arguments = {
        "logprobs": torch.randn(5),
        "old_logprobs": torch.randn(5),
        "advantages": torch.randn(2),
        "cu_seqlens": torch.tensor([0, 2, 5], dtype=torch.int32),
        **changes,
    }
    return policy_loss(**arguments)


def test_the_calls_below_are_right_but_for_their_change():
    for call in (linear, selective, grouped, policy):
        for backend in (None, "portable", "reference"):
            call(backend=backend)


META = torch.device("meta")
CASES = [
    # hidden, weight, targets, bias
    (linear, {"hidden": [[1.0]]}, TypeError, "hidden must be a torch.Tensor, got list"),
    (linear, {"hidden": torch.ones(4, 3, dtype=torch.int64)}, TypeError, "hidden must have dtype"),
    (linear, {"hidden": torch.randn(4, 2)}, ValueError, r"hidden .* D = 3.*got \[4, 2\] float32"),
    (linear, {"hidden": torch.tensor(1.0)}, ValueError, "hidden must have shape"),
    (linear, {"hidden": torch.randn(4, 3).bfloat16()}, TypeError, "weight must have the dtype of"),
    (linear, {"weight": torch.randn(3)}, ValueError, r"weight must have shape \[V, D\]"),
    (linear, {"weight": torch.randn(0, 3)}, ValueError, "V, D >= 1"),
    (linear, {"weight": torch.randn(7, 3, device=META)}, ValueError, "weight must be on the dev"),
    (linear, {"targets": torch.tensor([0, 1])}, ValueError, r"targets .*\[4\]; got \[2\] int64"),
    (linear, {"targets": torch.tensor([0] * 4).int()}, TypeError, "targets must have dtype int64"),
    (linear, {"targets": torch.tensor([0, 7, 1, 2])}, ValueError, r"0..6 or be .* -100; got 7"),
    (linear, {"targets": torch.tensor([0, -1, 1, 2])}, ValueError, r"got -1 \(1 out of range\)"),
    (linear, {"ignore_index": -1}, ValueError, "ignore_index = -1; got -100"),
    (linear, {"ignore_index": 1.5}, TypeError, "ignore_index must be an int; got 1.5"),
    (linear, {"bias": torch.randn(3)}, ValueError, r"bias must have shape \[V\] = \[7\]"),
    (linear, {"bias": torch.ones(7).long()}, TypeError, "bias must have dtype"),
    # temperature, softcap, tail
    (linear, {"temperature": 0.0}, ValueError, "temperature must be a finite number > 0; got 0.0"),
    (linear, {"temperature": NAN}, ValueError, "temperature .* got nan"),
    (linear, {"temperature": "1"}, TypeError, "temperature must be .* got '1' .str."),
    (linear, {"temperature": torch.ones(3)}, ValueError, "temperature must have shape"),
    (linear, {"temperature": torch.tensor([1, 1, NAN, 1])}, ValueError, "temperature must hold"),
    (linear, {"temperature": torch.tensor([1, 0.0, 1, 1])}, ValueError, "temperature must hold"),
    (linear, {"temperature": torch.ones(4, requires_grad=True)}, ValueError, "gets no gradient"),
    (linear, {"softcap": -1.0}, ValueError, "softcap must be a finite number > 0; got -1.0"),
    (linear, {"softcap": INF}, ValueError, "softcap .* got inf"),
    (linear, {"tail": -0.1}, ValueError, "tail must be a finite number >= 0; got -0.1"),
    (linear, {"tail": NAN}, ValueError, "tail .* got nan"),
    (linear, {"tail": None}, TypeError, "tail must be"),
    (linear, {"process_group": "world"}, TypeError, "process_group must be None or .*'world'"),
    # selective_logprob
    (selective, {"logits": None}, TypeError, "logits must be a torch.Tensor, got NoneType"),
    (selective, {"logits": torch.ones(4, 7).long()}, TypeError, "logits must have dtype"),
    (selective, {"logits": torch.randn(4, 0)}, ValueError, "V >= 1"),
    (selective, {"targets": torch.tensor([1])}, ValueError, "targets must have shape"),
    (selective, {"targets": torch.tensor([0, 7, 0, 0])}, ValueError, "selective_logprob.*got 7"),
    (selective, {"temperature": -1}, ValueError, "temperature must be a finite number > 0; got -1"),
    # group_advantages
    (grouped, {"rewards": [1.0]}, TypeError, "rewards must be a torch.Tensor, got list"),
    (grouped, {"rewards": torch.randn(0)}, ValueError, "rewards must have .* B >= 1"),
    (grouped, {"rewards": torch.randn(2, 3)}, ValueError, r"rewards must have shape \[B\]"),
    (grouped, {"rewards": torch.ones(6) + 1j}, TypeError, "rewards must have dtype"),
    (grouped, {"rewards": torch.tensor([INF] * 6)}, ValueError, "rewards must be finite or NaN"),
    (grouped, {"groups": 4}, ValueError, "divide the number of rewards, 6; got 4"),
    (grouped, {"groups": 0}, ValueError, "groups as an int must be >= 1 .* got 0"),
    (grouped, {"groups": 2.0}, TypeError, "groups must be an int or a .* got float"),
    (grouped, {"groups": torch.zeros(5).long()}, ValueError, "groups must have shape"),
    (grouped, {"groups": torch.zeros(6)}, TypeError, "groups must have dtype int64"),
    (grouped, {"groups": torch.tensor([0, 1, -2, 0, 1, 1])}, ValueError, "ids >= 0; got -2"),
    (grouped, {"baseline": "median"}, ValueError, "baseline must be one of 'mean'.*got 'median'"),
    (grouped, {"scale": None}, ValueError, "scale must be one of 'group_std'"),
    (grouped, {"eps": -1e-6}, ValueError, "eps must be a finite number >= 0"),
    (grouped, {"eps": NAN}, ValueError, "eps .* got nan"),
    (grouped, {"correction": 2}, ValueError, "correction must be 0 or 1; got 2"),
    (grouped, {"singleton": "one"}, ValueError, "singleton must be one of 'zero', 'verl'"),
    (grouped, {"num_groups": 2}, ValueError, "num_groups is for groups given as ids; got 2"),
    (
        grouped,
        {"groups": torch.tensor([0, 1, 2, 0, 1, 1]), "num_groups": 2},
        ValueError,
        "num_groups must be >= 1 and larger than every id; got 2",
    ),
    (grouped, {"groups": torch.zeros(6).long(), "num_groups": 2.0}, TypeError, "num_groups must"),
    # policy_loss
    (policy, {"logprobs": torch.randn(5, 1)}, ValueError, r"logprobs must have shape \[T\]"),
    (policy, {"logprobs": torch.ones(5).long()}, TypeError, "logprobs must have dtype"),
    (policy, {"old_logprobs": None}, TypeError, "old_logprobs must be a torch.Tensor"),
    (policy, {"old_logprobs": torch.randn(4)}, ValueError, "old_logprobs must have shape"),
    (
        policy,
        {"advantages": torch.randn(3)},
        ValueError,
        r"\[B\] = \[2\] or \[T\] = \[5\]; got \[3",
    ),
    (policy, {"advantages": torch.ones(2).long()}, TypeError, "advantages must have dtype"),
    (
        policy,
        {"cu_seqlens": torch.tensor([0, 2, 4], dtype=torch.int32)},
        ValueError,
        "policy_loss: cu_seqlens must end at .* 5; got 4",
    ),
    (
        policy,
        {"cu_seqlens": torch.tensor([0, 2, 5])},
        TypeError,
        "cu_seqlens must have dtype int32",
    ),
    (policy, {"mask": torch.ones(5)}, TypeError, "mask must have dtype bool"),
    (policy, {"mask": torch.ones(4).bool()}, ValueError, "mask must have shape"),
    (policy, {"ref_logprobs": torch.randn(6)}, ValueError, "ref_logprobs must have shape"),
    (policy, {"rollout_logprobs": torch.randn(6)}, ValueError, "rollout_logprobs must have shape"),
    (policy, {"entropy": torch.randn(6)}, ValueError, "entropy must have shape"),
    (policy, {"entropy": torch.randn(5, device=META)}, ValueError, "entropy must be on the device"),
    (policy, {"objective": "ppo"}, ValueError, "objective must be one of 'clip'.*got 'ppo'"),
    (policy, {"rollout_correction": 2.0}, TypeError, "rollout_correction must be .* got float"),
    (policy, {"rollout_correction": "is"}, ValueError, "one of 'tis', 'mis', 'icepop'; got 'is'"),
    (policy, {"rollout_correction": "tis"}, ValueError, "rollout_logprobs must be given with"),
    (policy, {"delta": 1.2}, ValueError, "delta must be a finite number >= 1.28; got 1.2"),
    (policy, {"delta": 4.0, "dual_clip": 3.0}, ValueError, "delta and dual_clip cap the same"),
    (policy, {"cispo_bounds": "liger"}, ValueError, "cispo_bounds must be one of 'verl', 'trl'"),
    (policy, {"sapo_tau": 1.0}, TypeError, "sapo_tau must be two numbers"),
    (policy, {"sapo_tau": (1.0, 0.0)}, ValueError, "sapo_tau must be a finite number > 0"),
    (policy, {"off_policy_threshold": NAN}, ValueError, "off_policy_threshold .* got nan"),
    (policy, {"kl_unbiased": 1}, TypeError, "kl_unbiased must be a bool; got 1"),
    (policy, {"kl_limit": 0.0}, ValueError, "kl_limit must be a finite number > 0; got 0.0"),
    (policy, {"clip_low": NAN}, ValueError, "clip_low .* got nan"),
    (policy, {"clip_low": 1.1}, ValueError, "clip_low must be .* >= 0 and <= 1; got 1.1"),
    (policy, {"clip_high": -0.1}, ValueError, "clip_high must be .* got -0.1"),
    (policy, {"dual_clip": 1.0}, ValueError, "dual_clip must be a finite number > 1; got 1.0"),
    (policy, {"ratio": "group"}, ValueError, "ratio must be one of 'token', 'sequence'"),
    (policy, {"aggregation": "mean"}, ValueError, "aggregation must be one of 'token-mean'"),
    (policy, {"aggregation": "token-sum-norm"}, ValueError, "denominator must be .* got None"),
    (policy, {"denominator": -1}, ValueError, "denominator must be a finite number >= 0; got -1"),
    (policy, {"denominator": torch.tensor(NAN)}, ValueError, "denominator .* got nan"),
    (policy, {"denominator": torch.ones(1)}, ValueError, "denominator must be a number or a 0-d"),
    (policy, {"kl_coef": 0.1}, ValueError, "ref_logprobs must be given with kl_coef=0.1"),
    (policy, {"kl_coef": -0.1}, ValueError, "kl_coef must be"),
    (policy, {"kl_estimator": "k4"}, ValueError, "kl_estimator must be one of 'k1', 'k2', 'k3'"),
    (policy, {"entropy_coef": 0.1}, ValueError, "entropy must be given with entropy_coef=0.1"),
    (policy, {"entropy_coef": INF}, ValueError, "entropy_coef .* got inf"),
]


@pytest.mark.parametrize("call, changes, kind, message", CASES)
def test_refused(call, changes, kind, message):
    with pytest.raises(kind, match=message) as raised:
        call(**changes)
    assert type(raised.value) is kind


@pytest.mark.parametrize("call", [linear, selective, grouped, policy])
def test_backends(monkeypatch, call):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="backend='triton' takes tensors on a GPU"):
        call(backend="triton")
    with pytest.raises(ValueError, match="None, 'triton', 'portable', 'reference'; got 'cuda'"):
        call(backend="cuda")


def test_reading_values_is_for_cpu_tensors_or_on_request(monkeypatch):
    from siri_kernels import _checks

    class OnGpu:
        device = torch.device("cuda")

    monkeypatch.delenv("SIRI_KERNELS_CHECK", raising=False)
    assert _checks.may_read(torch.ones(1)) and not _checks.may_read(OnGpu())
    monkeypatch.setenv("SIRI_KERNELS_CHECK", "1")
    assert _checks.may_read(OnGpu())


def test_an_unchecked_target_out_of_range_reads_nothing_outside(monkeypatch):
    from siri_kernels import _checks

    monkeypatch.setattr(_checks, "may_read", lambda tensor: False)  # as on a GPU
    hidden = torch.randn(4, 3, requires_grad=True)
    out = linear(hidden=hidden, targets=torch.tensor([0, 10**12, -(10**12), 6]))
    assert (out.logprobs[1:3] == float("-inf")).all()
    assert out.logprobs[[0, 3]].isfinite().all()


def test_public_names():
    assert sorted(siri_kernels.__all__) == [
        "GroupAdvantages",
        "LogprobHead",
        "LogprobOutput",
        "PolicyLoss",
        "group_advantages",
        "linear_logprob",
        "policy_loss",
        "release_screens",
        "selective_logprob",
        "take_backward_stats",
        "take_forward_stats",
        "varlen",
    ]
    for name in siri_kernels.__all__:
        assert getattr(siri_kernels, name).__doc__
    assert siri_kernels.__version__ == "0.1.0"
