"""Every objective, correction and estimator, with every aggregation and ratio level."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_kernels import policy_loss
from siri_kernels.policy_loss import RolloutCorrection, portable

from .test_policy_loss import AGGREGATIONS, BACKENDS, INF, NAN, assert_same, make, with_gradients

OBJECTIVES = {
    "clip": {"objective": "clip"},
    "dual_clip": {"dual_clip": 1.5},
    "delta": {"delta": 1.4},
    "cispo": {"objective": "cispo"},
    "cispo-trl": {"objective": "cispo", "cispo_bounds": "trl", "clip_high": 1.2},
    "sapo": {"objective": "sapo"},
    "gmpo": {"objective": "gmpo", "clip_low": 0.4, "clip_high": 0.4},
    "reinforce": {"objective": "reinforce"},
}
corrections = st.none() | st.builds(
    RolloutCorrection,
    mode=st.sampled_from(["truncate", "mask", "reject"]),
    level=st.sampled_from(["token", "sequence", "geometric"]),
    high=st.sampled_from([1.05, 2.0]),
    low=st.sampled_from([0.0, 0.9]),
)


def aggregated(aggregation):
    options = {"aggregation": aggregation}
    return {**options, "denominator": 20.0} if aggregation == "token-sum-norm" else options


def one_token(log_ratio, advantage, rollout_gap=None, **options):
    """Loss and gradient of a single token with old log-prob -1."""
    old = torch.tensor([-1.0]).double()
    logprobs = (old + log_ratio).requires_grad_()
    if rollout_gap is not None:
        options["rollout_logprobs"] = old - rollout_gap
    out = policy_loss(
        logprobs,
        old,
        torch.tensor([advantage]).double(),
        torch.tensor([0, 1], dtype=torch.int32),
        **options,
    )
    return out.loss.item(), torch.autograd.grad(out.loss, logprobs)[0].item(), out.metrics


# By hand


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("log_ratio", [-0.9, -0.1, 0.0, 0.2, 1.7])
@pytest.mark.parametrize("advantage", [1.3, -0.7])
def test_objectives_by_hand(backend, log_ratio, advantage):
    r, a, logp = math.exp(log_ratio), advantage, -1.0 + log_ratio

    def check(loss, slope, low=0, high=0, **options):
        got = one_token(log_ratio, advantage, backend=backend, **options)
        assert got[:2] == pytest.approx((loss, slope))
        assert got[2]["clip_frac_low"].item() == low and got[2]["clip_frac_high"].item() == high

    w = min(max(r, 0.8), 1.28)
    check(-w * a * logp, -w * a, r < 0.8, r > 1.28, objective="cispo")
    w = min(r, 5.0)
    check(-w * a * logp, -w * a, 0, r > 5, objective="cispo", cispo_bounds="trl", clip_high=5.0)
    tau = 1.0 if a > 0 else 1.05
    s = 1 / (1 + math.exp(-tau * (r - 1)))
    check(-a * 4 / tau * s, -4 * a * s * (1 - s) * r, objective="sapo")
    check(-a * logp, -a, objective="reinforce")
    low, high = log_ratio < -0.4 and a < 0, log_ratio > 0.3 and a > 0
    kept = -0.4 if low else 0.3 if high else log_ratio
    slope = 0 if low or high else -a * r
    gmpo = {"objective": "gmpo", "clip_low": 0.4, "clip_high": 0.3}
    check(-a * math.exp(kept), slope, low, high, **gmpo)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "ratio, loss, slope", [(1.2, 1.2, 1.2), (3.9, 3.9, 3.9), (4.1, 4.0, 0.0), (0.5, 0.8, 0.0)]
)
def test_delta_caps_the_loss_of_negative_advantages(backend, ratio, loss, slope):
    got = one_token(math.log(ratio), -1.0, delta=4.0, backend=backend)
    assert got[:2] == pytest.approx((loss, slope))
    assert one_token(math.log(ratio), 1.0, delta=4.0)[:2] == one_token(math.log(ratio), 1.0)[:2]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "correction, w, weight",
    [
        ("tis", 0.1, 0.1),
        ("tis", 7.0, 2.0),
        ("mis", 2.9, 2.9),
        ("mis", 3.1, 0.0),
        ("icepop", 0.49, 0.0),
        ("icepop", 0.51, 0.51),
        ("icepop", 5.1, 0.0),
        (RolloutCorrection("truncate", "token", high=2.0, low=0.5), 0.1, 0.5),
        (RolloutCorrection("reject", "geometric", high=1.1, low=0.9), 1.05, 1.0),
        (RolloutCorrection("reject", "geometric", high=1.1, low=0.9), 1.15, 0.0),
    ],
)
def test_corrections_by_hand(backend, correction, w, weight):
    loss, slope, metrics = one_token(
        0.1, 1.0, math.log(w), rollout_correction=correction, backend=backend
    )
    assert (loss, slope) == pytest.approx((-weight * math.exp(0.1),) * 2)
    assert metrics["rollout_weight_mean"].item() == pytest.approx(weight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_levels_of_the_correction(backend):
    """Two sequences with unmasked gaps of 0.2, 0.4 and -0.3: one weight a sequence."""
    old = torch.tensor([-1.0, -2.0, -3.0, -1.0])
    rollout = old - torch.tensor([0.2, 0.4, 9.0, -0.3])
    for level, weights in [
        ("token", [0.2, 0.4, -0.3]),
        ("sequence", [0.6, 0.6, -0.3]),
        ("geometric", [0.3, 0.3, -0.3]),
    ]:
        logprobs = old.clone().requires_grad_()
        out = policy_loss(
            logprobs,
            old,
            torch.ones(2),
            torch.tensor([0, 3, 4], dtype=torch.int32),
            mask=torch.tensor([True, True, False, True]),
            rollout_logprobs=rollout,
            rollout_correction=RolloutCorrection("truncate", level, high=100.0),
            backend=backend,
        )
        (grad,) = torch.autograd.grad(out.loss, logprobs)
        want = [-math.exp(w) / 3 for w in weights]
        assert grad.tolist() == pytest.approx([want[0], want[1], 0.0, want[2]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sampler", ["old", "rollout"])
def test_off_policy_sequences_are_silenced_where_the_advantage_is_negative(backend, sampler):
    far, near = torch.full((2,), -1.0), torch.full((2,), 0.0)  # drift: 1.0 and 0.0
    logprobs = torch.cat([far, near, far]).requires_grad_()
    zeros = torch.zeros(6)
    rollout = zeros if sampler == "rollout" else None
    old = logprobs.detach() if sampler == "rollout" else zeros
    out = policy_loss(
        logprobs,
        old,
        torch.tensor([-1.0, -1.0, 1.0]),
        torch.tensor([0, 2, 4, 6], dtype=torch.int32),
        rollout_logprobs=rollout,
        off_policy_threshold=0.5,
        clip_low=1.0,
        backend=backend,
    )
    (grad,) = torch.autograd.grad(out.loss, logprobs)
    assert (grad[:2] == 0).all() and (grad[2:] != 0).all()
    assert out.metrics["off_policy_frac"].item() == pytest.approx(1 / 3)
    assert out.metrics["tokens"].item() == 6, "they stay in the denominators"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_unbiased_kl_is_weighted_with_the_ratio_and_its_gradient_too(backend, estimator):
    d, x = 0.5, 0.3
    kl, slope = {
        "k1": (d, 1.0),
        "k2": (d * d / 2, d),
        "k3": (math.exp(-d) - 1 + d, 1 - math.exp(-d)),
    }[estimator]
    ref = torch.tensor([-1.0 + x - d]).double()
    options = {"kl_coef": 2.0, "kl_estimator": estimator, "ref_logprobs": ref, "backend": backend}
    loss, gradient, metrics = one_token(x, 0.0, kl_unbiased=True, **options)
    r = math.exp(x)
    assert (loss, gradient) == pytest.approx((2 * r * kl, 2 * r * (kl + slope)))
    assert metrics["ref_kl"].item() == pytest.approx(r * kl)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kl_limit_cuts_value_and_gradient(backend):
    ref = torch.tensor([-1.0 + 3.0]).double()  # k3: exp(3) - 1 - 3 = 16.1
    options = {"kl_coef": 1.0, "ref_logprobs": ref, "backend": backend}
    assert one_token(0.0, 0.0, **options)[0] == pytest.approx(math.exp(3) - 4)
    assert one_token(0.0, 0.0, kl_limit=10.0, **options)[:2] == (10.0, 0.0)


# Gradients


@pytest.mark.draw(24)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradcheck(name, aggregation, ratio, backend):
    # With one advantage and one weight a sequence, GSPO-token's gradient is that of its value.
    batch = make([3, 0, 5, 1], spread=0.3)
    options = {
        "kl_coef": 0.3,
        "kl_unbiased": ratio == "token",
        "entropy_coef": 0.1,
        "rollout_correction": RolloutCorrection("truncate", "geometric", high=1.1),
        "ratio": ratio,
        "backend": backend,
        **aggregated(aggregation),
        **OBJECTIVES[name],
    }
    if options.get("objective") == "cispo":
        # Its weight is a constant for the gradient; so it is for the value with these bounds.
        options.update(clip_low=0.0, clip_high=0.0 if name == "cispo" else 0.05)

    def loss(logprobs, entropy):
        return policy_loss(**{**batch, "logprobs": logprobs, "entropy": entropy}, **options).loss

    inputs = (batch["logprobs"], batch["entropy"])
    # nondet_tol aside, gradcheck's own checks of the graph do not matter here: values do.
    assert torch.autograd.gradcheck(loss, inputs, check_undefined_grad=False)


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(OBJECTIVES)),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=7),
    aggregation=st.sampled_from(AGGREGATIONS),
    ratio=st.sampled_from(["token", "sequence"]),
    rollout_correction=corrections,
    off_policy_threshold=st.sampled_from([None, 0.05, -0.1]),
    kl_estimator=st.sampled_from(["k1", "k2", "k3"]),
    kl_coef=st.sampled_from([0.0, 0.2]),
    kl_unbiased=st.booleans(),
    kl_limit=st.sampled_from([None, 0.05]),
    entropy_coef=st.sampled_from([0.0, 0.05]),
    spread=st.sampled_from([0.0, 0.3, 3.0, 30.0]),
    per_token=st.booleans(),
    masked=st.booleans(),
    wild=st.booleans(),
    block=st.sampled_from([3, 1 << 15]),
    seed=st.integers(0, 2**31),
)
def test_portable_equals_reference(
    name, sizes, aggregation, per_token, masked, spread, seed, wild, block, **options
):
    torch.manual_seed(seed)
    batch = make(sizes, spread=spread, per_token=per_token)
    if spread:
        for source in ("rollout_logprobs", "ref_logprobs"):
            batch[source] = batch[source] + min(spread, 3) * torch.randn_like(batch[source])
    if not masked:
        del batch["mask"]
    if wild:
        strange = torch.tensor([INF, -INF, -INF, NAN]).double()
        for source, kinds in (("old_logprobs", 2), ("ref_logprobs", 2), ("rollout_logprobs", 4)):
            hit = torch.rand(sum(sizes)) < 0.2
            batch[source][hit] = strange[torch.randint(0, kinds, (int(hit.sum()),))]
    if wild or spread > 3:  # a sum of +-exp(20) has no ninth digit
        options["kl_unbiased"] = False
    options = {**options, **aggregated(aggregation), **OBJECTIVES[name]}
    want = with_gradients(batch, backend="reference", **options)
    before, portable.BLOCK = portable.BLOCK, block
    try:
        got = with_gradients(batch, backend="portable", **options)
    finally:
        portable.BLOCK = before
    assert_same(got, want, rtol=1e-9, atol=1e-12)


# How the step is split


@pytest.mark.draw(16)
@pytest.mark.parametrize("backend", ["portable"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_random_splits_of_one_step_in_float32(name, aggregation, ratio, backend):
    """In the dtype of training: loss and gradients within 1e-6 of the whole step's."""
    sizes = torch.randint(0, 40, (24,)).tolist()
    batch = make(sizes, torch.float32)
    bounds = batch["cu_seqlens"].tolist()
    options = {
        "ratio": ratio,
        "kl_coef": 0.1,
        "entropy_coef": 0.05,
        "rollout_correction": RolloutCorrection("mask", "geometric", high=1.05),
        "off_policy_threshold": 0.2,
        "backend": backend,
        "aggregation": aggregation,
        **OBJECTIVES[name],
    }
    unmasked = [int(batch["mask"][a:b].sum()) for a, b in zip(bounds, bounds[1:], strict=False)]
    by_sequence = aggregation.startswith("seq")
    options["denominator"] = float(sum(n > 0 for n in unmasked) if by_sequence else sum(unmasked))
    whole_options = dict(options)
    if aggregation != "token-sum-norm":
        del whole_options["denominator"]  # the whole step has its own count
    whole, whole_grads = with_gradients(batch, **whole_options)
    for _ in range(50 if name == "clip" else 10):
        parts = int(torch.randint(2, 7, ()))
        cuts = sorted(torch.randperm(len(sizes) - 1)[: parts - 1].add(1).tolist())
        total = 0
        for first, last in zip([0, *cuts], [*cuts, len(sizes)], strict=True):
            a, b = bounds[first], bounds[last]
            part = {k: t[a:b] for k, t in batch.items() if len(t) == bounds[-1]}
            part["advantages"] = batch["advantages"][first:last]
            part["cu_seqlens"] = batch["cu_seqlens"][first : last + 1] - a
            total = total + policy_loss(**part, **options).loss
        grads = torch.autograd.grad(total, [batch["logprobs"], batch["entropy"]])
        assert total.item() == pytest.approx(whole.loss.item(), rel=1e-6, abs=1e-6)
        torch.testing.assert_close(grads, whole_grads, rtol=1e-6, atol=1e-6)
