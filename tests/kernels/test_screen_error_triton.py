"""The error of log-probs that Triton kernels screen, on drawn batches: as estimated, unbiased."""

from __future__ import annotations

import pytest
import torch

from siri_kernels import release_screens

from .interpreter import direct
from .screen_inputs import KINDS, drawn, language_head

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")

from .screen_triton_calls import TOLERANCE, assert_within, called, small_calls_too

pytestmark = direct
OF_8_BITS = ["int8", "fp8"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    small_calls_too(monkeypatch)
    yield
    release_screens()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", OF_8_BITS)
def test_errors_stay_within_the_tolerance(bits, kind, monkeypatch):
    """A drawn batch of each kind, every token screened that can be."""
    hidden, weight, targets, given = drawn(kind, int(torch.randint(2**31, (1,))))
    if len(targets) > 48:
        hidden, targets = hidden[:48], targets[:48]
        if isinstance(given.get("temperature"), torch.Tensor):
            given["temperature"] = given["temperature"][:48]
    found = called(monkeypatch, bits, hidden, weight, targets, given, logprob_tol=TOLERANCE)
    print(f"{len(targets)} tokens, {found.stats}")
    assert_within(found)


@pytest.mark.slow
@pytest.mark.parametrize("bits", OF_8_BITS)
def test_the_sample_has_no_bias(bits, monkeypatch):
    """The mean of errors over their estimates is small, and few are beyond a half of theirs."""
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, (1,))))
    errors = torch.empty(0)
    while len(errors) < 60:
        given = language_head(100, 64, 2100, 14.0, generator)[:3]
        found = called(monkeypatch, bits, *given, screen_check=False)
        assert_within(found)
        # Where rounding in fp32 is small beside it.
        usual = (found.estimate <= TOLERANCE) & (found.estimate > 1e-5)
        errors = torch.cat([errors, (found.signed / found.estimate)[usual]])
    print(f"{len(errors)} tokens, mean {errors.mean():.3f}, deviation {errors.std():.3f}")
    assert errors.mean().abs() < 5 * errors.std() / len(errors) ** 0.5 + 0.01
    assert errors.std() < 0.3  # an estimate is four deviations
