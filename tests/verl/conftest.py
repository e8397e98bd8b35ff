"""The real verl 0.9.1; run by ``make test-verl`` in the environment of scripts/verl.sh."""

from __future__ import annotations

import copy
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# Not collected elsewhere: `make test` has no verl. Asked for by name there, pytest finds nothing
# and fails. Entry points are what is tested, so a verl on the path alone is not enough.
try:
    importlib.metadata.distribution("TransferQueue")
except importlib.metadata.PackageNotFoundError:
    collect_ignore_glob = ["test_*.py"]
else:
    import verl.utils.experimental.torch_functional as torch_seam
    import verl.utils.kernel.linear_cross_entropy as triton_seam

    from siri_train.config.recipe import parse_config
    from siri_train.config.run import RunConfig
    from siri_train.integrations.verl import command
    from siri_train.integrations.verl.options import Machines
    from siri_train.model.demo_model import START_FOLDER


@pytest.fixture(autouse=True)
def fresh_random_inputs(request: pytest.FixtureRequest) -> None:
    """Each test draws its own numbers, the same ones in every run."""
    torch.manual_seed(sum(map(ord, request.node.nodeid)))


@pytest.fixture(autouse=True)
def verls_own_head() -> Iterator[None]:
    """A configuration with ``external_lib`` replaces it for the whole process; put back after."""
    before = triton_seam.linear_cross_entropy, torch_seam.FusedLinearForPPO.forward
    yield
    triton_seam.linear_cross_entropy, torch_seam.FusedLinearForPPO.forward = before
    sys.modules.pop("siri_kernels.integrations.verl_head", None)


TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "train": [{"kind": "embedded", "size": 16}],
        "eval": [{"kind": "embedded", "size": 4, "seed": 1}],
        "max_prompt_len": 16,
    },
    "schedule": {"max_len": 48, "min_len": 16, "cycle": 4},
    "rollout": {"prompts": 4, "group_size": 4},
    "train": {"steps": 4, "lr": 1e-3, "token_budget": 256},
    "eval": {"every": 4},
    "checkpoint": {"every": 1, "keep_last": 1},
}


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded start as a Llama: verl wants a newline in the vocabulary of every Qwen."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    start = AutoModelForCausalLM.from_pretrained(START_FOLDER)
    shape = start.config.to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
             "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
             "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "bos_token_id",
             "eos_token_id", "pad_token_id")  # fmt: skip
    config = LlamaConfig(**{name: shape[name] for name in names}, attention_bias=True)
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(start.state_dict(), strict=False)
    assert not unexpected and all(name.endswith("o_proj.bias") for name in missing)
    for name, parameter in model.named_parameters():
        if name.endswith("o_proj.bias"):
            torch.nn.init.zeros_(parameter)
    ids = torch.randint(3, config.vocab_size, (2, 30))
    assert torch.allclose(model(ids).logits, start(ids).logits, atol=1e-4)
    folder = tmp_path_factory.mktemp("llama") / "start"
    model.generation_config = start.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(START_FOLDER).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path, llama: Path) -> Any:
    """``recipe("a.b=c", ...)``: a tiny recipe with its run in ``tmp_path/run``."""

    def make(*overrides: str) -> RunConfig:
        raw = copy.deepcopy(TINY)
        return parse_config(raw, [f"output={tmp_path / 'run'}", f"model.path={llama}", *overrides])

    return make


@pytest.fixture
def verl_config(recipe: Any) -> Any:
    """``verl_config("a.b=c", ...)``: what verl composes of the command that is made of a recipe."""

    def make(*overrides: str, extra: tuple[str, ...] = ()) -> Any:
        return command.prepare(recipe(*overrides), Machines(gpus=1), extra).config

    return make
