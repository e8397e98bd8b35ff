from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_kernels import policy_loss, varlen

from .helpers import NoHostRead

BACKENDS = ["reference", "portable"]
AGGREGATIONS = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "token-sum-norm"]
NAN, INF = float("nan"), float("inf")


def make(sizes, dtype=torch.float64, spread=0.5, per_token=False):
    """A packed batch of sequences of the given lengths, with everything optional in it."""
    total = sum(sizes)
    old = -torch.rand(total, dtype=torch.float64) * 3
    batch = {
        "logprobs": (old + spread * torch.randn(total, dtype=torch.float64)).requires_grad_(),
        "old_logprobs": old,
        "advantages": torch.randn(total if per_token else len(sizes), dtype=torch.float64),
        "ref_logprobs": old + 0.3 * torch.randn(total, dtype=torch.float64),
        "rollout_logprobs": old + 0.1 * torch.randn(total, dtype=torch.float64),
        "entropy": torch.rand(total, dtype=torch.float64).requires_grad_(),
        "mask": torch.rand(total) < 0.7,
    }
    batch = {
        name: t if t.dtype == torch.bool else t.detach().to(dtype).requires_grad_(t.requires_grad)
        for name, t in batch.items()
    }
    batch["cu_seqlens"] = varlen.cu_seqlens_from(torch.tensor(sizes, dtype=torch.int64))
    return batch


def with_gradients(batch, **options):
    out = policy_loss(**batch, **options)
    inputs = [batch["logprobs"]] + ([batch["entropy"]] if "entropy" in batch else [])
    return out, torch.autograd.grad(out.loss, inputs, allow_unused=True, materialize_grads=True)


def assert_same(got, want, **tolerance):
    (got, got_grads), (want, want_grads) = got, want
    torch.testing.assert_close(got.loss, want.loss, **tolerance)
    for a, b in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(a, b, **tolerance)
    assert set(got.metrics) == set(want.metrics)
    for name in want.metrics:
        torch.testing.assert_close(got.metrics[name], want.metrics[name], **tolerance)


# Reference and portable


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=7),
    aggregation=st.sampled_from(AGGREGATIONS),
    ratio=st.sampled_from(["token", "sequence"]),
    dual_clip=st.sampled_from([None, 1.5]),
    kl_estimator=st.sampled_from(["k1", "k2", "k3"]),
    kl_coef=st.sampled_from([0.0, 0.2]),
    entropy_coef=st.sampled_from([0.0, 0.05]),
    spread=st.sampled_from([0.0, 0.3, 3.0, 30.0]),
    per_token=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_portable_equals_reference(
    sizes, aggregation, ratio, dual_clip, per_token, masked, spread, seed, **options
):
    torch.manual_seed(seed)
    batch = make(sizes, spread=spread, per_token=per_token)
    if not masked:
        del batch["mask"]
    options.update(aggregation=aggregation, ratio=ratio, dual_clip=dual_clip)
    if aggregation == "token-sum-norm":
        options["denominator"] = 11
    want = with_gradients(batch, backend="reference", **options)
    got = with_gradients(batch, backend="portable", **options)
    assert_same(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(aggregation, ratio, backend):
    # With one advantage a sequence, GSPO-token's gradient is that of its value.
    batch = make([3, 0, 5, 1], spread=0.4)
    options = {"aggregation": aggregation, "dual_clip": 1.7, "kl_coef": 0.3, "entropy_coef": 0.1}
    if aggregation == "token-sum-norm":
        options["denominator"] = 20.0

    if ratio == "token":

        def loss(logprobs, entropy):
            inputs = {**batch, "logprobs": logprobs, "entropy": entropy}
            return policy_loss(**inputs, **options, backend=backend).loss

        assert torch.autograd.gradcheck(loss, (batch["logprobs"], batch["entropy"]))
        return
    # gradcheck cannot see through the stop-gradient of the reference: differences by hand.
    options["ratio"] = "sequence"
    _, (got, _) = with_gradients(batch, backend=backend, **options)
    step = 1e-6
    for t in range(len(got)):
        ends = []
        for sign in (1, -1):
            moved = batch["logprobs"].detach().clone()
            moved[t] += sign * step
            ends.append(policy_loss(**{**batch, "logprobs": moved}, backend=backend, **options))
        want = (ends[0].loss - ends[1].loss).item() / (2 * step)
        assert got[t].item() == pytest.approx(want, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_error_at_most_twice_the_references(dtype):
    batch = make([40, 0, 100, 7], dtype)
    double = {k: t.detach().double() if t.is_floating_point() else t for k, t in batch.items()}
    for name in ("logprobs", "entropy"):
        double[name].requires_grad_()
    options = {"kl_coef": 0.1, "entropy_coef": 0.01}
    exact, exact_grads = with_gradients(double, backend="reference", **options)
    eager, eager_grads = with_gradients(batch, backend="reference", **options)
    got, got_grads = with_gradients(batch, **options)
    assert got.loss.dtype == torch.float32 and got_grads[0].dtype == dtype
    pairs = [(got.loss, eager.loss, exact.loss)]
    pairs += list(zip(got_grads, eager_grads, exact_grads, strict=True))
    for ours, theirs, want in pairs:
        gap = (ours.double() - want.double()).abs().max().item()
        assert gap <= 2 * (theirs.double() - want.double()).abs().max().item() + 1e-7


# How the step is split


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_gradient_however_the_step_is_cut(aggregation, ratio, backend):
    sizes = [5, 0, 9, 3, 1, 7, 2, 4]
    batch = make(sizes)
    batch["mask"][5:8] = True
    bounds = batch["cu_seqlens"].tolist()
    options = {
        "aggregation": aggregation,
        "ratio": ratio,
        "kl_coef": 0.1,
        "entropy_coef": 0.05,
        "backend": backend,
    }
    unmasked = [int(batch["mask"][a:b].sum()) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    by_sequence = aggregation.startswith("seq")
    count = sum(n > 0 for n in unmasked) if by_sequence else sum(unmasked)
    denominator = 64 if aggregation == "token-sum-norm" else count
    whole_options = dict(options)
    if aggregation == "token-sum-norm":
        whole_options["denominator"] = denominator
    whole, whole_grads = with_gradients(batch, **whole_options)
    for _ in range(12):
        cuts = sorted(torch.randperm(len(sizes) - 1)[: torch.randint(1, 7, ())].add(1).tolist())
        total = 0
        for first, last in zip([0, *cuts], [*cuts, len(sizes)], strict=True):
            a, b = bounds[first], bounds[last]
            part = {k: t[a:b] for k, t in batch.items() if len(t) == bounds[-1]}
            part["advantages"] = batch["advantages"][first:last]
            part["cu_seqlens"] = batch["cu_seqlens"][first : last + 1] - a
            total = total + policy_loss(**part, **options, denominator=denominator).loss
        grads = torch.autograd.grad(total, [batch["logprobs"], batch["entropy"]])
        torch.testing.assert_close(total, whole.loss, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(grads, whole_grads, rtol=1e-10, atol=1e-12)


# Edges


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_what_the_mask_leaves_out_has_no_influence(backend, ratio):
    clean = make([6, 3, 4])
    clean["mask"][0] = True
    dirty = {name: t.detach().clone() for name, t in clean.items()}
    out = ~clean["mask"]
    for name, junk in (
        ("logprobs", NAN),
        ("old_logprobs", -INF),
        ("ref_logprobs", INF),
        ("rollout_logprobs", -INF),
        ("entropy", NAN),
    ):
        dirty[name][out] = junk
    for name in ("logprobs", "entropy"):
        dirty[name].requires_grad_()
    options = {"kl_coef": 0.1, "entropy_coef": 0.1, "ratio": ratio, "backend": backend}
    want, got = with_gradients(clean, **options), with_gradients(dirty, **options)
    assert_same(got, want, rtol=0, atol=0)
    assert all((g[out] == 0).all() for g in got[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS[:3])
@pytest.mark.parametrize("sizes", [[3, 2], [0, 0], []])
def test_nothing_unmasked_is_zero_with_zero_gradient(backend, aggregation, sizes):
    batch = make(sizes)
    batch["mask"] = torch.zeros(sum(sizes), dtype=torch.bool)
    for ratio in ("token", "sequence"):
        out, grads = with_gradients(
            batch,
            aggregation=aggregation,
            ratio=ratio,
            kl_coef=0.1,
            entropy_coef=0.1,
            backend=backend,
        )
        assert out.loss.item() == 0 and all((g == 0).all() for g in grads)
        assert all(value.item() == 0 for value in out.metrics.values())
        assert {"entropy", "rollout_kl", "rollout_weight_mean"} < set(out.metrics)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("old, advantage", [(-INF, 1.0), (-INF, -1.0), (INF, 1.0), (-500.0, -1.0)])
def test_an_extreme_old_logprob_stays_finite(backend, old, advantage):
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    out = policy_loss(
        logprobs,
        torch.tensor([-1.0, old]),
        torch.tensor([advantage]),
        torch.tensor([0, 2], dtype=torch.int32),
        backend=backend,
    )
    (grad,) = torch.autograd.grad(out.loss, logprobs)
    assert out.loss.isfinite() and all(v.isfinite() for v in out.metrics.values())
    assert grad[0].item() == pytest.approx(-advantage / 2) and grad[1] == 0


def test_zero_advantage_gives_exactly_zero_gradient():
    batch = make([4, 4], torch.float32, spread=3.0)
    batch["advantages"][0] = 0
    _, (d_logprobs, _) = with_gradients(batch)
    assert (d_logprobs[:4] == 0).all(), "linear_logprob skips such rows"


def test_metrics_carry_no_gradient_and_runs_repeat_bit_for_bit():
    batch = make([300, 0, 1000, 55], torch.float32)
    first, first_grads = with_gradients(batch, ratio="sequence", entropy_coef=0.1)
    assert not any(value.requires_grad for value in first.metrics.values())
    assert all(value.dim() == 0 for value in first.metrics.values())
    for _ in range(5):
        again, grads = with_gradients(batch, ratio="sequence", entropy_coef=0.1)
        assert torch.equal(again.loss, first.loss)
        assert all(torch.equal(a, b) for a, b in zip(grads, first_grads, strict=True))


def test_double_backward_is_refused_clearly():
    batch = make([3])
    out = policy_loss(**batch)
    (grad,) = torch.autograd.grad(out.loss, batch["logprobs"], create_graph=True)
    with pytest.raises(NotImplementedError, match="policy_loss.*cannot be differentiated again"):
        grad.sum().backward()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_nothing_is_read_on_the_host(monkeypatch, aggregation, ratio):
    from siri_kernels import _checks

    monkeypatch.setattr(_checks, "may_read", lambda tensor: False)  # as on a GPU
    batch = make([4, 0, 3])
    with NoHostRead():
        out = policy_loss(
            **batch,
            aggregation=aggregation,
            ratio=ratio,
            dual_clip=2.0,
            kl_coef=0.1,
            entropy_coef=0.1,
            denominator=torch.tensor(9.0),
        )
        out.loss.backward()
    with pytest.raises(AssertionError, match="waits for the GPU"), NoHostRead():
        out.loss.item()
