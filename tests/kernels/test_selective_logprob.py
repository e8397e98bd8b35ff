from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from siri_kernels import linear_logprob, selective_logprob

from .helpers import assert_no_worse, eager_selective, gradients, leaves, upstream


@pytest.mark.parametrize("shape", [(6, 11), (1, 2), (3, 1), (150, 2049), (40, 4099)])
@pytest.mark.parametrize("temperature", [1.0, 0.6, "tensor"])
def test_portable_equals_reference_in_float64(shape, temperature):
    tokens, vocabulary = shape
    (logits,) = leaves(3 * torch.randn(shape, dtype=torch.float64))
    targets = torch.randint(0, vocabulary, (tokens,))
    targets[2::5] = -100
    if temperature == "tensor":
        temperature = torch.rand(tokens, dtype=torch.float64) + 0.5
    up, results = upstream(tokens), []
    for backend in ("reference", "portable"):
        out = selective_logprob(logits, targets, temperature=temperature, backend=backend)
        results.append([*out, *gradients(out, (logits,), up)])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_at_most_twice_eagers(dtype):
    (logits,) = leaves((4 * torch.randn(200, 3001)).to(dtype))
    targets, up = torch.randint(0, 3001, (200,)), upstream(200)
    results = []
    exact_logits = leaves(logits.double())
    exact = selective_logprob(*exact_logits, targets, backend="reference")
    results = [[*exact, *gradients(exact, exact_logits, up)]]
    for out in (selective_logprob(logits, targets), eager_selective(logits, targets)):
        results.append([*out, *gradients(out, (logits,), up)])
    assert results[1][0].dtype == torch.float32 and results[1][2].dtype == dtype
    for want, got, eager in zip(*results, strict=True):
        assert_no_worse(got, eager, want, floor=1e-7)


def test_reference_gradcheck():
    (logits,) = leaves(torch.randn(5, 7, dtype=torch.float64))
    targets = torch.randint(0, 7, (5,))
    targets[0] = -100
    for backend in ("reference", "portable"):
        assert torch.autograd.gradcheck(
            lambda x, b=backend: tuple(selective_logprob(x, targets, backend=b)), (logits,)
        )


def test_same_as_linear_logprob_of_the_same_logits():
    hidden, weight = torch.randn(20, 8), torch.randn(300, 8)
    targets = torch.randint(0, 300, (20,))
    got = selective_logprob(hidden @ weight.t(), targets, temperature=0.8)
    want = linear_logprob(hidden, weight, targets, temperature=0.8)
    torch.testing.assert_close(got, want)


def test_a_logit_of_minus_infinity_is_probability_zero():
    (logits,) = leaves(torch.randn(8, 60))
    masked = logits.masked_fill(torch.arange(60) >= 40, float("-inf"))
    targets = torch.randint(0, 40, (8,))
    up = upstream(8)
    got = selective_logprob(masked, targets)
    want = selective_logprob(logits[:, :40], targets)
    for a, b in zip(
        [*got, *gradients(got, (logits,), up)],
        [*want, *gradients(want, (logits,), up)],
        strict=True,
    ):
        torch.testing.assert_close(a, b)


class LargeStorages(TorchDispatchMode):
    """Sizes of the distinct large storages that operations return, by address."""

    def __init__(self, at_least):
        super().__init__()
        self.at_least, self.sizes = at_least, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.nbytes() >= self.at_least:
                    self.sizes[storage.data_ptr()] = storage.nbytes()
        return out


def test_no_tensor_of_the_size_of_the_logits_but_the_returned_gradient():
    logits = torch.randn(600, 9000, requires_grad=True)
    targets = torch.randint(0, 9000, (600,))
    with LargeStorages(logits.nbytes / 8) as large:
        out = selective_logprob(logits, targets, temperature=0.9)
        (grad,) = torch.autograd.grad(out.logprobs.sum() + out.entropy.sum(), logits)
    assert set(large.sizes) <= {logits.data_ptr(), grad.data_ptr()}
    assert large.sizes[grad.data_ptr()] == logits.nbytes, "the measurement sees the gradient"


def test_leading_dimensions_strides_and_ignored_rows():
    logits = torch.randn(5, 3, 2, 8).double().transpose(0, 2).requires_grad_()
    targets = torch.randint(0, 8, (2, 3, 5))
    targets[0, 1] = -100
    results = []
    for backend in ("reference", "portable"):
        out = selective_logprob(logits, targets, backend=backend)
        assert out.logprobs.shape == targets.shape and (out.entropy[0, 1] == 0).all()
        (grad,) = torch.autograd.grad(out.logprobs.sum() + 2 * out.entropy.sum(), logits)
        assert (grad[0, 1] == 0).all()
        results.append([*out, grad])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
    empty = selective_logprob(torch.randn(0, 4), torch.zeros(0, dtype=torch.int64))
    assert empty.logprobs.shape == (0,)


def test_collapse_and_double_backward():
    logits = torch.zeros(1, 1000, requires_grad=True)
    out = selective_logprob(logits + 40 * torch.eye(1000)[:1], torch.tensor([0]))
    assert out.logprobs.item() == pytest.approx(-999 * math.exp(-40), rel=1e-5)
    (grad,) = torch.autograd.grad(out.logprobs.sum(), logits, create_graph=True)
    assert grad[0, 0].item() == pytest.approx(999 * math.exp(-40), rel=1e-5)
    with pytest.raises(NotImplementedError, match="selective_logprob.*differentiated again"):
        grad.sum().backward()


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(0, 30), vocabulary=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_any_small_problem(tokens, vocabulary, seed):
    torch.manual_seed(seed)
    (logits,) = leaves(10 * torch.randn(tokens, vocabulary, dtype=torch.float64))
    targets = torch.randint(0, vocabulary, (tokens,)).masked_fill(torch.rand(tokens) < 0.3, -100)
    up, results = upstream(tokens), []
    for backend in ("reference", "portable"):
        out = selective_logprob(logits, targets, temperature=1.3, backend=backend)
        results.append([*out, *gradients(out, (logits,), up)])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
