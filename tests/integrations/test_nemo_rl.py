"""NeMo-RL's released package is empty: its contract, written down again from its source."""

from __future__ import annotations

import enum
import pickle
import sys
from types import ModuleType

import pytest
import torch

from siri_kernels.integrations.nemo_rl import SiriLoss

ROWS, LENGTH = 6, 11


@pytest.fixture
def interfaces(monkeypatch):
    """The two enums of nemo_rl.algorithms.loss.interfaces at 7ea279a."""
    for name in ("nemo_rl", "nemo_rl.algorithms", "nemo_rl.algorithms.loss"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = ModuleType("nemo_rl.algorithms.loss.interfaces")
    module.LossType = enum.Enum("LossType", ["TOKEN_LEVEL", "SEQUENCE_LEVEL"])
    module.LossInputType = enum.Enum("LossInputType", ["LOGIT", "LOGPROB"])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def batch():
    """As ClippedPGLossFn takes it: [B, L] and the log-probs of tokens 1 to L - 1."""
    prev = -torch.rand(ROWS, LENGTH, dtype=torch.float64) * 3
    advantages = torch.randn(ROWS, 1, dtype=torch.float64).expand(-1, LENGTH)
    data = {
        "prev_logprobs": prev,
        "generation_logprobs": prev + 0.3 * torch.randn_like(prev),
        "advantages": advantages,
        "token_mask": (torch.rand(ROWS, LENGTH) < 0.7).double(),
        "sample_mask": torch.tensor([1.0, 1, 0, 1, 1, 1], dtype=torch.float64),
    }
    current = (prev + 0.4 * torch.randn_like(prev))[:, 1:].contiguous().requires_grad_()
    return current, data


def clipped_pg(current, data, tokens, low, high, dual_clip=None, tis=None):
    """``ClippedPGLossFn`` with token_level_loss, without KL."""
    mask = data["token_mask"][:, 1:] * data["sample_mask"][:, None]
    prev, advantages = data["prev_logprobs"][:, 1:], data["advantages"][:, 1:]
    ratios = (current - prev).exp()
    loss = torch.max(-advantages * ratios, -advantages * ratios.clamp(1 - low, 1 + high))
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.min(loss, -advantages * dual_clip), loss)
    if tis is not None:
        loss = loss * (prev - data["generation_logprobs"][:, 1:]).exp().clamp(max=tis)
    return (loss * mask).sum() / tokens


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({}, {}),
        ({"dual_clip": 1.5}, {"dual_clip": 1.5}),
        ({"rollout_correction": "tis"}, {"tis": 2.0}),
    ],
)
def test_micro_batches_add_up_to_the_clipped_loss(options, theirs):
    current, data = batch()
    tokens = (data["token_mask"][:, 1:] * data["sample_mask"][:, None]).sum()
    loss_fn = SiriLoss(0.1, 0.3, **options)
    parts, metrics = [], []
    for rows in (slice(0, 2), slice(2, 6)):
        part = {name: value[rows] for name, value in data.items()}
        loss, found = loss_fn(
            current[rows], part, global_valid_seqs=torch.tensor(5.0), global_valid_toks=tokens
        )
        parts.append(loss)
        metrics.append(found)
    got = sum(parts)
    want = clipped_pg(current, data, tokens, 0.1, 0.3, **theirs)
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(got, current), torch.autograd.grad(want, current), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert want.abs() > 1e-3
    mask = (data["token_mask"][:, 1:] * data["sample_mask"][:, None]).bool()
    ratio = (current - data["prev_logprobs"][:, 1:]).exp()[mask].mean().item()
    assert sum(m["probs_ratio"] for m in metrics) == pytest.approx(ratio, rel=1e-5)
    assert sum(m["loss"] for m in metrics) == pytest.approx(want.item(), rel=1e-5)
    assert sum(m["num_valid_samples"] for m in metrics) == 5


def test_the_protocol(interfaces):
    """What NeMo-RL reads of a loss; and it is sent to workers by pickle."""
    loss_fn = pickle.loads(pickle.dumps(SiriLoss(clip_high=0.4)))
    assert loss_fn.loss_type is interfaces.LossType.TOKEN_LEVEL
    assert loss_fn.input_type is interfaces.LossInputType.LOGPROB
    assert loss_fn.reference_policy_kl_penalty == 0 and not loss_fn.use_fused_linear_logprobs
    assert loss_fn.options["clip_high"] == 0.4
