"""The policy loss against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from siri_kernels import policy_loss

from .test_policy_loss import BACKENDS


@pytest.mark.parametrize("backend", BACKENDS)
def test_clip_by_hand(backend):
    ratios = torch.tensor([0.5, 1.0, 1.2, 1.5, 0.5, 1.0, 1.2, 1.5, 9.0], dtype=torch.float64)
    logprobs = ratios.log().requires_grad_()
    advantages = torch.tensor([2.0] * 4 + [-1.0] * 5, dtype=torch.float64)
    cu_seqlens = torch.tensor([0, 4, 9], dtype=torch.int32)
    out = policy_loss(
        logprobs, torch.zeros(9).double(), advantages, cu_seqlens, dual_clip=3.0, backend=backend
    )
    want = [-1.0, -2.0, -2.4, -2.56, 0.8, 1.0, 1.2, 1.5, 3.0]
    assert out.loss.item() == pytest.approx(sum(want) / 9)
    (grad,) = torch.autograd.grad(out.loss, logprobs)
    slope = [-1.0, -2.0, -2.4, 0.0, 0.0, 1.0, 1.2, 1.5, 0.0]
    assert (9 * grad).tolist() == pytest.approx(slope)
    metrics = {name: value.item() for name, value in out.metrics.items()}
    log_ratio = ratios.log()
    assert metrics == pytest.approx(
        {
            "clip_frac_low": 1 / 9,
            "clip_frac_high": 1 / 9,
            "ratio_mean": ratios.mean().item(),
            "ratio_max": 9.0,
            "approx_kl": (ratios - 1 - log_ratio).mean().item(),
            "tokens": 9.0,
        }
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "aggregation, denominator, want",
    [
        ("token-mean", None, (1 + 2 + 3 + 10) / 4),
        ("token-mean", 8, (1 + 2 + 3 + 10) / 8),
        ("seq-mean-token-mean", None, (2 + 10) / 2),
        ("seq-mean-token-mean", 5, (2 + 10) / 5),
        ("seq-mean-token-sum", None, (6 + 10) / 2),
        ("seq-mean-token-sum", torch.tensor(4), (6 + 10) / 4),
        ("token-sum-norm", 100.0, 16 / 100),
    ],
)
def test_aggregation_by_hand(backend, aggregation, denominator, want):
    # At ratio 1 a token's loss is minus its advantage. Sequences: 3 tokens, none, 2 of which one
    # is masked, 1 that is masked.
    advantages = -torch.tensor([1.0, 2.0, 3.0, 10.0, 99.0, 77.0])
    mask = torch.tensor([1, 1, 1, 1, 0, 0], dtype=torch.bool)
    out = policy_loss(
        torch.zeros(6),
        torch.zeros(6),
        advantages,
        torch.tensor([0, 3, 3, 5, 6], dtype=torch.int32),
        mask=mask,
        aggregation=aggregation,
        denominator=denominator,
        backend=backend,
    )
    assert out.loss.item() == pytest.approx(want)
    assert out.metrics["tokens"].item() == 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_sequence_ratio_is_the_geometric_mean_of_unmasked_ratios(backend):
    logprobs = torch.tensor([0.1, 0.3, 5.0, -0.4]).requires_grad_()
    out = policy_loss(
        logprobs,
        torch.zeros(4),
        torch.tensor([1.0, 2.0]),
        torch.tensor([0, 3, 4], dtype=torch.int32),
        mask=torch.tensor([True, True, False, True]),
        ratio="sequence",
        aggregation="seq-mean-token-mean",
        backend=backend,
    )
    first, second = math.exp(0.2), math.exp(-0.4)
    assert out.loss.item() == pytest.approx(-(first + 2 * second) / 2)
    (grad,) = torch.autograd.grad(out.loss, logprobs)
    assert grad.tolist() == pytest.approx([-first / 4, -first / 4, 0.0, -second])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "estimator, value, slope",
    [("k1", 0.5, 1.0), ("k2", 0.125, 0.5), ("k3", math.exp(-0.5) - 0.5, 1 - math.exp(-0.5))],
)
def test_kl_and_entropy_by_hand(backend, estimator, value, slope):
    logprobs = torch.tensor([-1.0, -2.0]).requires_grad_()
    entropy = torch.tensor([0.3, 0.9]).requires_grad_()
    out = policy_loss(
        logprobs,
        logprobs.detach(),
        torch.zeros(1),
        torch.tensor([0, 2], dtype=torch.int32),
        ref_logprobs=logprobs.detach() - 0.5,
        kl_coef=2.0,
        kl_estimator=estimator,
        entropy=entropy,
        entropy_coef=0.1,
        backend=backend,
    )
    assert out.loss.item() == pytest.approx(2 * value - 0.1 * 0.6)
    d_logprobs, d_entropy = torch.autograd.grad(out.loss, (logprobs, entropy))
    assert d_logprobs.tolist() == pytest.approx([slope, slope])
    assert d_entropy.tolist() == pytest.approx([-0.05, -0.05])
    assert out.metrics["entropy"].item() == pytest.approx(0.6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rollout_metrics(backend):
    old, gap = torch.tensor([-1.0, -1.5, -2.0]), torch.tensor([0.2, -0.1, 9.0])
    out = policy_loss(
        old,
        old,
        torch.ones(1),
        torch.tensor([0, 3], dtype=torch.int32),
        mask=torch.tensor([True, True, False]),
        rollout_logprobs=old - gap,
        backend=backend,
    )
    weight = gap[:2].exp()
    want = (weight - 1 - gap[:2]).mean().item()
    assert out.metrics["rollout_kl"].item() == pytest.approx(want, rel=1e-4)
    assert out.metrics["rollout_weight_mean"].item() == pytest.approx(weight.mean().item())
