"""Liger 0.8.5's GRPO loss against ours over the same linear head.

``LigerFusedLinearGRPOLoss`` runs on a CPU; so does ``triton_grpo_loss`` in Triton's interpreter,
which needs a fresh process.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from siri_kernels import linear_logprob, policy_loss, varlen

from ..interpreter import DEVICE, INTERPRETED
from .peers import Compare, padded

chunked = pytest.importorskip("liger_kernel.chunked_loss", reason="Liger is not installed")

CAP, WIDTH, VOCABULARY = 40, 16, 61


@pytest.fixture(scope="module")
def compare():
    compare = Compare("Liger")
    yield compare
    print(f"\n{compare}")


def head(batch, device="cpu"):
    shape = (*batch.old.shape, WIDTH)
    hidden = torch.randn(shape, device=device)
    weight = torch.randn(VOCABULARY, WIDTH, device=device) / WIDTH**0.5
    ids = torch.randint(0, VOCABULARY, batch.old.shape, device=device)
    return hidden.requires_grad_(), weight.requires_grad_(), ids


def near(logprobs, size):
    return (logprobs + size * torch.randn_like(logprobs)).detach()


def options_of(loss_type, batch):
    rows = batch.rows
    return {
        "grpo": {"aggregation": "seq-mean-token-mean", "denominator": rows},
        "bnpo": {"aggregation": "token-mean"},
        "dapo": {"aggregation": "token-mean"},
        "dr_grpo": {"aggregation": "token-sum-norm", "denominator": rows * CAP},
        "cispo": {"objective": "cispo", "cispo_bounds": "trl"},
        "sapo": {
            "objective": "sapo",
            "aggregation": "seq-mean-token-mean",
            "denominator": rows,
        },
    }[loss_type]


@pytest.mark.draw(24)
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo", "cispo", "sapo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("extra", ["none", "kl", "unbiased kl", "delta", "weights"])
def test_fused_linear_grpo(compare, loss_type, level, extra):
    if level == "sequence" and loss_type in ("cispo", "sapo"):
        pytest.skip("Liger refuses it")
    if level == "sequence" and extra == "unbiased kl":
        pytest.skip("Liger weighs with the sequence's ratio, ours with the token's")
    if level == "sequence" and extra == "weights":
        pytest.skip(
            "with a weight a token the gradients are the sequence's mean of verl's and ours"
        )
    if loss_type in ("cispo", "sapo") and extra == "delta":
        pytest.skip("delta is of the clipped objective")
    batch = padded()
    hidden, weight, ids = head(batch)
    exact = linear_logprob(hidden, weight, ids, backend="reference").logprobs
    old, ref, rollout = near(exact, 0.4), near(exact, 0.3), near(exact, 0.2)
    high = 1.3 if loss_type == "cispo" else 0.28
    clipped = (old - rollout).exp().clamp(max=1.1) if extra == "weights" else None
    theirs = chunked.LigerFusedLinearGRPOLoss(
        beta=0.2 if "kl" in extra else 0.0,
        compiled=False,
        use_ref_model="kl" in extra,
        epsilon_low=0.2,
        epsilon_high=high,
        loss_type=loss_type,
        max_completion_length=CAP,
        importance_sampling_level=level,
        temperature=1.0,
        delta=1.4 if extra == "delta" else None,
        use_bias_correction_kl=extra == "unbiased kl",
    )
    loss, _ = theirs(
        hidden,
        weight,
        ids,
        batch.mask,
        batch.advantages.float(),
        ref_per_token_logps=ref,
        old_per_token_logps=old,
        vllm_is_ratio=clipped,
    )
    want = loss, *torch.autograd.grad(loss, (hidden, weight))

    def packed(values):
        return varlen.pack(values, batch.lengths).values

    options = {}
    if "kl" in extra:
        options = {"kl_coef": 0.2, "kl_unbiased": extra == "unbiased kl"}
    if extra == "delta":
        options = {"delta": 1.4}
    if extra == "weights":
        from siri_kernels.policy_loss import RolloutCorrection

        options = {"rollout_correction": RolloutCorrection("truncate", "token", high=1.1)}
    out = policy_loss(
        linear_logprob(packed(hidden), weight, packed(ids), tail=0.0).logprobs,
        packed(old),
        batch.advantages.float(),
        varlen.cu_seqlens_from(batch.lengths),
        mask=packed(batch.mask),
        ref_logprobs=packed(ref),
        rollout_logprobs=packed(rollout),
        clip_low=0.2,
        clip_high=high,
        ratio=level,
        **options,
        **options_of(loss_type, batch),
    )
    got = out.loss, *torch.autograd.grad(out.loss, (hidden, weight))
    compare(got, want, 2e-6)


@pytest.mark.costly
@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the test below runs here")
def test_triton_grpo_loss_interpreted():
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(
        [*command, "-k", "test_triton_grpo_loss and not interpreted"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-5000:] + run.stderr[-2000:]


@pytest.mark.skipif(not INTERPRETED and DEVICE == "cpu", reason="runs in the process of the above")
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "cispo", "sapo"])
def test_triton_grpo_loss(compare, loss_type):
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    batch = padded()
    ids = torch.randint(0, VOCABULARY, batch.old.shape, device=DEVICE)
    rows, length = ids.shape
    logits = torch.randn(rows, length + 1, VOCABULARY, device=DEVICE, requires_grad=True)
    exact = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[..., None])[..., 0]
    old, ref = near(exact, 0.4), near(exact, 0.3)
    high = 1.3 if loss_type == "cispo" else 0.28
    advantages, mask = batch.advantages.float().to(DEVICE), batch.mask.to(DEVICE)
    lengths = batch.lengths.to(DEVICE)

    def packed(values):
        return varlen.pack(values, lengths).values

    out = policy_loss(
        packed(exact),
        packed(old),
        advantages,
        varlen.cu_seqlens_from(lengths),
        mask=packed(mask),
        ref_logprobs=packed(ref),
        kl_coef=0.04,
        clip_low=0.2,
        clip_high=high,
        **options_of(loss_type, batch),
    )
    got = out.loss, *torch.autograd.grad(out.loss, logits)
    loss, *_ = triton_grpo_loss(
        logits,
        old,
        ref,
        ids,
        advantages,
        completion_mask=mask.int(),
        temperature=1.0,
        beta=0.04,
        eps_low=0.2,
        eps_high=high,
        inplace=False,
        loss_type=loss_type,
        max_completion_length=CAP,
        reduce=True,
    )
    compare(got, (loss, *torch.autograd.grad(loss, logits)), 1e-5)
