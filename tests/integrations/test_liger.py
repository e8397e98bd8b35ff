"""Ours in place of Liger 0.8.5's fused GRPO loss: same call, same loss, gradients and metrics."""

from __future__ import annotations

import inspect

import pytest
import torch

from siri_kernels.integrations.liger import LigerFusedLinearGRPOLoss as Ours

chunked = pytest.importorskip("liger_kernel.chunked_loss", reason="Liger is not installed")
Theirs = chunked.LigerFusedLinearGRPOLoss


@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_parameters_are_ligers(method):
    def shape(cls):
        parameters = inspect.signature(getattr(cls, method)).parameters.values()
        return [(p.name, p.default) for p in parameters]

    assert shape(Ours) == shape(Theirs)


@pytest.mark.parametrize(
    "extra", ["none", "old", "reference", "corrected", "weights", "items", "delta"]
)
@pytest.mark.parametrize(
    ("loss_type", "level"),
    [(x, "token") for x in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo")]
    + [(x, "sequence") for x in ("grpo", "dapo", "luspo")],
)
def test_equals_liger(loss_type, level, extra):
    torch.manual_seed(1)
    rows, length, width, vocabulary = 5, 7, 12, 41
    hidden, weight = torch.randn(rows, length, width), torch.randn(vocabulary, width) / 3
    bias, ids = torch.randn(vocabulary), torch.randint(0, vocabulary, (rows, length))
    mask = torch.arange(length) < torch.tensor([7, 3, 5, 1, 6])[:, None]
    inputs = {"selected_token_ids": ids, "attention_mask": mask.long()}
    inputs["advantages"] = torch.tensor([1.0, -0.8, 0.3, -1.2, 0.5])
    options = {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.0}
    options |= {"temperature": 0.8, "max_completion_length": 9, "compiled": False}
    logits = (hidden @ weight.T + bias) / 0.8
    logps = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    if extra != "none":
        inputs["old_per_token_logps"] = logps + 0.3 * torch.randn_like(logps)
    if extra in ("reference", "corrected") and loss_type != "luspo":
        options |= {"beta": 0.1, "use_bias_correction_kl": extra == "corrected"}
        inputs |= {"ref_input": hidden + 0.1, "ref_weight": weight + 0.1, "ref_bias": bias}
    if extra == "weights":
        wide = 1 if loss_type == "luspo" else length
        inputs["vllm_is_ratio"] = torch.rand(rows, wide) * 2
        inputs["vllm_is_ratio"][0] = 0.0
    if extra == "items":
        inputs["num_items_in_batch"] = torch.tensor(50)
    if extra == "delta":
        options["delta"] = 1.25
    if loss_type == "cispo":
        options["epsilon_high"] = 1.1
    results = []
    for cls in (Ours, Theirs):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        options_now = {k: v for k, v in options.items() if k != "delta" or loss_type != "cispo"}
        loss, metrics = cls(use_ref_model=bool(options["beta"]), **options_now)(
            leaves[0], leaves[1], bias=leaves[2], **inputs
        )
        results.append((loss, *torch.autograd.grad(loss, leaves), metrics))
    (*got, mine), (*want, theirs) = results
    assert want[1].abs().max() > 1e-4
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-6)
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        assert a.item() == pytest.approx(b.item(), abs=1e-5)
    if extra == "old" and level == "token" and loss_type in ("dapo", "cispo"):
        assert theirs[-1] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "dr_grpo"}, "max_completion_length is required"),
        (
            {"loss_type": "luspo"},
            r"importance_sampling_level='token' \(the default\) and beta=0.04 \(the default\).*"
            "set importance_sampling_level='sequence' and beta=0.0",
        ),
        (
            {"loss_type": "luspo", "importance_sampling_level": "sequence"},
            r"got beta=0.04 \(the default\), where.*set .*beta=0.0",
        ),
        (
            {"loss_type": "luspo", "beta": 0.0},
            r"got importance_sampling_level='token' \(the default\), where.*set",
        ),
        (
            {"loss_type": "luspo", "beta": 0.5, "importance_sampling_level": "sequence"},
            "got beta=0.5, where.*set .*beta=0.0",
        ),
        ({"loss_type": "sapo", "importance_sampling_level": "sequence"}, "'token'"),
        ({"delta": 1.1}, "delta must be at least"),
        ({"loss_type": "ppo"}, "loss_type must be one of"),
        ({"sapo_temperature_pos": 0.0}, "sapo_temperature_pos must be > 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Ours(**options)


def test_luspo_refuses_a_weight_for_each_token():
    loss = Ours(loss_type="luspo", importance_sampling_level="sequence", beta=0.0)
    rows, length = 2, 3
    call = (torch.randn(rows, length, 4), torch.randn(7, 4), torch.ones(rows, length).long())
    mask, advantages = torch.ones(rows, length), torch.tensor([1.0, -1.0])
    for shape in ((rows,), (rows, 1)):
        loss(*call, mask, advantages, vllm_is_ratio=torch.ones(shape))
    with pytest.raises(ValueError, match=r"vllm_is_ratio must have shape \[B, 1\]"):
        loss(*call, mask, advantages, vllm_is_ratio=torch.ones(rows, length))
