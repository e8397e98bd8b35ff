"""A step without tokens, and CISPO's weights: results that a formula leaves open or hides."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_kernels import policy_loss
from siri_kernels.integrations._grpo import LOSS_TYPES, GrpoOptions, grpo_loss
from siri_kernels.policy_loss import RolloutCorrection
from siri_kernels.policy_loss.validate import AGGREGATIONS, OBJECTIVES, RATIOS

from .interpreter import DEVICE, INTERPRETED

BACKENDS = ["triton"] if INTERPRETED else ["portable", "reference"]
ZEROS = {
    "int": lambda: 0,
    "float": lambda: -0.0,
    "float32": lambda: torch.zeros((), device=DEVICE),
    "int64": lambda: torch.zeros((), dtype=torch.int64, device=DEVICE),
    "bfloat16": lambda: torch.zeros((), dtype=torch.bfloat16, device=DEVICE),
    "on the cpu": lambda: torch.zeros((), dtype=torch.float64, device="cpu"),
    "none": lambda: None,
}


def call(backend, objective, ratio, aggregation, denominator, mask, seed=0):
    torch.manual_seed(seed)
    tokens, cu_seqlens = len(mask), torch.tensor([0, 2, 2, len(mask)], dtype=torch.int32)
    logprobs, entropy = (-torch.rand(2, tokens)).to(DEVICE).requires_grad_()
    old, ref, rollout = (-torch.rand(3, tokens)).to(DEVICE)
    out = policy_loss(
        logprobs,
        old,
        torch.randn(3).to(DEVICE),
        cu_seqlens.to(DEVICE),
        objective=objective,
        ratio=ratio,
        aggregation=aggregation,
        denominator=denominator,
        mask=mask.to(DEVICE),
        ref_logprobs=ref,
        kl_coef=0.1,
        rollout_logprobs=rollout,
        rollout_correction="mis",
        off_policy_threshold=0.1,
        entropy=entropy,
        entropy_coef=0.1,
        backend=backend,
    )
    return out, torch.autograd.grad(out.loss, (logprobs, entropy))


@pytest.mark.draw(10)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ZEROS)
@pytest.mark.parametrize("empty", [True, False], ids=["masked", "unmasked"])
def test_a_denominator_of_zero(backend, kind, empty, monkeypatch):
    if kind == "none" and not empty:
        pytest.skip("the call counts its own tokens")
    # As on a GPU, whose values are not read; and as on a CPU.
    for reads in (False, True):
        if not reads:
            monkeypatch.setattr("siri_kernels._checks.may_read", lambda tensor: False)
        choices = list(itertools.product(OBJECTIVES, RATIOS, AGGREGATIONS))
        for number, (objective, ratio, aggregation) in enumerate(choices):
            if INTERPRETED and number % 13:  # a millisecond of Python for each launch
                continue
            if kind == "none" and aggregation == "token-sum-norm":
                continue
            mask = torch.zeros(7, dtype=torch.bool)
            if not empty:
                mask[1::2] = True
            out, grads = call(backend, objective, ratio, aggregation, ZEROS[kind](), mask, number)
            assert out.loss == 0 and out.loss.dtype == torch.float32
            assert all((grad == 0).all() for grad in grads)
            assert all(value.isfinite() for value in out.metrics.values())
        monkeypatch.undo()


@pytest.mark.draw(12)
@pytest.mark.skipif(INTERPRETED, reason="takes no backend")
@pytest.mark.parametrize("kind", LOSS_TYPES)
@pytest.mark.parametrize("level", RATIOS)
@pytest.mark.parametrize("unbiased", [False, True])
def test_padded_batches_with_zero_denominators_and_anything_as_padding(kind, level, unbiased):
    torch.manual_seed(LOSS_TYPES.index(kind))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()
    given = {"old": -torch.rand(3, 5), "ref": -torch.rand(3, 5), "weights": torch.rand(3, 5) + 0.5}
    given["weights"].masked_fill_(~mask, 1.0)
    start, advantages = -torch.rand(3, 5), torch.tensor([1.0, -1.0, 0.5])
    options = GrpoOptions(kind, level=level, beta=0.1, unbiased_kl=unbiased)

    def run(denominator=7.0, **change):
        leaf = start.clone().requires_grad_()
        rest = {**given, "denominator": denominator, **change}
        out = grpo_loss(options, leaf, mask, advantages, **rest)
        return torch.stack([out.loss.detach()]), torch.autograd.grad(out.loss, leaf)[0]

    want = run()
    for name, padding in itertools.product(given, (float("nan"), float("inf"))):
        got = run(**{name: given[name].masked_fill(~mask, padding)})
        torch.testing.assert_close(got, want, msg=lambda text, n=name: f"{n}: {text}")
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        torch.testing.assert_close(run(torch.tensor(7, dtype=dtype)), want)
        loss, grad = run(torch.tensor(0, dtype=dtype))
        assert loss == 0 and (grad == 0).all()
    loss, grad = run(0.0)
    assert loss == 0 and (grad == 0).all()


@pytest.mark.parametrize("kind", LOSS_TYPES)
@pytest.mark.parametrize("level", RATIOS)
def test_padded_batches_without_tokens(kind, level):
    if INTERPRETED:
        pytest.skip("takes no backend")
    logprobs = (-torch.rand(3, 4)).requires_grad_()
    denominator = None if kind == "bnpo" else torch.zeros(())
    out = grpo_loss(
        GrpoOptions(kind, level=level, beta=0.1),
        logprobs,
        torch.zeros(3, 4, dtype=torch.bool),
        torch.randn(3),
        old=-torch.rand(3, 4),
        ref=-torch.rand(3, 4),
        weights=torch.rand(3, 4),
        denominator=denominator,
    )
    (grad,) = torch.autograd.grad(out.loss, logprobs)
    assert out.loss == 0 and (grad == 0).all()
    assert all(value.isfinite() for value in out.metrics.values())


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["grpo", "cispo", "sapo"]),
    st.sampled_from([torch.float64, torch.float32]),
    st.booleans(),
)
def test_sampler_weights_at_sequence_level_as_in_trl(seed, kind, dtype, per_token):
    """TRL 1.16's own lines: the ratio is the sequence's, each token's loss times its weight."""
    torch.manual_seed(seed)
    rows, width = 3, 5
    logprobs = (torch.randn(rows, width, dtype=dtype) - 3).requires_grad_()
    old = logprobs.detach() - 0.2 * torch.randn(rows, width, dtype=dtype)
    weights = 2 * torch.rand(rows, width if per_token else 1, dtype=dtype)
    advantages = torch.randn(rows, dtype=dtype)
    mask = torch.rand(rows, width) < 0.7
    mask[:, 0] = True
    options = GrpoOptions(kind, epsilon_low=0.1, epsilon_high=0.3, level="sequence")
    count = mask.sum()
    out = grpo_loss(
        options,
        logprobs,
        mask,
        advantages,
        old=old,
        ref=None,
        weights=weights,
        denominator=count if kind == "cispo" else float(rows),
    )
    (ours,) = torch.autograd.grad(out.loss, logprobs)

    sizes = mask.sum(1, keepdim=True)
    ratio = (((logprobs - old) * mask).sum(1, keepdim=True) / sizes).exp()
    a = advantages[:, None]
    if kind == "cispo":
        loss = -ratio.clamp(max=0.3).detach() * a * logprobs
    elif kind == "sapo":
        tau = torch.where(a > 0, 1.0, 1.05).to(dtype)
        loss = -a * torch.sigmoid(tau * (ratio - 1)) * 4 / tau
    else:
        loss = -torch.min(ratio * a, ratio.clamp(0.9, 1.3) * a)
    loss = loss * weights * mask
    loss = loss.sum() / count if kind == "cispo" else (loss / sizes).sum() / rows
    (theirs,) = torch.autograd.grad(loss, logprobs)
    rtol = 1e-4 if dtype == torch.float32 else 1e-6
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-6)
    torch.testing.assert_close(out.loss.to(dtype), loss.detach(), rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("objective", ["cispo", "reinforce", "clip", "sapo", "gmpo"])
def test_token_weights_stay_per_token_under_sequence_ratios(backend, objective):
    """policy_loss itself: the gradient of each token is its own weight times that without one."""
    torch.manual_seed(3)
    tokens, cu_seqlens = 11, torch.tensor([0, 4, 11], dtype=torch.int32).to(DEVICE)
    logprobs = (-torch.rand(tokens)).to(DEVICE).requires_grad_()
    old = (logprobs.detach() - 0.1 * torch.randn(tokens).to(DEVICE)).detach()
    weights = (torch.rand(tokens) + 0.5).to(DEVICE)
    rest = {"objective": objective, "ratio": "sequence", "backend": backend}
    advantages = torch.tensor([1.0, -1.0], device=DEVICE)
    plain = policy_loss(logprobs, old, advantages, cu_seqlens, **rest)
    weighted = policy_loss(
        logprobs,
        old,
        advantages,
        cu_seqlens,
        rollout_logprobs=old - weights.log(),
        rollout_correction=RolloutCorrection("mask", "token", high=1e9),
        **rest,
    )
    (one,) = torch.autograd.grad(plain.loss, logprobs)
    (other,) = torch.autograd.grad(weighted.loss, logprobs)
    torch.testing.assert_close(other, one * weights, rtol=1e-5, atol=1e-7)
