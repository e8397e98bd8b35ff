"""RL without dropout: an update computes what the sampler computed, whatever the model has."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from siri_train.config.base import ConfigError
from siri_train.model.attention import Layout, packed_forward, prepare
from siri_train.model.lora import _refuse_vocabulary
from siri_train.model.no_dropout import set_rl_mode
from siri_train.monitor import alarms
from siri_train.train import train
from tests.train.damage import edit_json, model_folder
from tests.train.test_metrics_page import QUIET

SMALL = {
    "vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"attention_dropout": 0.4, "num_key_value_heads": 2},
    "gpt2": {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3},
    # Its layers call the functional form themselves, and whole layers are dropped.
    "opt": {"dropout": 0.3, "layerdrop": 0.9, "word_embed_proj_dim": 32, "ffn_dim": 64},
    "gpt_neox": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "phi": {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attention_dropout": 0.3},
    "mixtral": {
        "attention_dropout": 0.3,
        "router_jitter_noise": 0.4,
        "num_local_experts": 4,
        "num_key_value_heads": 2,
    },
}


def run(model: Any, rows: torch.Tensor) -> torch.Tensor:
    with packed_forward(Layout.of([rows.shape[1]], torch.device("cpu"))) as packed:
        return model.base_model(input_ids=rows, **packed).last_hidden_state


@pytest.mark.draw(4)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_update_computes_what_the_sampler_did(family: str, checkpointing: bool) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **SMALL, **FAMILIES[family])
    )
    prepare(model)
    before = model.config.to_dict()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    rows = torch.randint(3, 37, (1, 20))
    up = torch.randn(1, 20, 32)
    want = run(model.eval(), rows)
    (want * up).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert not torch.equal(run(model.train(), rows), want)  # these models do drop

    model.zero_grad()
    set_rl_mode(model)
    have = run(model, rows)
    torch.testing.assert_close(have, want, rtol=0, atol=1e-6)
    (have * up).sum().backward()
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5)
    if checkpointing:
        layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
        assert layers and all(layer.training for layer in layers)  # activations are dropped still
    assert model.config.to_dict() == before


@pytest.mark.costly
@pytest.mark.parametrize("seed", range(2))
def test_a_run_of_a_model_with_dropout(seed: int, tiny: Any, tmp_path: Path) -> None:
    rng = random.Random(seed)
    folder = model_folder(tmp_path / "m")
    rate = round(rng.uniform(0.1, 0.7), 2)
    edit_json(folder / "config.json", attention_dropout=rate)
    out = train(
        tiny(
            f"model.path={folder}",
            "train.steps=1",
            f"model.gradient_checkpointing={'true' if seed else 'false'}",
            f"train.mini_batches={seed + 1}",
            f"loss.old_logprobs={'recompute' if seed else 'rollout'}",
        )
    )
    (row,) = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    assert row["rollout_ratio_max"] < 1.001 and abs(row["rollout_kl"]) < 1e-6
    assert (
        not (out / "alarms.jsonl").exists() or "mismatch" not in (out / "alarms.jsonl").read_text()
    )
    saved = json.loads((out / "checkpoints/step_000001/config.json").read_text())
    assert saved["attention_dropout"] == rate


@pytest.mark.parametrize(
    ("kl", "ratio", "alarm"),
    [
        (None, None, False), (0.0, 1.0, False), (0.01, 3.0, False), (0.2, 1.5, True),
        (1e-3, 16.1, True), (1.07, None, True), (float("nan"), 1.0, True),
        (1e-3, float("inf"), True), (None, float("nan"), True), (-0.3, 1.0, True),
    ],
)  # fmt: skip
def test_a_sampler_that_is_not_the_trainer_raises_an_alarm(
    kl: float | None, ratio: float | None, alarm: bool
) -> None:
    row = {**QUIET, "step": 3, "rollout_kl": kl, "rollout_ratio_max": ratio}
    raised = alarms.check(row, [])
    assert [a["alarm"] for a in raised] == ["sampler-mismatch"] * alarm
    assert all(a["cause"] and a["action"] and a["step"] == 3 for a in raised)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "targets", [["lm_head"], ["q_proj", "embed_tokens"], ["model.embed_tokens"]]
)
def test_adapters_on_head_or_embedding_are_refused(targets: list[str], tied: bool) -> None:
    config = AutoConfig.for_model("qwen2", **SMALL, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ConfigError, match=r"model\.lora\.targets: .*head or embedding"):
        _refuse_vocabulary(model, targets)
    _refuse_vocabulary(model, ["q_proj", "down_proj"])
