"""Dense backward over the ids that matter to the batch: its bound, its error, when it is used."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from siri_kernels import linear_logprob, take_backward_stats
from siri_kernels.linear_logprob.portable import forward, ordered_backward

from .helpers import gradients, leaves
from .test_linear_logprob_sparse import (  # noqa: F401  (fixtures)
    batches,
    check_error_bound,
    relative,
    small_lists,
    wide_eps,
    zipf_head,
)


@pytest.fixture
def parts(monkeypatch):
    """The remainders of every use."""
    found = []
    recompute = ordered_backward.recompute

    def noted(*given):
        grads, left = recompute(*given)
        found.append(left)
        return grads, left

    monkeypatch.setattr(ordered_backward, "recompute", noted)
    return found


@pytest.mark.costly
def test_error_bound(wide_eps, parts, monkeypatch):  # noqa: F811
    monkeypatch.setattr(forward, "tile_shape", lambda vocabulary, device: (64, 8))
    monkeypatch.setattr(ordered_backward, "_MOST", 0.95)

    @settings(max_examples=150, deadline=None)
    @given(batches())
    def check(batch):
        check_error_bound((*batch[:3], (0,), batch[4]))

    check()
    assert any(bool(left.any()) for left in parts), "ids must be left out in some cases"


@pytest.mark.parametrize("temperature", [1.0, "per token"])
def test_the_error_is_below_that_of_bfloat16(parts, temperature):
    hidden, weight, targets = zipf_head(80, 12_000, 3)
    if temperature != 1.0:
        temperature = 0.9 + 0.2 * torch.rand(80)
    bias = torch.randn(12_000) / 10
    targets[:5] = -100
    inputs, up = leaves(hidden, weight, bias), torch.randn(80)
    exact = leaves(hidden.double(), weight.double(), bias.double())
    half = leaves(hidden.bfloat16(), weight.bfloat16(), bias.bfloat16())

    def grads(given, **options):
        out = linear_logprob(*given[:2], targets, bias=given[2], temperature=temperature, **options)
        return gradients([out.logprobs], given, [up])

    want = grads(exact, backend="reference")
    take_backward_stats()
    got = grads(inputs)
    assert parts and bool(parts[0].any()), "ids must be left out"
    assert float(take_backward_stats().tail_mass_max) > 0
    for mine, other, true in zip(got, grads(half, tail=0.0), want, strict=True):
        assert relative(mine, true) < relative(other, true)
    again = grads(inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))

    compiled = torch.compile(linear_logprob, backend="eager", fullgraph=True)
    out = compiled(*inputs[:2], targets, bias=inputs[2], temperature=temperature)
    for mine, other in zip(gradients([out.logprobs], inputs, [up]), got, strict=True):
        assert torch.equal(mine, other)


def test_where_it_does_not_pay(parts):
    """A uniform softmax, a gradient of the entropy, a softcap, 16-bit weights."""
    hidden, weight, targets = zipf_head(40, 9000, None)
    inputs = leaves(hidden, weight)
    linear_logprob(*inputs, targets).logprobs.sum().backward()
    hidden, weight, targets = zipf_head(40, 9000, 3)
    inputs = leaves(hidden, weight)
    linear_logprob(*inputs, targets).entropy.sum().backward()
    linear_logprob(*inputs, targets, softcap=30.0).logprobs.sum().backward()
    linear_logprob(*leaves(hidden.bfloat16(), weight.bfloat16()), targets).logprobs.sum().backward()
    assert not parts
    linear_logprob(*inputs, targets).logprobs.sum().backward()
    assert len(parts) == 1
