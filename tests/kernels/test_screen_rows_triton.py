"""Rows in 8 bits, made by Triton kernels, beside the CPU's own."""

from __future__ import annotations

import math

import pytest
import torch

from siri_kernels import release_screens
from siri_kernels.linear_logprob.screen import quantise
from siri_kernels.linear_logprob.screen.rotation import rotated

from .interpreter import DEVICE, INTERPRETED, direct

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")

import triton
import triton.language as tl

from siri_kernels.linear_logprob.screen_triton import rows, weight
from siri_kernels.linear_logprob.screen_triton.row_kernels import nearest_code, to_tf32

pytestmark = direct
WIDTHS = [1, 2, 3, 16, 48, 97, 128, 576, 896, 1021, 1536]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def nothing_kept():
    release_screens()
    yield
    release_screens()


def normal(*shape):
    return torch.randn(shape, dtype=torch.float32, device=DEVICE)


def indices(values):
    return torch.tensor(values, dtype=torch.int64, device=DEVICE)


def scaled(rows):
    return rows.codes.float() * rows.scale[:, None]


def close(got, want, rtol=2e-3, atol=1e-6):
    """On a GPU tf32 makes the rotation, which moves a few numbers to another step."""
    torch.testing.assert_close(got.cpu(), want.cpu(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("width", WIDTHS)
def test_products_errors_and_norms(width, kind):
    h, w = normal(40, width) * 3, normal(70, width) + 0.5
    chosen = indices([39, 3, 3, *range(20)])
    copy = weight.kept_copy(w, torch.float32, kind)
    found = rows.hidden_rows(h, chosen, torch.float32, kind, copy.mean)
    assert found.codes.dtype == rows.code_dtype(kind, h.device)
    assert found.codes.shape[1] == copy.codes.shape[1] == rows.screened_width(width)
    assert found.codes.shape[1] % 16 == 0
    exact = h[chosen].double()
    close(copy.mean, w.double().mean(0).float(), rtol=1e-5)
    close(found.shared, (exact @ copy.mean.double()).float(), rtol=1e-5, atol=1e-4)
    close(found.norm, exact.norm(dim=1).float(), rtol=0.05)
    close(found.norm, scaled(found).norm(dim=1), rtol=1e-4)
    left, right = scaled(found), copy.codes.float() * copy.scale.clamp_min(0)[:, None]
    usual = copy.scale >= 0
    centred = w.double() - copy.mean
    off = left.double() @ right.double().t() - exact @ centred.t()
    # By Cauchy's inequality; then as what it is when rounding has all directions alike.
    all_rows = torch.arange(70, device=DEVICE)
    errors = rows.hidden_rows(centred.float(), all_rows, torch.float32, kind, None).error.double()
    of_hidden, of_weight = found.error.double()[:, None], errors[None, :]
    lengths, norms = centred.norm(dim=1), exact.norm(dim=1)[:, None]
    most = of_hidden * lengths + (norms + of_hidden) * of_weight
    assert (off.abs() <= 1.01 * most + 2e-3 * norms * lengths)[:, usual].all()
    likely = (of_hidden * lengths) ** 2 + (norms * of_weight) ** 2
    if width >= 48:
        assert 0.7 < (off**2)[:, usual].mean() / likely[:, usual].mean() * width < 1.4


@pytest.mark.parametrize("width", [97, 576])
def test_tf32_operands_are_exact_enough(width, monkeypatch):
    """As on NVIDIA's GPUs; the interpreter rounds them too, where it is told to."""
    monkeypatch.setattr(rows, "takes_tf32", lambda device: True)
    test_products_errors_and_norms(width, "int8")
    monkeypatch.setattr(rows, "takes_tf32", lambda device: False)
    x, every = normal(30, width), torch.arange(30, device=DEVICE)
    exact = rows.hidden_rows(x, every, torch.float32, "int8", None)
    monkeypatch.undo()
    monkeypatch.setattr(rows, "takes_tf32", lambda device: True)
    rounded = rows.hidden_rows(x, every, torch.float32, "int8", None)
    apart = (scaled(exact) - scaled(rounded)).norm(dim=1)
    assert (apart < 0.7 * exact.error).all() and apart.any()


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_are_those_of_the_cpu(width):
    """Padded to a multiple of 16, where the CPU pads otherwise."""
    x = normal(30, width)
    x[7] = 0
    found = rows.hidden_rows(x, torch.arange(30, device=DEVICE), torch.float32, "int8", None)
    padded = torch.nn.functional.pad(x.cpu(), (0, rows.screened_width(width) - width))
    want = quantise.quantised(rotated(padded))
    close(found.scale, want.scale)
    close(found.norm, want.norm)
    close(found.error, want.error, rtol=0.02)
    assert not found.shared.any() and not found.codes[7].any()
    assert found.scale[7] == found.error[7] == found.norm[7] == 0
    got, want_codes = (x.codes.int().abs().sort(1).values.cpu() for x in (found, want))
    assert (got - want_codes).abs().max() <= 1
    assert (got != want_codes).double().mean() < (0.01 if DEVICE == "cpu" else 0.05)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_codes_are_the_nearest(kind):
    """Each product's codes are what PyTorch rounds the same rotated numbers to."""
    x = normal(64, 128) * torch.rand(64, 1, device=DEVICE).exp()
    # A row of one number rotates to equal ones; such a pair to sums, which round at all sizes.
    found = rows.hidden_rows(x, torch.arange(64, device=DEVICE), torch.float32, kind, None)
    back = scaled(found).double()
    # The rotation of unit rows, as exact as codes allow, gives its matrix.
    unit = torch.eye(128, dtype=torch.float32, device=DEVICE)
    tables = rows.tables_of(128, x.device)
    a, b = len(tables.left), len(tables.right)
    grid = (unit * tables.signs).view(128, -1, b) @ tables.right
    side = tables.left[: grid.shape[1], : grid.shape[1]] if a > 1 else tables.left
    matrix = (side @ grid).reshape(128, 128)
    exact = x.double() @ matrix.double()
    largest = {"int8": 127, "fp8": 448}[kind]
    want = (exact / exact.abs().amax(1, keepdim=True) * largest).float()
    codes = want.round() if kind == "int8" else want.to(torch.float8_e4m3fn).float()
    assert (codes == found.codes.float()).double().mean() > (0.999 if DEVICE == "cpu" else 0.9)
    close(found.error, (back - exact).norm(dim=1).float(), rtol=0.01)


@triton.jit
def rounding_kernel(x, codes, again, short, FORM: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(x + i)
    code, back = nearest_code(value, FORM)
    tl.store(codes + i, code)
    tl.store(again + i, back)
    tl.store(short + i, to_tf32(value))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz])
def test_every_number_of_8_bits_is_its_own_code(dtype):
    """All codes, the middles between them and their neighbours, through the kernel's rounding."""
    bits = torch.arange(256, dtype=torch.uint8)
    numbers = bits.view(dtype).float()
    numbers = numbers[numbers.isfinite()].unique()
    middles = (numbers[1:] + numbers[:-1]) / 2
    above, below = (middles.nextafter(torch.tensor(s)) for s in (math.inf, -math.inf))
    x = torch.cat([numbers, middles, above, below, torch.tensor([1e-30, -1e-30, -0.0])])
    x = torch.nn.functional.pad(x, (0, 1024 - len(x))).to(DEVICE)
    codes = torch.empty(1024, dtype=torch.int32, device=DEVICE)
    again, short = torch.empty_like(x), torch.empty_like(x)
    form = 1 if dtype == torch.float8_e4m3fn else 2
    rounding_kernel[(1,)](x, codes, again, short, FORM=form, BLOCK=1024)
    want = x.cpu().to(dtype)
    assert torch.equal(again.cpu(), want.float())
    assert torch.equal(codes.cpu().to(torch.uint8).view(dtype).float(), want.float())
    assert not (codes == 0x80).any()
    assert ((short - x).abs() <= x.abs() * 2.0**-11).all()
    assert not (short.view(torch.int32) & 0x1FFF).any()
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0] * 256, device=DEVICE)
    special.view(torch.int32)[4::4] = 0x7FFFFFFF  # a GPU's NaN
    rounding_kernel[(1,)](special, codes, again, short, FORM=form, BLOCK=1024)
    assert torch.equal(short.isnan(), special.isnan()) and short[1] == math.inf


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_dtypes_and_rows_that_are_not_finite(dtype):
    whole = normal(200, 260).to(dtype)
    for view in (whole[::3, 5:101], whole.t()[::2, :97], whole[:60, 3:].flip(0)):
        plain = view.contiguous()
        every = torch.arange(len(view), device=DEVICE)
        for one, two in zip(
            (*rows.hidden_rows(view, every, dtype, "int8", None),
             *weight.kept_copy(view, dtype, "int8")),
            (*rows.hidden_rows(plain, every, dtype, "int8", None),
             *weight.kept_copy(plain, dtype, "int8")),
            strict=True,
        ):  # fmt: skip
            assert torch.equal(one, two)
    x = normal(9, 576).to(dtype)
    x[1, 3], x[2, 500], x[3, 0] = math.nan, math.inf, -math.inf
    x[4] *= 1e4 if dtype == torch.float16 else 1e30
    x[5] *= 1e-7
    found = rows.hidden_rows(x, indices(range(9)), dtype, "int8", normal(576))
    assert found.error.isfinite().tolist() == [True, False, False, False] + [True] * 5
    assert not found.codes[1:4].any() and found.scale[1:4].isnan().all()
    assert (found.error[4:] < 0.02 * found.norm[4:]).all() and (found.norm[4:] > 0).all()


def test_rounds_to_the_dtype_of_the_product_first():
    x = normal(60, 96)
    # The interpreter cuts off what a GPU rounds to bfloat16.
    for gemm in (torch.float16,) if INTERPRETED else (torch.bfloat16, torch.float16):
        one = rows.hidden_rows(x, indices(range(60)), gemm, "int8", None)
        two = rows.hidden_rows(x.to(gemm), indices(range(60)), gemm, "int8", None)
        assert torch.equal(one.codes, two.codes)
        left = weight.kept_copy(x, gemm, "int8")
        right = weight.kept_copy(x.to(gemm), gemm, "int8")
        assert torch.equal(left.codes, right.codes) and torch.equal(left.mean, right.mean)
    tiny = rows.hidden_rows(x * 1e-35, indices(range(60)), torch.float32, "int8", None)
    assert not tiny.codes.any() and not tiny.scale.any() and (tiny.error > 0).all()
    huge = rows.hidden_rows(x * 1e37, indices(range(60)), torch.float32, "int8", None)
    assert not huge.codes.any() and huge.scale.isnan().all() and huge.error.isnan().all()
    none = rows.hidden_rows(x, indices([]), torch.float32, "int8", None)
    assert none.codes.shape == (0, 96)
