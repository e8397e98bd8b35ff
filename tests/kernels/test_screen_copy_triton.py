"""The weight's 8-bit copy on a GPU: what it holds, and that it is never an old one.

In the interpreter the GPU is the CPU.
"""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch import nn

from siri_kernels import release_screens
from siri_kernels.linear_logprob.screen import quantise

from .interpreter import DEVICE, direct
from .test_screen_weight import changes

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")

from siri_kernels.linear_logprob.screen_triton import rows, weight

pytestmark = direct
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def nothing_kept():
    release_screens()
    yield
    release_screens()


def normal(*shape):
    return torch.randn(shape, dtype=torch.float32, device=DEVICE)


def close(got, want, rtol=2e-3, atol=1e-6):
    torch.testing.assert_close(got.cpu(), want.cpu(), rtol=rtol, atol=atol)


def like_the_cpu(w, dtype=torch.float32):
    """The copy of a weight, compared with that which the CPU makes."""
    got = weight.kept_copy(w, dtype, "int8")
    want = quantise.screened_weight(w.detach().cpu(), dtype)
    outliers = (got.scale < 0).cpu().nonzero()[:, 0]
    assert outliers.tolist() == want.outliers.tolist()
    assert not got.codes[got.scale < 0].any()
    close(got.mean, want.mean, rtol=1e-4, atol=1e-5)
    usual = got.scale >= 0
    close(got.scale[usual], want.scale[usual.cpu()])
    numbers = torch.tensor([want.error, want.norm, want.largest], device="cpu")
    close(got.numbers[:3], numbers, rtol=5e-3)
    few = len(want.outliers) <= weight.MOST_OUTLIERS and math.isfinite(want.error)
    assert got.numbers[3] == few
    return got


def test_outliers_and_numbers():
    w = normal(5000, 64)
    w[[5, 1700]] *= 1000
    w[9, 3], w[10, 4] = math.inf, math.nan
    assert like_the_cpu(w).numbers[3] == 1
    w[11:90] *= 100
    assert like_the_cpu(w).numbers[3] == 0
    assert like_the_cpu(normal(1, 16)).numbers[3] == 1
    zero = like_the_cpu(torch.zeros(300, 64, device=DEVICE))
    assert zero.numbers.tolist() == [0, 0, 0, 1] and not zero.codes.any()
    w = normal(300, 64)
    w[::2] = w[1::2]  # equal rows
    like_the_cpu(w)
    bad = weight.kept_copy(w * math.nan, torch.float32, "int8")
    assert bad.numbers[3] == 0 and not bad.codes.any() and bad.mean.isfinite().all()
    like_the_cpu(normal(300, 80).bfloat16(), torch.bfloat16)


def test_the_fingerprint_changes_with_any_bit(monkeypatch):
    """Single bits, exchanged rows and columns, and pairs that could cancel are all seen."""
    launch = weight.launch

    def hashes_only(kernel, *given, **named):
        if kernel is weight.weight_kernels.fingerprint_kernel:
            launch(kernel, *given, **named)

    monkeypatch.setattr(weight, "launch", hashes_only)
    monkeypatch.setattr(rows, "launch_rows", lambda *given: None)
    for dtype in DTYPES:
        w = normal(70, 33).to(dtype)
        bits = w.view(torch.int32 if dtype == torch.float32 else torch.int16)
        most = 8 * w.element_size()

        def seen(w=w, dtype=dtype):
            weight.kept_copy(w, dtype, "int8")
            return tuple(weight._kept[-1].hashes.tolist())

        known = {seen()}
        original = bits.clone()
        assert seen() in known
        for bit in range(most):
            place = int(torch.randint(bits.numel(), (1,)))
            flipped = 1 << bit if bit < most - 1 else -(1 << bit)
            bits.view(-1)[place] ^= flipped
            assert seen() not in known
            known.add(seen())
        bits.copy_(original)
        for other in (original.roll(1, 0), original.roll(1, 1), original.flip(0)):
            bits.copy_(other)
            assert seen() not in known
            known.add(seen())
        bits.copy_(original)
        bits[[0, 1]] = bits[[1, 0]]
        assert seen() not in known
        bits.copy_(original)
        for number in range(0, 40, 2):
            top = -(1 << (most - 1))
            for first, second in ((number, number + 1), (number, number + 33), (number, 1200)):
                bits.view(-1)[first] ^= top
                bits.view(-1)[second] ^= top
                assert seen() not in known
                bits.copy_(original)


@pytest.mark.parametrize("how", sorted(changes()))
def test_no_change_of_the_weight_goes_unseen(how):
    if how == "by_numpy" and DEVICE == "cuda":
        pytest.skip("NumPy changes no memory of a GPU")
    head = nn.Linear(32, 600, bias=False, device=DEVICE, dtype=torch.float32)

    def used():
        found = weight.kept_copy(head.weight, torch.float32, "int8")
        kept = [x.clone() for x in found]
        release_screens()
        fresh = weight.kept_copy(head.weight, torch.float32, "int8")
        for one, two in zip(kept, fresh, strict=True):
            assert torch.equal(one, two)
        return kept[0]

    before = used()
    assert torch.equal(used(), before)
    changes()[how](head)
    after = used()
    assert not torch.equal(after, before)


def test_nothing_waits_for_the_device(monkeypatch):
    """All that would is refused, in the first call after the tables are made and in later ones."""
    w, hidden = normal(600, 96), normal(20, 96)
    index = torch.arange(20, device=DEVICE)
    weight.kept_copy(normal(300, 96), torch.float32, "int8")  # makes the tables

    def refused(*given, **named):
        raise AssertionError("the host waits for the device")

    def calls():
        copy = weight.kept_copy(w, torch.float32, "int8")
        return copy, rows.hidden_rows(hidden, index, torch.float32, "int8", copy.mean)

    names = ("item", "tolist", "nonzero", "cpu", "numpy", "__bool__", "__int__", "__float__")
    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(torch.Tensor, name, refused)
        for name in ("nonzero", "equal", "unique", "masked_select"):
            patch.setattr(torch, name, refused)
        first = calls()[0].codes
        calls()
        w.mul_(2)
        w[0] = 3
        calls()
    assert first.data_ptr() == weight.kept_copy(w, torch.float32, "int8").codes.data_ptr()


def test_kernels_leave_early_where_nothing_has_changed():
    w = normal(600, 96)
    copy = weight.kept_copy(w, torch.float32, "int8")
    want = [x.clone() for x in copy]
    for x in copy:  # as if written by others: only a change of the weight makes them again
        x.zero_()
    assert weight.kept_copy(w, torch.float32, "int8") is copy
    assert not any(x.any() for x in copy)
    w[17, 5] += 1
    weight.kept_copy(w, torch.float32, "int8")
    w[17, 5] -= 1
    weight.kept_copy(w, torch.float32, "int8")
    assert copy.codes.any() and [x.dtype for x in copy] == [x.dtype for x in want]


def test_copies_are_known_by_memory_and_freed():
    w = normal(300, 64)
    one = weight.kept_copy(w, torch.float32, "int8")
    assert weight.kept_copy(nn.Parameter(w), torch.float32, "int8") is one
    assert weight.kept_copy(w[:200], torch.float32, "int8") is not one
    assert weight.kept_copy(w, torch.float32, "int8") is one
    assert weight.kept_copy(w, torch.float32, "fp8") is not one
    assert weight.kept_copy(w, torch.bfloat16, "int8") is not one
    assert len(weight._kept) == weight.MOST_KEPT
    del one
    freed = release_screens()
    assert freed >= 2 * 300 * 64 and not weight._kept and release_screens() == 0
    gone = weakref.ref(weight.kept_copy(w, torch.float32, "int8").codes)
    w = None
    gc.collect()
    other = normal(300, 64)
    weight.kept_copy(other, torch.float32, "int8")
    gc.collect()
    assert gone() is None and len(weight._kept) == 1


def test_a_launch_that_fails_leaves_no_copy(monkeypatch):
    w = normal(300, 64)
    weight.kept_copy(w, torch.float32, "int8")
    w[3] = 7

    def failing(*given):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(rows, "launch_rows", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            weight.kept_copy(w, torch.float32, "int8")
    assert not weight._kept
    like_the_cpu(w)


def test_views_with_negative_signs():
    """``.imag`` of a conjugate is the same memory with the other sign."""
    numbers = torch.complex(normal(40, 32), normal(40, 32))
    plain, negative = numbers.imag, numbers.conj().imag
    assert negative.is_neg()
    one = weight.kept_copy(plain, torch.float32, "int8").codes.clone()
    two = weight.kept_copy(negative, torch.float32, "int8").codes
    assert torch.equal(one, -two)


@pytest.mark.skipif(DEVICE != "cpu", reason="a forked process has no GPU")
def test_a_forked_process_starts_with_nothing():
    import os

    w = normal(40, 32)
    weight.kept_copy(w, torch.float32, "int8")
    with weight._lock:
        child = os.fork()
        if child == 0:
            os._exit(int(bool(weight._kept) or weight._lock.locked()))
    assert os.waitpid(child, 0)[1] == 0 and len(weight._kept) == 1
