"""A masked id (a bias of -inf) stays impossible under a softcap, in PyTorch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_kernels import selective_logprob

from .masked_ids import check, check_all_but_one

BACKENDS = ["portable", "reference"]
SOFTCAPS = [0.5, 1.0, 5.0, 30.0]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.integers(12, 400),
    st.sampled_from(SOFTCAPS),
    st.sampled_from([0.0, -300.0, 3.0]),
    st.sampled_from(BACKENDS),
    st.booleans(),
)
def test_masked_ids_stay_impossible(seed, vocabulary, softcap, shift, backend, per_row):
    check(seed, vocabulary, softcap, shift, backend, per_row=per_row)


@pytest.mark.parametrize("softcap", SOFTCAPS)
def test_with_lists(softcap):
    check(int(softcap), 9000, softcap, 0.0, "portable", tail=1e-2, tokens=12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_all_but_one_masked(backend, softcap):
    check_all_but_one(backend, softcap)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_of_minus_infinity(backend):
    """Given logits: there is no softcap, and masked ones have probability and gradient 0."""
    logits, masked = torch.randn(6, 50), torch.rand(6, 50) < 0.6
    masked[:, 3] = False
    given = logits.masked_fill(masked, float("-inf")).requires_grad_()
    out = selective_logprob(given, torch.full((6,), 3), backend=backend)
    (grad,) = torch.autograd.grad(out.logprobs.sum() + out.entropy.sum(), given)
    assert (grad[masked] == 0).all() and (grad[~masked] != 0).any()
    for row in range(6):
        kept = logits[row][~masked[row]].double().log_softmax(0)
        where = int((~masked[row])[:3].sum())
        torch.testing.assert_close(out.logprobs[row].double(), kept[where], rtol=1e-5, atol=1e-5)
        entropy = -(kept.exp() * kept).sum()
        torch.testing.assert_close(out.entropy[row].double(), entropy, rtol=1e-5, atol=1e-5)
