"""prime-rl is not on the package index: its contract, written down again from its source."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from siri_kernels.integrations.prime_rl import siri_loss


@dataclass
class LossInputs:
    """prime_rl.trainer.rl.loss.LossInputs at 559b447."""

    trainer_logprobs: torch.Tensor
    inference_logprobs: torch.Tensor
    ref_logprobs: torch.Tensor | None
    advantages: torch.Tensor
    loss_mask: torch.Tensor
    loss_weights: torch.Tensor | None = None


def clip_loss(inputs, low, high):
    """``ppo_clip_loss`` of prime-rl's docs/algorithms.md, with two bounds and the weights."""
    ratio = (inputs.trainer_logprobs - inputs.inference_logprobs).exp()
    clipped = ratio.clamp(1 - low, 1 + high)
    loss = -torch.min(ratio * inputs.advantages, clipped * inputs.advantages)
    if inputs.loss_weights is not None:
        loss = loss * inputs.loss_weights
    return loss[inputs.loss_mask].sum()


def sample(length, weights=False):
    old = -torch.rand(length, dtype=torch.float64) * 3
    new = (old + 0.4 * torch.randn(length, dtype=torch.float64)).requires_grad_()
    return LossInputs(
        new,
        old,
        None,
        torch.full((length,), torch.randn(()).item(), dtype=torch.float64),
        torch.rand(length) < 0.7,
        torch.rand(length, dtype=torch.float64) if weights else None,
    )


@pytest.mark.parametrize("weights", [False, True])
def test_a_micro_batch_of_samples_equals_the_clipped_loss(weights):
    """As ``compute_loss`` there: one sample at a time, summed, over the step's token count."""
    samples = [sample(n, weights) for n in (9, 1, 30, 4)]
    inputs = [s.trainer_logprobs for s in samples]
    results = []
    for loss_of in (
        lambda s: siri_loss(s, clip_low=0.1, clip_high=0.3).loss,
        lambda s: clip_loss(s, 0.1, 0.3),
    ):
        loss = sum(loss_of(s) for s in samples) / 57
        results.append((loss, *torch.autograd.grad(loss, inputs)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
    assert results[1][0].abs() > 1e-4


def test_metrics_stack_and_are_of_the_masked_tokens():
    one = sample(50)
    out = siri_loss(one)
    assert all(value.dim() == 0 for value in out.metrics.values())  # prime-rl stacks them
    ratio = (one.trainer_logprobs - one.inference_logprobs).exp()[one.loss_mask]
    assert out.metrics["ratio_mean"].item() == pytest.approx(ratio.mean().item(), rel=1e-5)
    assert out.metrics["clip_frac_low"] + out.metrics["clip_frac_high"] > 0


def test_an_empty_mask_gives_a_loss_that_backward_takes():
    """Every rank must run backward there, a fully truncated sample included."""
    one = sample(5)
    one.loss_mask[:] = False
    loss = siri_loss(one).loss
    (gradient,) = torch.autograd.grad(loss, one.trainer_logprobs)
    assert loss == 0 and not gradient.any()


def test_options_and_a_changed_contract():
    with pytest.raises(ValueError, match="objective must be"):
        siri_loss(sample(3), objective="dppo")
    with pytest.raises(TypeError, match="another form.*loss_mask"):
        siri_loss(
            SimpleNamespace(
                trainer_logprobs=torch.zeros(2),
                advantages=torch.zeros(2),
                inference_logprobs=torch.zeros(2),
            )
        )
