"""The compiled loop of the policy loss: right with every option, for any number of threads."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_kernels import _native, policy_loss
from siri_kernels.policy_loss import compiled

from .test_policy_loss import AGGREGATIONS, INF, NAN, assert_same, make, with_gradients
from .test_policy_loss_objectives import OBJECTIVES, aggregated, corrections

EDGES = [0, 1, 15, 16, 17, 511, 512, 513, 1040]  # of lanes and blocks


@pytest.fixture(scope="module", autouse=True)
def loop():
    """The loop is used by every call of this file."""
    library = _native.load(compiled.SOURCE, wait=True)
    if library is None:
        pytest.skip("no C compiler, or no folder for what it makes")
    before, compiled._choice = compiled._choice, compiled._function(library)
    assert compiled._choice is not None, "the library is not right"
    yield
    compiled._choice = before


@pytest.fixture
def used(monkeypatch):
    """How often the loop was used."""
    calls = []

    def counted(*args, _loop=compiled._choice):
        calls.append(args)
        return _loop(*args)

    monkeypatch.setattr(compiled, "_choice", counted)
    return calls


def as_double(batch):
    return {
        name: t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t
        for name, t in batch.items()
    }


def errors(got, exact):
    """The largest error of the loss, of each gradient and of each metric."""
    pairs = {"loss": (got[0].loss, exact[0].loss)}
    pairs |= {f"gradient {i}": pair for i, pair in enumerate(zip(got[1], exact[1], strict=True))}
    assert set(got[0].metrics) == set(exact[0].metrics)
    pairs |= {name: (got[0].metrics[name], value) for name, value in exact[0].metrics.items()}
    for a, b in pairs.values():
        assert torch.equal(a.isfinite(), b.isfinite())
    return {
        name: ((a.double() - b.double()).abs().max().item() if a.numel() else 0.0, b)
        for name, (a, b) in pairs.items()
    }


options_drawn = st.fixed_dictionaries(
    {
        "ratio": st.sampled_from(["token", "sequence"]),
        "kl_coef": st.sampled_from([0.0, 0.2]),
        "kl_estimator": st.sampled_from(["k1", "k2", "k3"]),
        "kl_unbiased": st.booleans(),
        "kl_limit": st.sampled_from([None, 0.05, 10.0]),
        "entropy_coef": st.sampled_from([0.0, 0.05]),
        "rollout_correction": corrections,
        "off_policy_threshold": st.sampled_from([None, 0.02, -0.02]),
    }
)


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40) | st.sampled_from(EDGES), min_size=1, max_size=6),
    name=st.sampled_from(sorted(OBJECTIVES)),
    aggregation=st.sampled_from(AGGREGATIONS),
    options=options_drawn,
    given_too=st.sets(st.sampled_from(["mask", "ref_logprobs", "rollout_logprobs", "entropy"])),
    spread=st.sampled_from([0.02, 0.3, 3.0]),
    per_token=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_errors_are_at_most_twice_those_of_eager_pytorch(
    sizes, name, aggregation, options, given_too, spread, per_token, seed
):
    torch.manual_seed(seed)
    batch = make(sizes, torch.float32, spread=spread, per_token=per_token)
    if options["kl_coef"] or options["kl_unbiased"]:
        given_too = given_too | {"ref_logprobs"}
    if options["entropy_coef"]:
        given_too = given_too | {"entropy"}
    if options["rollout_correction"]:
        given_too = given_too | {"rollout_logprobs"}
    for key in {"mask", "ref_logprobs", "rollout_logprobs", "entropy"} - given_too:
        del batch[key]
    options = {**options, **OBJECTIVES[name], **aggregated(aggregation)}
    exact = with_gradients(as_double(batch), backend="reference", **options)
    eager = errors(with_gradients(batch, backend="reference", **options), exact)
    if any(eager[f"clip_frac_{side}"][0] > 1e-6 for side in ("low", "high")):
        return  # a token within rounding of a bound: which side it is on is not determined
    for key in ("rollout_weight_mean", "off_policy_frac"):
        if key in eager and eager[key][0] > 1e-4 * (1 + eager[key][1].abs().item()):
            return  # likewise
    for key, (error, want) in errors(with_gradients(batch, **options), exact).items():
        size = want.abs().max().item() if want.numel() else 0.0
        # Terms of a sum are about 1, each is rounded, and they may cancel.
        floor = 1e-9 if "gradient" in key else 1.2e-7
        if key == "loss" and aggregation in ("seq-mean-token-sum", "token-sum-norm"):
            floor *= 1 + 3 * math.sqrt(sum(sizes))
        elif key == "loss" and options["ratio"] == "sequence":
            floor *= 6  # all terms of a sequence have the same rounded ratio: they do not average
        assert error <= 2 * eager[key][0] + 4e-7 * size + floor, key


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_infinities_and_nan_as_in_the_blocked_form(name, ratio, aggregation):
    for masked in (False, True):
        batch = make([700, 0, 3, 40, 1], torch.float32, spread=3.0)
        if not masked:
            del batch["mask"]
        for key in ("logprobs", "old_logprobs", "ref_logprobs", "rollout_logprobs"):
            with torch.no_grad():
                where = torch.rand(744)
                batch[key][where < 0.02] = -INF
                batch[key][where > 0.98] = INF
        for at in torch.randint(744, (2,)):
            batch["rollout_logprobs"][at] = NAN
        if not masked and ratio == "token":
            batch["old_logprobs"][torch.randint(744, ())] = NAN
        options = {
            "kl_coef": 0.1, "kl_unbiased": True, "entropy_coef": 0.1, "ratio": ratio,
            "rollout_correction": "tis", "off_policy_threshold": 0.5,
            **OBJECTIVES[name], **aggregated(aggregation),
        }  # fmt: skip
        want = with_gradients(batch, backend="portable", **options)
        got = with_gradients(batch, **options)
        assert_same(got, want, rtol=2e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("options", [{}, {"ratio": "sequence"}, {"objective": "gmpo"}])
@pytest.mark.parametrize(("masked", "team"), [(False, True), (True, True), (True, False)])
def test_the_same_bits_for_any_number_of_threads(options, masked, team, monkeypatch):
    if not team:
        monkeypatch.setattr(_native, "team", lambda: None)
    sizes = torch.randint(0, 9000, (60,))
    sizes[7] = 3 * compiled.TOKENS_A_THREAD["own"]
    batch = make(sizes.tolist(), torch.float32)
    if not masked:
        del batch["mask"]
    options |= {"aggregation": "seq-mean-token-mean", "entropy_coef": 0.1, "kl_coef": 0.1}
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(with_gradients(batch, **options))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert_same(other, results[0], rtol=0, atol=0)
    want = with_gradients(as_double(batch), backend="portable", **options)
    got = as_double({"loss": results[0][0].loss})["loss"]
    torch.testing.assert_close(got, want[0].loss, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(results[0][1][0].double(), want[1][0], rtol=1e-4, atol=1e-9)


FORKED = """
import os, signal, torch
from siri_kernels import policy_loss
torch.set_num_threads(2)
x = torch.randn(3, 200_000) / 10
cu = torch.tensor([0, 150_000, 200_000], dtype=torch.int32)
call = lambda: policy_loss(x[0], x[1], x[2, :2], cu, clip_low=0.2, clip_high=0.28)[0]
want = call()
child = os.fork()
if not child:
    signal.alarm(100)
    os._exit(0 if call().item() == want.item() else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_waits_for_no_thread_of_its_parent():
    environment = os.environ | {compiled.VARIABLE: "1"}
    subprocess.run([sys.executable, "-c", FORKED], env=environment, check=True, timeout=200)


def test_many_tiny_sequences(used):
    sizes = torch.randint(0, 4, (30_000,)).tolist()
    batch = make(sizes, torch.float32)
    for aggregation in AGGREGATIONS:
        options = {"ratio": "sequence", **aggregated(aggregation)}
        want = with_gradients(batch, backend="portable", **options)
        assert_same(with_gradients(batch, **options), want, rtol=2e-5, atol=1e-7)
    assert len(used) == len(AGGREGATIONS)


def test_dtypes_strides_and_signs(used):
    """The loop reads plain float32; other inputs are converted."""
    batch = make([40, 0, 100, 7], torch.float32)
    want = with_gradients(batch, entropy_coef=0.1)
    strided = {
        name: torch.stack([t.detach(), t.detach()], 1)[:, 0].requires_grad_(t.requires_grad)
        for name, t in batch.items()
    }
    assert not strided["mask"].is_contiguous()
    assert_same(with_gradients(strided, entropy_coef=0.1), want, rtol=0, atol=0)
    signed = torch.complex(torch.zeros(147), -batch["old_logprobs"]).conj().imag
    assert signed.is_neg()
    got = with_gradients({**batch, "old_logprobs": signed}, entropy_coef=0.1)
    assert_same(got, want, rtol=0, atol=0)
    half = {
        name: t.detach().bfloat16().requires_grad_(t.requires_grad) if t.is_floating_point() else t
        for name, t in batch.items()
    }
    got, grads = with_gradients(half, entropy_coef=0.1)
    assert got.loss.dtype == torch.float32 and {g.dtype for g in grads} == {torch.bfloat16}
    wide = {
        name: t.detach().float().requires_grad_(t.requires_grad) if t.is_floating_point() else t
        for name, t in half.items()
    }
    same, wide_grads = with_gradients(wide, entropy_coef=0.1)
    assert torch.equal(got.loss, same.loss)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(grads, wide_grads, strict=True))
    assert len(used) == 5


@pytest.mark.parametrize("offsets", [[1, 5], [0, 4], [0, 6], [0, 3, 2, 5], [0, -1, 5], [0, 9, 5]])
def test_wrong_cu_seqlens_are_refused_and_nothing_is_written(offsets, used):
    offsets = torch.tensor(offsets, dtype=torch.int32)
    advantages = torch.ones(len(offsets) - 1)
    with pytest.raises(ValueError, match="policy_loss: cu_seqlens must"):
        policy_loss(torch.zeros(5), torch.zeros(5), advantages, offsets)
    assert len(used) == 1


@pytest.mark.parametrize("denominator", [0, 0.0, 7, 2.5, math.pi])
def test_a_denominator_is_a_number_or_a_tensor(denominator):
    batch = make([4, 9], torch.float32)
    want = with_gradients(batch, backend="portable", denominator=denominator)
    for given_as in (denominator, torch.tensor(denominator), torch.tensor(denominator).double()):
        got = with_gradients(batch, denominator=given_as)
        assert_same(got, want, rtol=1e-6, atol=1e-9)


# The gradient, which is made along with the loss


def test_upstream_factors_second_calls_and_accumulation():
    batch = make([40, 7], torch.float32)
    logprobs = batch["logprobs"]
    (plain,) = torch.autograd.grad(policy_loss(**batch).loss, logprobs)
    kept = plain.clone()
    (scaled,) = torch.autograd.grad(3 * policy_loss(**batch).loss, logprobs)
    torch.testing.assert_close(scaled, 3 * kept)
    loss = policy_loss(**batch).loss
    loss.backward(retain_graph=True)
    loss.backward()
    assert torch.equal(logprobs.grad, 2 * kept)
    logprobs.grad += 1
    (again,) = torch.autograd.grad(policy_loss(**batch).loss, logprobs)
    assert torch.equal(again, kept)
    loss = policy_loss(**batch).loss
    factors = torch.tensor([1.0, 2.0, -1.0])
    (rows,) = torch.autograd.grad(loss, logprobs, factors, is_grads_batched=True)
    torch.testing.assert_close(rows, factors[:, None] * kept)


def test_without_a_gradient_to_give_there_is_none():
    batch = make([40, 7], torch.float32)
    with torch.no_grad():
        assert not policy_loss(**batch).loss.requires_grad
    frozen = {name: t.detach() for name, t in batch.items()}
    assert not policy_loss(**frozen).loss.requires_grad
    frozen["entropy"].requires_grad_()
    loss = policy_loss(**frozen, entropy_coef=0.5).loss
    (grad,) = torch.autograd.grad(loss, frozen["entropy"])
    unmasked = batch["mask"].float()
    torch.testing.assert_close(grad, -0.5 * unmasked / unmasked.sum())


def test_a_metric_may_be_changed_in_place():
    batch = make([40, 7], torch.float32)
    out = policy_loss(**batch)
    want = out.loss.detach().clone()
    for value in out.metrics.values():
        value.mul_(0)
    assert torch.equal(out.loss.detach(), want)
    out.loss.backward()
