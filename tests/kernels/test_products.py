"""float32 products on a CPU: MKL's or oneDNN's, by the processor."""

import os
import subprocess
import sys

import pytest
import torch

from siri_kernels import linear_logprob
from siri_kernels.linear_logprob.portable import products

from .helpers import gradients, leaves, make_linear, products_of, upstream


@pytest.fixture(params=["MKL", "oneDNN"])
def library(request, monkeypatch):
    products_of(request.param, monkeypatch)
    return request.param


def drawn(rows, columns, dtype):
    """A matrix in one of the layouts that callers have."""
    layout = int(torch.randint(7, ()))
    if layout == 0:
        return torch.randn(columns, rows, dtype=dtype).t()
    if layout == 1:
        return torch.randn(rows, columns + 3, dtype=dtype)[:, 2 : 2 + columns]
    if layout == 2:
        return torch.randn(rows, 2 * columns, dtype=dtype)[:, ::2]
    if layout == 3:
        return torch.randn(1, columns, dtype=dtype).expand(rows, columns)
    if layout == 4:
        return torch.randn(rows, 1, dtype=dtype).expand(rows, columns)
    if layout == 5:
        return torch.randn(columns + 5, rows, dtype=dtype)[3 : 3 + columns].t()
    return torch.randn(rows, columns, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_of_drawn_shapes_and_layouts(library, dtype):
    for _ in range(150):
        m, k, n = (int(torch.randint(1, most, ())) for most in (70, 600, 70))
        if not torch.randint(20, ()):
            m, k, n = (size * int(torch.randint(2, ())) for size in (m, k, n))
        a, b = drawn(m, k, dtype), drawn(k, n, dtype)
        exact = a.double() @ b.double()
        worst = (k + 2) * torch.finfo(dtype).eps  # any order of sums is right to that
        size = a.double().abs() @ b.double().abs() * worst
        memory = products.product_memory(m * n + 7, dtype, a.device)
        assert (memory is None) == (library == "oneDNN" and dtype is torch.float32)
        out = torch.randn(n, m, dtype=dtype).t() if m % 2 else torch.randn(m, n, dtype=dtype)
        before = out.double().clone()
        products.add_product(out, a, b)
        assert ((out - before - exact).abs() <= 2 * size + worst * before.abs()).all()
        products.set_product(out, a, b)
        for got in (out, products.product(a, b, memory)):
            assert got.shape == (m, n) and got.dtype is dtype
            assert ((got - exact).abs() <= 2 * size).all()


@pytest.mark.parametrize("length", [200, 576, 1024, 1536, 3584])
def test_chains_are_as_exact_as_mkl(length, monkeypatch):
    a, b = torch.randn(96, length), torch.randn(length, 160)
    exact = a.double() @ b.double()
    error = {}
    for library in ("MKL", "oneDNN"):
        products_of(library, monkeypatch)
        out = torch.empty(96, 160)
        products.set_product(out, a, b)
        error[library] = (out - exact).norm()
    assert error["oneDNN"] <= 1.3 * error["MKL"]


def test_both_libraries_give_the_same_results_within_rounding(monkeypatch):
    inputs = make_linear(70, 300, 9000, torch.float32)
    hidden, weight = inputs[:2]
    weight = torch.cat([weight, weight], 1)[:, :300]  # rows with a gap
    up, results = upstream(70), []
    for library in ("MKL", "oneDNN"):
        products_of(library, monkeypatch)
        for tail in (0.0, 1e-2):
            x = leaves(hidden, weight)
            out = linear_logprob(*x, inputs[2], tail=tail)
            results.append([*out, *gradients(out, x, up)])
    for mkl, onednn in zip(results[:2], results[2:], strict=True):
        for want, got in zip(mkl, onednn, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "vendor, capability, pays",
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
        ("AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD", "AVX512", True),
        ("", "DEFAULT", False),
    ],
)
def test_the_choice_is_the_processors(vendor, capability, pays, monkeypatch):
    monkeypatch.setattr(products, "FORCED", None)
    monkeypatch.setattr(products, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert products.onednn_pays() == pays


@pytest.fixture
def without_onednn():
    """What ``torch.backends.mkldnn.flags(enabled=False)`` does, which warns about an Intel GPU."""
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(True)


def test_a_user_can_turn_onednn_off(monkeypatch, request):
    products_of("oneDNN", monkeypatch)
    a, b = torch.randn(40, 300), torch.randn(300, 50)
    assert products.product_memory(2000, torch.float32, a.device) is None
    request.getfixturevalue("without_onednn")
    memory = products.product_memory(2000, torch.float32, a.device)
    got = products.product(a, b, memory)
    assert got.data_ptr() == memory.data_ptr() and torch.equal(got, a @ b)
    assert torch.equal(products.product(a, b, None), a @ b)  # turned off in the middle of a call


@pytest.mark.parametrize("forced", ["0", "1"])
def test_the_variable_forces_it(forced):
    code = (
        "from siri_kernels.linear_logprob.portable import products; print(products.onednn_pays())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SIRI_KERNELS_ONEDNN": forced},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(forced == "1"), done.stderr[-2000:]


def test_an_operator_that_is_missing_or_means_something_else_is_not_used(monkeypatch):
    class Wrong:
        def default(self, a, b, *rest):
            return a @ b.t() + 1

    class Refusing:
        def default(self, *arguments):
            raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(products, "FORCED", True)
    make = products._onednn.__wrapped__
    if torch.backends.mkldnn.is_available():
        assert make() is not None
    for operator in (Wrong(), Refusing(), object()):
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", operator, raising=False)
        assert make() is None
