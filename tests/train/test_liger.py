"""``model.liger``: kernels where they can be had, an error where they were asked for and cannot."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from siri_train.commands.sft import supervise
from siri_train.config.base import ConfigError
from siri_train.model import lora
from siri_train.model.policy import Policy, apply_liger, load_policy
from siri_train.train import train

CPU = torch.device("cpu")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A liger-kernel that writes down how it is called and knows qwen2 only."""
    seen: list[dict[str, Any]] = []
    package, inner = ModuleType("liger_kernel.transformers"), ModuleType("monkey_patch")
    package._apply_liger_kernel_to_instance = lambda **kwargs: seen.append(kwargs)  # type: ignore[attr-defined]
    inner.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen2": None}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", inner)
    return seen


def test_on_takes_the_kernels_but_not_the_head(policy: Policy, calls: list[dict[str, Any]]) -> None:
    assert apply_liger(policy.model, required=True)
    (call,) = calls
    assert call == {
        "model": policy.model, "cross_entropy": False, "fused_linear_cross_entropy": False
    }  # fmt: skip


def test_on_is_refused_without_a_gpu(tiny: Any, calls: list[dict[str, Any]]) -> None:
    config = tiny("model.liger=on", "device=cpu")
    for run in (train, supervise):
        with pytest.raises(ConfigError, match="model.liger: on, .* need a GPU"):
            run(config if run is train else tiny("model.liger=on", "device=cpu", "sft.steps=1"))
        assert not config.run_dir.exists() or not any(config.run_dir.iterdir())
    assert calls == []


@pytest.mark.parametrize("liger", ["auto", "off"])
def test_a_cpu_stays_without(tiny: Any, calls: list[dict[str, Any]], liger: str) -> None:
    load_policy(tiny(f"model.liger={liger}").model, CPU)
    assert calls == []


def test_auto_does_without_what_on_refuses_to_miss(
    policy: Policy,
    calls: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(policy.model.config, "model_type", "other", raising=False)
    assert not apply_liger(policy.model, required=False)
    assert "no kernels for 'other'" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no kernels for 'other'; use auto or off"):
        apply_liger(policy.model, required=True)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)
    assert not apply_liger(policy.model, required=False)
    with pytest.raises(ConfigError, match="cannot be imported"):
        apply_liger(policy.model, required=True)
    assert calls == []


def test_the_real_package_patches_norms_and_mlps(policy: Policy) -> None:
    pytest.importorskip("liger_kernel", reason="Liger is installed on Linux only")
    from transformers.models.qwen2 import modeling_qwen2

    before = dict(vars(modeling_qwen2))  # Liger changes the module too, not only the instance
    head = policy.model.get_output_embeddings()
    forward = policy.model.forward
    try:
        assert apply_liger(policy.model, required=True)
        for module in policy.model.modules():
            if type(module).__name__ in ("Qwen2RMSNorm", "Qwen2MLP"):
                assert "liger" in module.forward.__func__.__module__
        assert "liger" in modeling_qwen2.apply_rotary_pos_emb.__module__
        assert policy.model.get_output_embeddings() is head
        assert policy.model.forward == forward  # Liger's would take the head away from us
    finally:
        vars(modeling_qwen2).update(before)


def test_lora_without_peft_names_the_package(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="model.lora: needs the package peft"):
        load_policy(tiny("model.lora={}").model, CPU)


def test_merging_leaves_other_weights_alone() -> None:
    a, b, w = torch.randn(2, 5), torch.randn(3, 2), torch.randn(3, 5)
    state = {
        "x.q.base_layer.weight": w, "x.q.base_layer.bias": w[:, 0],
        "x.q.lora_A.default.weight": a, "x.q.lora_B.default.weight": b, "n.weight": w[0],
    }  # fmt: skip
    plain = lora.merged(state, 0.5)
    assert plain.keys() == {"x.q.weight", "x.q.bias", "n.weight"}
    torch.testing.assert_close(plain["x.q.weight"], w + 0.5 * b @ a)
    assert torch.equal(plain["x.q.bias"], w[:, 0]) and torch.equal(plain["n.weight"], w[0])
    assert lora.adapters(state).keys() == {k for k in state if "lora" in k}
