"""Backward from the top entries, and its error bound."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_kernels import linear_logprob
from siri_kernels.linear_logprob import api, take_backward_stats, top_entries

from .helpers import eager_logprob, gradients, leaves


@pytest.fixture
def small_lists(monkeypatch):
    """Top entries in small vocabularies, and so few that some tokens have more."""
    monkeypatch.setattr(
        api, "entries_to_save", lambda v, tail, needed: 32 if tail and needed else 0
    )


def zipf_head(tokens, vocabulary, entropy, dtype=torch.float32, width=48):
    """Hidden states and a head. Mean entropy ``entropy``, with a Zipf tail; None: uniform."""
    weight = torch.randn(vocabulary, width) / math.sqrt(width)
    weight[:, 0] = -torch.arange(1, vocabulary + 1).log() / 4
    hidden = torch.randn(tokens, width)
    hidden[:, 0] = 1
    low, high = 0.0, 400.0
    for _ in range(30):
        scale = (low + high) / 2
        logp = (hidden[:16] * scale @ weight.t()).log_softmax(1)
        if -(logp.exp() * logp).sum(1).mean() > (entropy or 99):
            low = scale
        else:
            high = scale
    hidden = hidden * (high if entropy else 1e-4)
    targets = torch.multinomial((hidden @ weight.t()).softmax(1), 1)[:, 0]
    return hidden.to(dtype), weight.to(dtype), targets


def relative(got, exact):
    return float((got.double() - exact).norm() / exact.norm())


@pytest.mark.draw(4)
@pytest.mark.parametrize("entropy", [0.1, 0.3, 0.5, 1, 3, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_against_float64(entropy, dtype):
    hidden, weight, targets = zipf_head(96, 12_000, entropy, dtype)
    up = torch.randn(96), 0.1 * torch.randn(96)
    exact_inputs = leaves(hidden.double(), weight.double())
    inputs = leaves(hidden, weight)
    for which in ((0,), (1,), (0, 1)):
        exact = linear_logprob(*exact_inputs, targets, backend="reference")
        want = gradients([exact[i] for i in which], exact_inputs, [up[i] for i in which])
        bf16 = leaves_bf16(inputs)
        eager_out = eager_logprob(*bf16, targets)
        eager = gradients([eager_out[i] for i in which], bf16, [up[i] for i in which])
        for tail in (1e-2, 0.0):
            out = linear_logprob(*inputs, targets, tail=tail)
            torch.testing.assert_close(out.logprobs.double(), exact.logprobs, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(out.entropy.double(), exact.entropy, rtol=1e-5, atol=1e-5)
            take_backward_stats()
            got = gradients([out[i] for i in which], inputs, [up[i] for i in which])
            stats = take_backward_stats()
            assert (stats.dense_row_frac == 1) == (tail == 0 or entropy is None or stats[0] == 1)
            for mine, theirs, true in zip(got, eager, want, strict=True):
                assert relative(mine, true) <= max(relative(theirs, true), 2e-6)


def leaves_bf16(inputs):
    return leaves(*(x.detach().bfloat16() for x in inputs))


OPTIONS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "softcap": {"softcap": 20.0},
    "all": {"temperature": "tensor", "softcap": 15.0, "bias": "tensor"},
}


@pytest.mark.draw(6)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_options_and_dtypes(option, dtype):
    hidden, weight, targets = zipf_head(60, 9000, 0.5, dtype)
    options, inputs = dict(OPTIONS[option]), leaves(hidden, weight)
    if options.get("temperature") == "tensor":
        options["temperature"] = torch.rand(60) + 0.5
    if options.get("bias") == "tensor":
        inputs += leaves(torch.randn(9000).to(dtype))
    targets[::7] = -100
    up = torch.randn(60), 0.1 * torch.randn(60)
    up[0][3:9], up[1][3:9] = 0, 0
    exact_inputs = leaves(*(x.double() for x in inputs))

    def run(tensors, **more):
        extra = options | ({"bias": tensors[2]} if len(tensors) > 2 else {}) | more
        out = linear_logprob(*tensors[:2], targets, **extra)
        return gradients(out, tensors, up)

    want = run(exact_inputs, backend="reference")
    take_backward_stats()
    got = run(inputs)
    stats = take_backward_stats()
    assert stats.dense_row_frac < 0.9 and 1 < stats.entries_kept < 9000 // 64 + 1
    assert 0 < stats.tail_mass_max < 0.2
    rounding = {torch.bfloat16: 4e-3, torch.float16: 1e-3}.get(dtype, 1e-5)
    for mine, true in zip(got, want, strict=True):
        assert mine.dtype == dtype and relative(mine, true) < 8e-3 + rounding
    assert (got[0][::7] == 0).all() and (got[0][3:9] == 0).all()
    exact = run(inputs, tail=0.0)
    for mine, true in zip(exact, want, strict=True):
        assert relative(mine, true) <= 2 * rounding


def test_autocast_uses_the_rounded_operands():
    hidden, weight, targets = zipf_head(50, 9000, 0.5)
    inputs = leaves(hidden.bfloat16(), weight)
    up = torch.randn(50), 0.1 * torch.randn(50)
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients(linear_logprob(*inputs, targets), inputs, up)
        exact = gradients(linear_logprob(*inputs, targets, tail=0.0), inputs, up)
    assert [g.dtype for g in got] == [torch.bfloat16, torch.float32]
    for mine, true in zip(got, exact, strict=True):
        assert 0 < relative(mine, true.double()) < 1e-2


# The error bound


@st.composite
def batches(draw, most=(12, 120)):
    """Logits of sure and unsure rows, and incoming gradients of any size."""
    rows, vocabulary = draw(st.integers(1, most[0])), draw(st.integers(30, most[1]))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    scale = torch.tensor(draw(st.lists(st.sampled_from([0, 1, 4, 10, 40]), min_size=1)))
    logits = torch.randn(rows, vocabulary) * scale[torch.randint(len(scale), (rows,))][:, None]
    if draw(st.booleans()):  # targets as sampled, or any
        targets = torch.multinomial(logits.softmax(1), 1)[:, 0]
    else:
        targets = torch.randint(0, vocabulary, (rows,))
    up = [torch.randn(rows), torch.randn(rows) * draw(st.sampled_from([1e-3, 1, 1e3]))]
    if draw(st.booleans()):
        up[draw(st.integers(0, 1))][0] *= 1e6  # one huge gradient
    if draw(st.booleans()):
        up[0] *= 10 ** torch.linspace(-4, 4, rows)
    which = draw(st.sampled_from([(0,), (1,), (0, 1)]))
    return logits, targets, up, which, draw(st.sampled_from([1e-3, 1e-2, 0.1, 0.5]))


def check_error_bound(batch):
    logits, targets, up, which, tail = batch
    for dtype, rounding in ((torch.float64, 1e-9), (torch.float32, 3e-5)):
        # With the identity as head, the gradient of hidden is the logits' own.
        hidden, weight = leaves(logits.to(dtype))[0], torch.eye(logits.shape[1], dtype=dtype)
        out = linear_logprob(hidden, weight, targets, tail=tail)
        (got,) = gradients([out[i] for i in which], (hidden,), [up[i] for i in which])
        assert_within_bound(batch, got, out.entropy.detach(), rounding)


def assert_within_bound(batch, got, entropy, rounding):
    """The relative L1 error of the logits' gradient is at most ``tail``, but for rounding."""
    logits, targets, up, which, tail = batch

    def reference(outputs):
        x, w = leaves(logits.double(), torch.eye(logits.shape[1]).double())
        exact = linear_logprob(x, w, targets, backend="reference")
        return gradients([exact[i] for i in outputs], (x,), [up[i] for i in outputs])[0]

    want = reference(which)
    # Rounding is relative to what is added up, which may cancel in the sum of both gradients.
    parts = sum(float(reference((i,)).abs().sum()) for i in which)
    if 1 in which:  # log p + H cancels
        parts += float((up[1] * entropy).abs().sum())
    wrong = float((got.double() - want).abs().sum())
    # The reference takes float64's z - lse: with large logits that rounds what is left near 0.
    floor = 1e-15 * (1 + float(logits.abs().max()))
    floor *= sum(float(up[i].abs().sum()) for i in which)
    if 1 in which:  # log p of the likeliest entry is minus the log of a sum that rounds beside 1
        floor += torch.finfo(got.dtype).eps * float(up[1].abs().sum())
    assert wrong <= tail * float(want.abs().sum()) + rounding * parts + floor


@pytest.fixture
def wide_eps(small_lists, monkeypatch):
    """Entries of up to 1e-2 are left out, so that the error is close to its bound."""
    monkeypatch.setattr(top_entries, "LOG_EPS", math.log(1e-2))


@pytest.mark.costly
def test_error_bound(wide_eps):
    @settings(max_examples=150, deadline=None)
    @given(batches())
    def check(batch):
        check_error_bound(batch)

    check()
    assert 0 < float(take_backward_stats().dense_row_frac) < 1, "the cases must hold both kinds"


@pytest.mark.slow
def test_error_bound_of_thousands_of_batches(wide_eps):
    @settings(max_examples=4000, deadline=None)
    @given(batches())
    def check(batch):
        check_error_bound(batch)

    check()


def test_the_gradient_of_the_whole_batch_decides(wide_eps):
    """Rows whose tails matter alone do not matter beside a row with a huge gradient."""
    logits = torch.randn(20, 100)
    logits[:, 0] += 8
    targets, weight = torch.zeros(20, dtype=torch.int64), torch.eye(100)
    targets[0] = 50
    dense = []
    for huge in (1e-6, 1e6):
        up = torch.ones(20)
        up[0] = huge
        hidden = logits.clone().requires_grad_()
        take_backward_stats()
        (linear_logprob(hidden, weight, targets, tail=0.1).logprobs * up).sum().backward()
        dense.append(float(take_backward_stats().dense_row_frac))
    assert dense[0] > 0.5 and dense[1] < 0.1


# Rows that must not disturb each other


def test_a_row_with_nan_or_infinite_gradient_leaves_the_others_within_bound():
    hidden, weight, targets = zipf_head(40, 9000, 0.3)
    up = torch.randn(40)
    inputs = leaves(hidden, weight)
    clean = torch.autograd.grad(linear_logprob(*inputs, targets).logprobs, inputs[:1], up)[0]
    others = torch.arange(40) != 7
    broken = hidden.clone()
    broken[7, 3] = float("nan")
    for rows, grads in ((broken, up), (hidden, up.masked_fill(~others, float("nan")))):
        (h,) = leaves(rows)
        take_backward_stats()
        (got,) = torch.autograd.grad(linear_logprob(h, weight, targets).logprobs, h, grads)
        assert 0 < float(take_backward_stats().dense_row_frac) < 0.5
        assert got[7].isnan().any() and got[others].isfinite().all()
        assert relative(got[others], clean[others].double()) < 1e-2


@pytest.mark.costly
def test_a_hundred_runs_have_the_same_bits():
    hidden, weight, targets = zipf_head(48, 9000, 1, torch.bfloat16, width=16)
    inputs, up, first = leaves(hidden, weight), (torch.randn(48), torch.randn(48)), None
    take_backward_stats()
    for _ in range(100):
        out = linear_logprob(*inputs, targets, tail=2e-4)
        run = [*out, *gradients(out, inputs, up)]
        first = first or run
        assert all(torch.equal(a, b) for a, b in zip(run, first, strict=True))
    assert 0 < float(take_backward_stats().dense_row_frac) < 1, "both paths must have run"


def test_frozen_inputs_and_statistics():
    hidden, weight, targets = zipf_head(30, 9000, 0.3)
    for frozen in range(2):
        inputs = leaves(hidden, weight)
        inputs[frozen].requires_grad_(False)
        linear_logprob(*inputs, targets).logprobs.sum().backward()
        assert inputs[frozen].grad is None and inputs[1 - frozen].grad.isfinite().all()
    take_backward_stats()
    assert take_backward_stats() is None
    inputs = leaves(hidden, weight)
    for tail in (1e-2, 0.0):  # two micro-batches of a step
        linear_logprob(*inputs, targets, tail=tail).logprobs.sum().backward()
    assert 0.5 <= float(take_backward_stats().dense_row_frac) < 1


def test_no_list_is_made_where_nothing_is_differentiated(monkeypatch):
    hidden, weight, targets = zipf_head(8, 9000, 0.3)
    monkeypatch.setattr(top_entries.TopEntries, "empty", None)
    linear_logprob(hidden, weight, targets)
    with torch.no_grad():
        linear_logprob(*leaves(hidden, weight), targets)


@pytest.mark.slow
def test_two_hundred_steps_do_not_drift():
    """Loss and entropy of a small model stay with those of exact float64 gradients."""
    vocabulary, width = 9000, 24
    _, head, _ = zipf_head(4, vocabulary, 1, width=width)
    table = torch.randn(64, width)
    curves = []
    for exact in (True, False):
        torch.manual_seed(5)
        dtype = torch.float64 if exact else torch.float32
        x, w = leaves((table * 3).to(dtype), (head * 2).to(dtype))
        optimiser, curve = torch.optim.Adam([x, w], lr=1e-2), []
        for _ in range(200):
            rows = torch.randint(0, 64, (48,))
            targets = (rows * 131) % vocabulary
            backend = "reference" if exact else None
            out = linear_logprob(x[rows], w, targets, backend=backend)
            loss = -out.logprobs.mean() - 0.01 * out.entropy.mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            curve.append((loss.item(), out.entropy.mean().item()))
        curves.append(torch.tensor(curve))
    gap = (curves[0] - curves[1]).abs()
    assert curves[0][-1, 0] < 0.5 * curves[0][0, 0], "the model must learn"
    assert (gap <= 0.02 * curves[0].abs().amax(0)).all(), gap.amax(0)
