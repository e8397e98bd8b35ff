"""linear_logprob(screen=...): which arguments it takes, in any memory, and which it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from siri_kernels import linear_logprob, take_forward_stats
from siri_kernels.linear_logprob.screen import compiled, forward

from .helpers import error, gradients, leaves
from .screen_inputs import screen_all
from .test_screen import LOOPS, TOKENS, VOCABULARY, WIDTH, head, without_compiler


@pytest.fixture(autouse=True)
def fresh():
    take_forward_stats()
    yield
    compiled.library.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs(dtype, monkeypatch):
    screen_all(monkeypatch)
    hidden, weight, targets = head()
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    exact = linear_logprob(hidden.double(), weight.double(), targets, backend="reference")
    out = linear_logprob(hidden, weight, targets, screen="int8")
    assert take_forward_stats().screened_frac > 0.5
    assert error(out.logprobs, exact.logprobs)[0] < 1e-4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = linear_logprob(hidden.float(), weight.float(), targets, screen="int8")
    rounded = (x.bfloat16().double() for x in (hidden, weight))
    exact = linear_logprob(*rounded, targets, backend="reference")
    assert take_forward_stats().screened_frac > 0.5
    assert error(out.logprobs, exact.logprobs)[0] < 1e-4


def test_odd_strides(monkeypatch):
    screen_all(monkeypatch)
    hidden, weight, targets = head()
    want = linear_logprob(hidden, weight, targets, screen="int8").logprobs
    wide = torch.randn(VOCABULARY, 3 * WIDTH)
    wide[:, ::3] = weight
    forms = (wide[:, ::3], weight.t().contiguous().t(), weight.flip(0).flip(0))
    for form in forms:
        turned = hidden.t().contiguous().t()
        got = linear_logprob(turned, form, targets, screen="int8").logprobs
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("in_c", LOOPS)
def test_a_bias_in_any_memory(in_c, monkeypatch):
    if not in_c:
        without_compiler(monkeypatch)
    screen_all(monkeypatch)
    hidden, weight, targets = head()
    wide = torch.randn(VOCABULARY, 2) * 0.3
    wide[:, 1] = -math.inf
    for bias in (wide[:, 0], torch._neg_view(wide[:, 0]), torch.ones(1).expand(VOCABULARY)):
        plain = torch.empty(VOCABULARY).copy_(bias)
        want = linear_logprob(hidden, weight, targets, bias=plain, screen="int8")
        got = linear_logprob(hidden, weight, targets, bias=bias, screen="int8")
        assert torch.equal(got.logprobs, want.logprobs)
        assert take_forward_stats().screened_frac > 0.3
    turned = torch._neg_view(hidden.neg())
    want = linear_logprob(hidden, weight, targets, screen="int8", bias=wide[:, 0])
    got = linear_logprob(turned, weight, targets, screen="int8", bias=wide[:, 0])
    assert torch.equal(got.logprobs, want.logprobs)


@pytest.mark.parametrize("in_c", LOOPS)
def test_the_default_device_is_not_asked(in_c, monkeypatch):
    if not in_c:
        without_compiler(monkeypatch)
    screen_all(monkeypatch)
    inputs = leaves(*head()[:2])
    targets, up = head()[2], torch.randn(TOKENS)
    want = linear_logprob(*inputs, targets, screen="int8").logprobs
    with torch.device("meta"):
        got = linear_logprob(*inputs, targets, screen="int8").logprobs
        linear_logprob(*inputs, targets, screen="auto")
    assert torch.equal(got, want)
    torch.autograd.grad(got, inputs, up)


def test_a_processor_whose_products_overflow_gets_exact_calls(monkeypatch):
    from siri_kernels.linear_logprob.screen import options

    screen_all(monkeypatch)
    monkeypatch.setattr(options, "integer_products_are_exact", lambda: False)
    monkeypatch.setattr(forward, "integer_products_are_exact", lambda: False)
    inputs = head()
    ours, plain = linear_logprob(*inputs, screen="int8"), linear_logprob(*inputs)
    assert torch.equal(ours.logprobs, plain.logprobs)
    assert take_forward_stats().screened_frac == 0


def test_bad_options_are_refused():
    inputs = head()
    with pytest.raises(ValueError, match="screen must be None, 'int8', 'fp8', 'auto'; got 'int4'"):
        linear_logprob(*inputs, screen="int4")
    with pytest.raises(ValueError, match="screen must be None"):
        linear_logprob(*inputs, screen=True)
    for tolerance in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="logprob_tol"):
            linear_logprob(*inputs, screen="int8", logprob_tol=tolerance)
    with pytest.raises(TypeError, match="logprob_tol"):
        linear_logprob(*inputs, screen="int8", logprob_tol="1e-4")
    with pytest.raises(TypeError, match="screen_check must be True or False; got 1"):
        linear_logprob(*inputs, screen="int8", screen_check=1)
    with pytest.raises(ValueError, match="screen='fp8' is for GPUs.*screen=None, or 'auto'"):
        linear_logprob(*inputs, screen="fp8")
    with pytest.raises(ValueError, match="'portable' on a CPU; got .*'reference'"):
        linear_logprob(*inputs, screen="int8", backend="reference")
    with pytest.raises(ValueError, match="takes bfloat16, float16 and float32; got float64"):
        linear_logprob(*(x.double() if x.is_floating_point() else x for x in inputs), screen="int8")


@pytest.mark.parametrize("has", [True, False])
def test_auto_screens_where_the_processor_multiplies_integers_fast(has, monkeypatch):
    from siri_kernels.linear_logprob.screen import options

    screen_all(monkeypatch)
    monkeypatch.setattr(options, "has_integer_products", lambda: has)
    inputs = head(tokens=1030)
    linear_logprob(*inputs, screen="auto")
    stats = take_forward_stats()
    assert (stats.screened_frac > 0.3) if has else stats is None
    # Never an error, whatever the call is.
    double = [x.double() if x.is_floating_point() else x for x in inputs]
    linear_logprob(*double, screen="auto")
    linear_logprob(*inputs, screen="auto", backend="reference")


def test_torch_compile_takes_it_as_one_operator(monkeypatch):
    torch.compiler.reset()
    screen_all(monkeypatch)
    hidden, weight, targets = head()
    targets[::7] = -100
    up = torch.randn(TOKENS), torch.randn(TOKENS)

    def function(hidden, weight):
        return linear_logprob(hidden * 1.0, weight, targets, screen="int8", temperature=0.9)

    runs = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        inputs = leaves(hidden, weight)
        out = run(*inputs)
        runs.append([*out, *gradients(out, inputs, up)])
        assert take_forward_stats().screened_frac > 0.5
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)
    torch.compiler.reset()
