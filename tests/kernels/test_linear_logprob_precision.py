"""The precision contract of linear_logprob, a test a clause."""

from __future__ import annotations

import math

import pytest
import torch

from siri_kernels import linear_logprob
from siri_kernels.linear_logprob.portable.forward import block_sizes

from .helpers import gradients, leaves, make_linear, products_of, upstream


@pytest.fixture
def one_thread():
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "width, vocabulary", [(64, 50), (33, 2049), (20, 5000), (576, 1057), (576, 1040)]
)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("library", ["MKL", "oneDNN"])
def test_a_row_has_the_same_bits_in_any_batch(
    width, vocabulary, dtype, threads, library, one_thread, monkeypatch
):
    torch.set_num_threads(threads)
    products_of(library, monkeypatch)
    total = 300
    hidden, weight, targets = make_linear(total, width, vocabulary, dtype)
    up = upstream(total)

    def run(rows):
        (h,) = leaves(hidden[rows])
        out = linear_logprob(h, weight, targets[rows])
        (d_hidden,) = gradients(out, (h,), [u[rows] for u in up])
        return *out, d_hidden

    whole = run(torch.arange(total))
    for size in (1, 2, 16, 37, 128, 129, 170, 257):
        rows = torch.randperm(total)[:size]
        for alone, among in zip(run(rows), whole, strict=True):
            assert torch.equal(alone, among[rows])


def test_blocks_hold_the_batch_and_little_else():
    for most in (256, 512, 1024):
        for total in (*range(1, 700), 1023, 1024, 1025, 5000):
            sizes = block_sizes(total, most, pad=True)
            assert all(size % 32 == 0 and 32 <= size <= most for size in sizes)
            assert total <= sum(sizes) < total + 32
            assert len(sizes) == -(-total // most)
    assert block_sizes(2500, 1000, pad=False) == [1000, 1000, 500]
    assert block_sizes(0, 512, pad=True) == block_sizes(0, 512, pad=False) == []


def test_runs_repeat_bit_for_bit():
    hidden, weight, targets = make_linear(90, 33, 2500, torch.bfloat16)
    up, inputs = upstream(90), leaves(hidden, weight)
    runs = []
    for _ in range(20):
        out = linear_logprob(*inputs, targets)
        runs.append([*out, *gradients(out, inputs, up)])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def from_logits(logits, targets, dtype=torch.float32):
    """linear_logprob of hidden states and weights whose product is exactly ``logits``."""
    hidden, weight = leaves(logits.to(dtype), torch.eye(logits.shape[1], dtype=dtype))
    return hidden, linear_logprob(hidden, weight, targets)


def test_logprob_and_gradient_where_fp32_softmax_collapses():
    logits = torch.zeros(4, 1000)
    targets = torch.tensor([0, 3, 7, 999])
    logits[torch.arange(4), targets] = torch.tensor([40.0, 30.0, 60.0, 95.0])
    hidden, out = from_logits(logits, targets)
    gap = math.log(999) - logits.double()[torch.arange(4), targets]
    want = -torch.log1p(gap.exp())
    assert (out.logprobs < 0).all()
    torch.testing.assert_close(out.logprobs.double(), want, rtol=1e-5, atol=1e-43)
    (grad,) = torch.autograd.grad(out.logprobs[:3].sum(), hidden)
    got = grad[torch.arange(3), targets[:3]].double()
    torch.testing.assert_close(got, -torch.expm1(want[:3]), rtol=1e-5, atol=0)
    entropy = (-want + want.exp() * 999 * (-logits.amax(1).double()).exp() * logits.amax(1))[:3]
    torch.testing.assert_close(out.entropy[:3].double(), entropy, rtol=1e-4, atol=0)


def test_logprob_is_never_positive():
    hidden, weight, targets = make_linear(400, 8, 3000, torch.float32, peak=30.0)
    out = linear_logprob(hidden * 10, weight, targets)
    assert (out.logprobs <= 0).all() and (out.entropy >= 0).all()
    assert (out.logprobs > -1e-6).any(), "the case must hold rows that are sure"


@pytest.mark.parametrize("level", [-200.0, 200.0, -1e5, 1e5, 0.0])
def test_equal_logits_at_any_level(level):
    logits = torch.full((3, 501), level)
    hidden, out = from_logits(logits, torch.tensor([0, 250, 500]))
    torch.testing.assert_close(out.logprobs, torch.full((3,), -math.log(501)))
    torch.testing.assert_close(out.entropy, torch.full((3,), math.log(501)))
    (grad,) = torch.autograd.grad(out.logprobs.sum(), hidden)
    torch.testing.assert_close(grad[0, 1:], torch.full((500,), -1 / 501), rtol=1e-5, atol=0)


def test_wide_logits():
    logits = torch.randn(6, 300) * 1e5
    targets = logits.argmax(1)
    targets[3:] = logits[3:].argmin(1)
    hidden, out = from_logits(logits, targets)
    want = linear_logprob(logits.double(), torch.eye(300).double(), targets, backend="reference")
    for got, exact in zip(out, want, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=1e-6)
    (grad,) = torch.autograd.grad(out.logprobs.sum() + out.entropy.sum(), hidden)
    assert grad.isfinite().all()


def test_minus_infinity_in_bias_is_a_token_that_cannot_be():
    hidden, weight, targets = make_linear(20, 8, 100, torch.float32)
    bias = torch.zeros(100)
    bias[50:] = float("-inf")
    targets = targets % 50
    inputs = leaves(hidden, weight)
    out = linear_logprob(*inputs, targets, bias=bias)
    want = linear_logprob(inputs[0], inputs[1][:50], targets)
    got = [*out, *gradients(out, inputs, upstream(20))]
    for a, b in zip(out, want, strict=True):
        torch.testing.assert_close(a, b)
    assert all(g.isfinite().all() for g in got) and (got[3][50:] == 0).all()
    sure = linear_logprob(hidden, weight, targets + 50, bias=bias)
    assert (sure.logprobs == float("-inf")).all() and sure.entropy.isfinite().all()


@pytest.mark.parametrize("vocabulary", [50, 5000])
def test_a_row_with_nan_is_nan_alone(vocabulary):
    hidden, weight, targets = make_linear(30, 6, vocabulary, torch.float32)
    clean = linear_logprob(hidden, weight, targets)
    hidden[11, 2] = float("nan")
    inputs = leaves(hidden, weight)
    out = linear_logprob(*inputs, targets)
    others = torch.arange(30) != 11
    assert out.logprobs[11].isnan() and out.entropy[11].isnan()
    for got, want in zip(out, clean, strict=True):
        assert torch.equal(got[others], want[others])
    d_hidden = torch.autograd.grad(out.logprobs.sum() + out.entropy.sum(), inputs[0])[0]
    assert d_hidden[11].isnan().all() and d_hidden[others].isfinite().all()


def test_gradient_is_accumulated_in_fp32():
    # One weight row collects 4096 equal small gradients; bf16 sums would stop growing early.
    tokens, vocabulary = 4096, 8
    hidden = torch.ones(tokens, 4, dtype=torch.bfloat16)
    weight = torch.zeros(vocabulary, 4, dtype=torch.bfloat16, requires_grad=True)
    out = linear_logprob(hidden, weight, torch.zeros(tokens, dtype=torch.int64))
    (grad,) = torch.autograd.grad(out.logprobs.sum(), weight)
    assert grad.dtype == torch.bfloat16
    want = torch.full((4,), tokens * (1 - 1 / vocabulary))
    torch.testing.assert_close(grad[0].float(), want, rtol=2**-8, atol=0)
