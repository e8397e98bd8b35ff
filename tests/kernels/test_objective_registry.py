"""An objective that is a formula and nothing else, on every way through ``policy_loss``."""

from __future__ import annotations

import itertools

import pytest
import torch

from siri_kernels import policy_loss
from siri_kernels.policy_loss import RolloutCorrection, objectives
from siri_kernels.policy_loss.formulas import OBJECTIVES, Objective

from .test_policy_loss import AGGREGATIONS, assert_same, make, with_gradients
from .test_policy_loss_objectives import OBJECTIVES as OPTIONS
from .test_policy_loss_objectives import aggregated

# Not gmpo, which clips the token ratios before its formula sees their mean.
NAMES = [name for name in OPTIONS if name != "gmpo"]
WAYS = list(itertools.product(NAMES, ("token", "sequence"), AGGREGATIONS))


@pytest.mark.parametrize(("name", "ratio", "aggregation"), WAYS)
def test_a_formula_alone_gives_what_derivatives_by_hand_give(
    name: str, ratio: str, aggregation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = WAYS.index((name, ratio, aggregation))
    torch.manual_seed(at)
    batch = make([3, 0, 40, 1, 17])
    options = {
        **OPTIONS[name], **aggregated(aggregation), "ratio": ratio, "kl_coef": 0.1,
        "rollout_correction": RolloutCorrection("mask", "token", high=1.3, low=0.6),
        "off_policy_threshold": 0.05,
    }  # fmt: skip
    by_hand = with_gradients(batch, backend="portable", **options)
    monkeypatch.setattr(objectives, "BY_HAND", ())
    assert_same(with_gradients(batch, backend="portable", **options), by_hand)
    assert_same(with_gradients(batch, backend="reference", **options), by_hand)
    # What Triton's kernel does not have is computed as elsewhere.
    single = make([3, 0, 40, 1, 17], dtype=torch.float32)
    got = with_gradients(single, backend=None, **options)
    want = with_gradients(single, backend="portable", **options)
    assert torch.equal(got[0].loss, want[0].loss) and torch.equal(got[1][0], want[1][0])


def test_a_new_one_takes_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """``-A r^2 / 2``, whose gradient is ``-A r^2``."""
    monkeypatch.setitem(OBJECTIVES, "half square", Objective(lambda _, r, a, __: -a * r * r / 2))
    old = torch.tensor([-1.0, -2.0, -0.5])
    logprobs = torch.tensor([-1.2, -1.5, -0.5], requires_grad=True)
    ends, advantages = torch.tensor([0, 1, 3], dtype=torch.int32), torch.tensor([2.0, -1.0])
    out = policy_loss(logprobs, old, advantages, ends, objective="half square")
    squared = (2 * (logprobs.detach() - old)).exp() * torch.tensor([2.0, -1.0, -1.0])
    torch.testing.assert_close(out.loss.detach(), -squared.mean() / 2)
    torch.testing.assert_close(torch.autograd.grad(out.loss, logprobs)[0], -squared / 3)
    assert out.metrics["clip_frac_low"] == 0
    with pytest.raises(ValueError, match="'half square'; got 'square'"):
        policy_loss(logprobs, old, advantages, ends, objective="square")


def test_under_compile_it_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "plain", Objective(lambda _, r, a, __: -a * r))
    old, ends = torch.tensor([-1.0]), torch.tensor([0, 1], dtype=torch.int32)

    def loss(logprobs: torch.Tensor) -> torch.Tensor:
        return policy_loss(logprobs, old, torch.ones(1), ends, objective="plain").loss

    with pytest.raises(ValueError, match="objective='plain' has a formula and no derivatives"):
        torch.compile(loss, backend="eager")(torch.tensor([-1.1], requires_grad=True))
