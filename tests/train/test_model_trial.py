"""A model whose layers mix the sequences of a packed row is refused; all others pass."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from siri_train.config.base import ConfigError
from siri_train.config.model import ModelConfig
from siri_train.model.attention import prepare
from siri_train.model.files import ModelFileError
from siri_train.model.folder import check_model
from siri_train.model.policy import load_policy
from siri_train.model.trial import check_layers, try_model
from tests.train.damage import edit_json, model_folder

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "head_dim": 8,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4, "mamba_dt_rank": 4}
# Kind by kind: what carries a state from token to token, and attention of an own make.
MIXING: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {**LINEAR, "layer_types": ["linear_attention", "full_attention"]},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"], "num_local_experts": 2},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": {"lru_width": 32, "block_types": ["recurrent", "attention"], "head_dim": 8},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 32, "mamba_d_head": 8, "head_dim": 8},
    "mamba": {"state_size": 4},
    "falcon": {},
    "stablelm": {},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "bloom": {"n_layer": 2, "n_head": 4},
}
APART = ("llama", "qwen3", "mistral", "gemma2", "gpt2", "gpt_neox", "mixtral", "biogpt", "phi")


def tiny(kind: str, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """A random model of an architecture."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **more})
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@pytest.mark.parametrize("kind", MIXING)
def test_a_model_that_mixes_sequences_is_refused_before_it_is_loaded_or_by_its_run(
    kind: str, tmp_path: Path
) -> None:
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    folder = model_folder(tmp_path / "m")
    tiny(kind, **MIXING[kind]).save_pretrained(folder)
    with pytest.raises(ConfigError) as caught:
        load_policy(ModelConfig(path=str(folder)), torch.device("cpu"))
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and "config.json" in text and "give " in text
    assert "packed row" in text or "cannot be" in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", APART)
def test_attention_passes(kind: str, dtype: torch.dtype) -> None:
    model = tiny(kind, dtype, **({"sliding_window": 3} if kind in ("mistral", "gemma2") else {}))
    check_layers(model.config)
    prepare(model)
    try_model(model)


@pytest.mark.parametrize("seed", range(4))
def test_a_leak_of_any_size_is_seen(seed: int) -> None:
    """A layer that adds a drawn share of the token before, which of a sequence's first token is
    another sequence's."""
    rng = random.Random(seed)
    model = tiny(rng.choice(["llama", "qwen3", "gpt2"]))
    prepare(model)
    try_model(model)
    share = 10 ** rng.uniform(-3, 0)
    words = model.get_input_embeddings()
    words.register_forward_hook(lambda _, __, out: out + share * out.roll(1, dims=1))
    with pytest.raises(ValueError, match="packed row"):
        try_model(model)


@pytest.mark.parametrize("key", ["layer_types", "layers_block_type"])
@pytest.mark.parametrize("word", ["linear_attention", "mamba2", "conv", "recurrent", "moe_mamba"])
def test_a_layer_that_is_no_attention_is_named(key: str, word: str) -> None:
    config = AutoConfig.for_model("llama", **SMALL)
    setattr(config, key, ["full_attention", word])
    with pytest.raises(ModelFileError, match=rf"{key} holds '{word}'.*give a model"):
        check_layers(config)
    setattr(config, key, ["full_attention", "sliding_attention", "chunked_attention"])
    check_layers(config)


@pytest.mark.parametrize("theta", [0, -5, float("nan")])
def test_a_rotary_base_that_is_no_base(theta: float, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    rope = {"rope_type": "default", "rope_theta": theta}
    edit_json(folder / "config.json", rope_parameters=rope)
    with pytest.raises(ConfigError, match="not finite"):
        load_policy(ModelConfig(path=str(folder)), torch.device("cpu"))


@pytest.mark.parametrize("seed", range(8))
def test_shares_and_epsilons_have_bounds(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    folder = model_folder(tmp_path / "m")
    key = rng.choice(["attention_dropout", "rms_norm_eps", "resid_pdrop", "layerdrop", "x_epsilon"])
    odd = rng.choice([-1, 1]) * 10 ** rng.uniform(0.1, 30)
    edit_json(folder / "config.json", **{key: odd})
    with pytest.raises(ConfigError, match=rf"config.json: {key} is .*takes a number from 0"):
        check_model(folder, "model.path")
    edit_json(folder / "config.json", **{key: rng.uniform(0, 0.9)})
    check_model(folder, "model.path")
