"""``model.lora.targets`` is checked before any work, by what the model has."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from siri_train.cli import main
from siri_train.config.base import ConfigError
from siri_train.config.model import LoraConfig
from siri_train.model.lora import check_lora

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
FAMILIES = ["qwen2", "llama", "gemma2", "phi3", "mixtral"]


def skeleton(kind: str) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES))


def refusal(model: Any, targets: Any) -> str | None:
    """The line; None where nothing but peft, which not every machine has, may be missing."""
    try:
        check_lora(model, LoraConfig(targets=targets))
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
        return None if "needs the package peft" in str(error) else str(error)
    return None


def layers(model: Any) -> tuple[set[str], set[str]]:
    """Last names of the layers that are linear, and of those that are not."""
    head = model.get_output_embeddings()
    named = [(name.rpartition(".")[2], module) for name, module in model.named_modules() if name]
    linear = {n for n, m in named if isinstance(m, torch.nn.Linear) and m is not head}
    return linear, {n for n, m in named if not isinstance(m, torch.nn.Linear) or m is head}


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_name_of_a_model_is_taken_or_refused_with_those_there_are(kind: str) -> None:
    model = skeleton(kind)
    linear, others = layers(model)
    assert linear and refusal(model, "all-linear") is None
    rng = random.Random(kind)
    assert refusal(model, sorted(linear)) is None
    for name in sorted(linear):
        assert refusal(model, [name]) is None
    for name in sorted(others - linear):
        said = refusal(model, [*rng.sample(sorted(linear), rng.randrange(len(linear))), name])
        assert said is not None and said.startswith("model.lora.targets: ") and repr(name) in said
        if "head or embedding" not in said:
            assert all(one in said for one in linear)


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20)
)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_a_name_that_no_layer_has(name: str) -> None:
    said = refusal(MODEL, ["q_proj", name])
    if name in LINEAR:
        assert said is None
    else:
        assert said is not None and "v_proj" in said or "head or embedding" in str(said)


MODEL = skeleton("qwen2")
LINEAR = layers(MODEL)[0]


def test_no_name_and_no_linear_layer() -> None:
    assert "got []; takes all-linear, or names among" in str(refusal(MODEL, []))
    with torch.device("meta"):
        gpt2 = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_layer=1, n_embd=48))
    for targets in ("all-linear", ["c_attn"], ["c_proj"]):
        assert "GPT2LMHeadModel has no torch.nn.Linear but its head" in str(refusal(gpt2, targets))


@pytest.mark.parametrize("model", ["model.path=embedded", "model={scratch: {}}"])
@pytest.mark.parametrize("command", ["train", "sft"])
def test_it_is_said_before_work(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, model: str
) -> None:
    config = tiny("sft={steps: 2, batch_size: 4}")
    (tmp_path / "recipe.yaml").write_text(config.to_yaml())
    arguments = [command, str(tmp_path / "recipe.yaml"), model, "model.lora.targets=[q_proj, nope]"]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "model.lora.targets: Qwen2ForCausalLM has no layer 'nope'; takes all-linear" in said
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in said
    assert not config.run_dir.exists()
