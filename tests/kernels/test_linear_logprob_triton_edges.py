"""linear_logprob in Triton: logits of any size, rows that must not disturb each other, the
error bound."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings

from siri_kernels import linear_logprob, selective_logprob, take_backward_stats
from siri_kernels.linear_logprob import top_entries

from .helpers import gradients, leaves
from .interpreter import DEVICE, direct
from .test_linear_logprob_sparse import assert_within_bound, batches, relative, zipf_head
from .test_linear_logprob_triton import (
    TOKENS,
    VOCABULARY,
    lost_in_logits,
    on_device,
    run,
    small_sizes,
)

pytestmark = direct
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    small_sizes(monkeypatch)


def from_logits(logits, targets):
    """linear_logprob of hidden states and weights whose product is exactly ``logits``."""
    hidden, weight = leaves(*on_device(logits.float(), torch.eye(logits.shape[1])))
    return hidden, linear_logprob(hidden, weight, targets.to(DEVICE), backend="triton")


def test_logprob_and_gradient_where_fp32_softmax_collapses():
    logits, targets = torch.zeros(4, 130), torch.tensor([0, 3, 7, 129])
    logits[torch.arange(4), targets] = torch.tensor([40.0, 30.0, 60.0, 95.0])
    hidden, out = from_logits(logits, targets)
    gap = math.log(129) - logits.double()[torch.arange(4), targets]
    want = -torch.log1p(gap.exp())
    assert (out.logprobs < 0).all()
    torch.testing.assert_close(out.logprobs.double().cpu(), want, rtol=1e-5, atol=1e-43)
    (grad,) = torch.autograd.grad(out.logprobs[:3].sum(), hidden)
    got = grad[torch.arange(3), targets[:3]].double().cpu()
    torch.testing.assert_close(got, -torch.expm1(want[:3]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("level", [-200.0, -1e5, 1e5])
def test_equal_logits_at_any_level(level):
    hidden, out = from_logits(torch.full((3, 130), level), torch.tensor([0, 65, 129]))
    torch.testing.assert_close(out.logprobs.cpu(), torch.full((3,), -math.log(130)))
    torch.testing.assert_close(out.entropy.cpu(), torch.full((3,), math.log(130)))
    (grad,) = torch.autograd.grad(out.logprobs.sum(), hidden)
    want = torch.full((129,), -1 / 130)
    torch.testing.assert_close(grad[0, 1:].cpu(), want, rtol=1e-5, atol=0)


def test_wide_logits():
    logits = torch.randn(6, 130) * 1e5
    targets = logits.argmax(1)
    targets[3:] = logits[3:].argmin(1)
    hidden, out = from_logits(logits, targets)
    want = linear_logprob(logits.double(), torch.eye(130).double(), targets, backend="reference")
    for got, exact in zip(out, want, strict=True):
        torch.testing.assert_close(got.double().cpu(), exact, rtol=1e-6, atol=1e-6)
    (grad,) = torch.autograd.grad(out.logprobs.sum() + out.entropy.sum(), hidden)
    assert grad.isfinite().all()


@pytest.mark.draw(3)
@pytest.mark.parametrize("level", [0.0, 250.0, 5e3])
@pytest.mark.parametrize("temperature", [0.7, "tensor"])
def test_large_logits_over_a_temperature(level, temperature):
    """The difference of two logits is divided, not each: a log-prob is off by what rounding the
    logits themselves to fp32 costs, and not by their size."""
    logits = 5 * torch.randn(12, 130) + level * torch.randn(12, 1).sign()
    targets = torch.randint(130, (12,))
    if temperature == "tensor":
        temperature = torch.rand(12) + 0.5
    inputs, up = [logits, torch.eye(130)], (torch.randn(12), torch.randn(12))
    got, grads = run(inputs, targets, up, tail=0.0, temperature=temperature)
    exact = [x.double() for x in inputs]
    want, want_grads = run(exact, targets, up, backend="reference", temperature=temperature)
    for mine, true in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=5e-7, atol=5e-6)
    assert relative(grads[0], want_grads[0]) < 5e-6


@pytest.mark.parametrize("tail", [0.0, 1e-2])
def test_minus_infinity_in_bias_is_a_token_that_cannot_be(tail):
    half = VOCABULARY // 2
    *inputs, targets = zipf_head(12, 2 * half, 1)
    bias = torch.zeros(2 * half)
    bias[half:] = -INF
    targets %= half
    up = torch.randn(12), torch.randn(12)
    out, grads = run([*inputs, bias], targets, up, tail=tail)
    want, want_grads = run([inputs[0], inputs[1][:half], bias[:half]], targets, up, tail=tail)
    lost = lost_in_logits(inputs)  # another number of ids, another product's rounding
    for a, b in zip(out, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1.3e-6, atol=1e-5 + lost)
    assert (grads[1][half:] == 0).all() and (grads[2][half:] == 0).all()
    assert relative(grads[0], want_grads[0].double()) < 1e-5 + tail + lost
    sure, grads = run([*inputs, bias], targets + half, up, tail=tail)
    assert (sure[0] == -INF).all() and sure[1].isfinite().all()


@pytest.mark.draw(1)
@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_row_that_is_not_finite_is_so_alone(bad):
    hidden, weight, targets = zipf_head(TOKENS, VOCABULARY, 0.3)
    up = torch.randn(TOKENS), torch.randn(TOKENS)
    clean, clean_grads = run([hidden, weight], targets, up, (0,))
    others = torch.arange(TOKENS) != 11
    broken = hidden.clone()
    broken[11, 2] = bad
    out, grads = run([broken, weight], targets, up, (0,))
    assert out[0][11].isnan() and out[1][11].isnan() and grads[0][11].isnan().any()
    for got, want in zip(out, clean, strict=True):
        assert torch.equal(got[others], want[others])
    assert relative(grads[0][others], clean_grads[0][others].double()) < 1e-2
    targets[11] = -100  # nobody looks at it
    out, grads = run([broken, weight], targets, up, (0,))
    assert out[0][11] == 0 and all(g.isfinite().all() for g in grads)


def test_an_unchecked_target_out_of_range_reads_nothing_outside(monkeypatch):
    from siri_kernels import _checks

    monkeypatch.setattr(_checks, "may_read", lambda tensor: False)  # as on a GPU
    *inputs, targets = zipf_head(12, VOCABULARY, 0.3)
    up = torch.randn(12), torch.randn(12)
    beyond = targets.clone()
    beyond[2], beyond[5] = VOCABULARY, -7
    fine = torch.tensor([i not in (2, 5) for i in range(12)])
    for tail in (0.0, 0.5):  # with top entries it is another kernel, whose bits may differ
        want, _ = run(inputs, targets, up, tail=tail)
        out, grads = run(inputs, beyond, up, (0,), tail=tail)
        assert (out[0][~fine] == -INF).all()
        for a, b in zip(out, want, strict=True):
            assert torch.equal(a[fine], b[fine])
        assert all(g[fine].isfinite().all() for g in grads[:1])


@pytest.mark.costly
def test_runs_repeat_and_rows_do_not_depend_on_their_neighbours():
    """Bit for bit; of rows: given the same logits, which the identity for a head makes sure of."""
    logits = torch.randn(TOKENS, 84) * 4
    targets, up = logits.argmax(1), (torch.randn(TOKENS), torch.randn(TOKENS))
    inputs, first = [logits, torch.eye(84)], None
    for _ in range(100 if DEVICE == "cuda" else 2):
        out, grads = run(inputs, targets, up, tail=1e-2)
        first = first or out + grads
        assert all(torch.equal(a, b) for a, b in zip(out + grads, first, strict=True))
    rows = torch.randperm(TOKENS)[: TOKENS // 2 + 1]
    for tail in (0.0, 0.5):
        whole, (d_whole, _) = run(inputs, targets, up, tail=tail)
        part_inputs, part_up = [logits[rows], torch.eye(84)], [u[rows] for u in up]
        part, (d_part, _) = run(part_inputs, targets[rows], part_up, tail=tail)
        assert torch.equal(whole[0][rows], part[0]) and torch.equal(whole[1][rows], part[1])
        assert torch.equal(d_whole[rows], d_part)


def check_error_bound(batch):
    logits, targets, up, which, tail = batch
    hidden, weight = leaves(*on_device(logits))[0], torch.eye(logits.shape[1]).to(DEVICE)
    out = linear_logprob(hidden, weight, targets.to(DEVICE), tail=tail, backend="triton")
    (got,) = gradients([out[i] for i in which], (hidden,), on_device(*(up[i] for i in which)))
    assert_within_bound(batch, got.cpu(), out.entropy.detach().cpu(), 3e-5)


def error_bound(monkeypatch, examples):
    small_sizes(monkeypatch, entries=16)
    monkeypatch.setattr(top_entries, "LOG_EPS", math.log(1e-2))

    @settings(max_examples=examples, deadline=None)
    @given(batches(most=(12, 120) if DEVICE == "cuda" else (6, 60)))
    def check(batch):
        check_error_bound(batch)

    take_backward_stats()
    check()
    assert 0 < float(take_backward_stats().dense_row_frac) < 1, "the cases must hold both kinds"


def test_error_bound(monkeypatch):
    error_bound(monkeypatch, 500 if DEVICE == "cuda" else 15)


@pytest.mark.slow
def test_error_bound_of_many_batches(monkeypatch):
    error_bound(monkeypatch, 4000 if DEVICE == "cuda" else 300)


@pytest.mark.costly
def test_kernels_are_launched_on_the_gpu_of_their_tensors(monkeypatch):
    """Triton takes the current GPU, whatever its arguments say: every launch is within a guard."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    from siri_kernels.linear_logprob import autograd, selective_autograd
    from siri_kernels.linear_logprob.triton import sparse_kernels

    guards, launched = [], []

    @contextlib.contextmanager
    def guard(tensor):
        guards.append(tensor.device)
        yield
        guards.pop()

    for module in (autograd, selective_autograd):
        monkeypatch.setattr(module, "device_of", guard)
    for kind in (InterpretedFunction, JITFunction):
        run_kernel = kind.run

        def watched(self, *arguments, run_kernel=run_kernel, **options):
            launched.append(getattr(self, "__name__", None))
            assert guards, f"{launched[-1]} outside the guard"
            return run_kernel(self, *arguments, **options)

        monkeypatch.setattr(kind, "run", watched)
    if DEVICE == "cpu":
        monkeypatch.setattr(sparse_kernels, "PIECE", 4)
    hidden, weight, targets = zipf_head(TOKENS, VOCABULARY, 0.5)
    targets[: TOKENS // 2] = 5  # an id with many entries
    up = torch.randn(TOKENS), torch.randn(TOKENS)
    bias = torch.randn(VOCABULARY)
    for tail in (0.0, 1e-4, 0.5):
        run([hidden, weight, bias], targets, up, tail=tail)
    (logits,) = leaves(*on_device(hidden @ weight.t()))
    out = selective_logprob(logits, targets.to(DEVICE), backend="triton")
    gradients(out, (logits,), on_device(*up))
    assert len(set(launched)) == 11, "every kernel of both functions ran"
