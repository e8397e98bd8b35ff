"""The bench's inputs are what their names say."""

from __future__ import annotations

import pytest
import torch

from bench.inputs import language_inputs, uniform_inputs


@pytest.mark.costly
@pytest.mark.parametrize("entropy", [0.5, 1.0])
def test_entropy_and_tail(entropy):
    hidden, weight, targets = language_inputs(256, 128, 20_000, entropy)
    p = (hidden @ weight.T).softmax(-1)
    mean = float(-(p * p.clamp(min=1e-30).log()).sum(-1).mean())
    assert mean == pytest.approx(entropy, rel=0.3)
    top = p >= 1e-5
    if entropy == 0.5:
        assert 40 < float(top.sum(1).float().mean()) < 90
        assert int(top.any(0).sum()) > 1000, "tokens must have different top entries"
    assert float(p.gather(1, targets[:, None]).mean()) > 0.3 / (1 + entropy)
    again = language_inputs(256, 128, 20_000, entropy)
    assert all(torch.equal(a, b) for a, b in zip((hidden, weight, targets), again, strict=True))


def test_uniform():
    hidden, weight, _ = uniform_inputs(64, 32, 5000)
    p = (hidden @ weight.T).softmax(-1)
    assert float(p.max()) < 1.2 / 5000 and float(p.min()) > 0.8 / 5000
