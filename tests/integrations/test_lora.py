"""LoRA through peft: only adapters learn, checkpoints hold merged weights, runs resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from siri_train.config.base import ConfigError
from siri_train.model import lora
from siri_train.model.policy import load_policy
from siri_train.plan.memory import Sizes
from siri_train.rollout.vllm.weight_sync import named_weights
from siri_train.train import train
from tests.torchrun import torchrun

from ..train.conftest import tiny  # noqa: F401

pytest.importorskip("peft", reason="peft is not installed; make test-peers installs it")
CPU = torch.device("cpu")


def state(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(
        folder / f"checkpoints/step_{step:06d}"
    ).state_dict()


@pytest.mark.parametrize("targets", ["all-linear", "[q_proj, down_proj]"])
def test_adapters_learn_and_nothing_else(tiny: Any, targets: str) -> None:  # noqa: F811
    config = tiny("model.lora.rank=4", f"model.lora.targets={targets}", "train.lr=0.01")
    base = load_policy(config.model.model_copy(update={"lora": None}), CPU).model.state_dict()
    run = train(config)
    got = state(run, 4)
    assert got.keys() == base.keys()
    wanted = ("proj",) if targets == "all-linear" else ("q_proj", "down_proj")
    for name, value in base.items():
        learnt = name.endswith("weight") and any(f"{w}." in name or w in name for w in wanted)
        difference = got[name] - value
        assert bool((difference != 0).any()) == learnt, name
        if learnt:
            assert torch.linalg.matrix_rank(difference.double(), rtol=1e-4) <= 4


def test_merged_weights_are_what_was_trained(tiny: Any) -> None:  # noqa: F811
    config = tiny("model.lora.rank=4", "model.lora.alpha=12")
    policy = load_policy(config.model, CPU)
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            assert p.requires_grad == (".lora_" in name)
            if ".lora_B" in name:
                p.normal_(0, 0.1)
    ids = torch.randint(4, 37, (2, 20))
    want = policy.model(input_ids=ids).logits
    weights, adapters = policy.weights()
    assert weights is not None and adapters is not None and lora.adapters(policy.model.state_dict())
    plain = load_policy(config.model.model_copy(update={"lora": None}), CPU).model
    before = plain(input_ids=ids).logits
    plain.load_state_dict(weights)
    torch.testing.assert_close(plain(input_ids=ids).logits, want, rtol=1e-4, atol=1e-4)
    assert (before - want).abs().max() > 0.1


def test_a_run_of_adapters_resumes_to_the_bit(tiny: Any, tmp_path: Path) -> None:  # noqa: F811
    recipe = ("model.lora.rank=4", "train.lr=0.01")
    whole = train(tiny(*recipe, f"output={tmp_path / 'whole'}"))
    train(tiny(*recipe, f"output={tmp_path / 'cut'}", "train.steps=2"))
    cut = train(tiny(*recipe, f"output={tmp_path / 'cut'}"))
    want = state(whole, 4)
    assert all(torch.equal(value, want[name]) for name, value in state(cut, 4).items())
    with pytest.raises(ConfigError, match="the optimiser's state is another model's"):
        train(tiny("model.lora.rank=8", f"output={tmp_path / 'cut'}", "train.steps=5"))


def test_two_ranks_train_the_adapters_of_one_process(tiny: Any, tmp_path: Path) -> None:  # noqa: F811
    recipe = ("model.lora.rank=4", "train.lr=0.001", "train.steps=2", "rollout.shards=2")
    alone = train(tiny(*recipe, f"output={tmp_path / 'alone'}"))
    config = tiny(*recipe, f"output={tmp_path / 'two'}")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    arguments = ("-m", "siri_train", "train", str(tmp_path / "config.yaml"))
    done = torchrun(*arguments, folder=tmp_path, timeout=400)
    assert done.returncode == 0, done.stderr
    start = load_policy(config.model.model_copy(update={"lora": None}), CPU).model.state_dict()
    want, got = state(alone, 2), state(config.run_dir, 2)

    def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return float(torch.cat([(a[n] - b[n]).flatten() for n in b]).norm())

    assert apart(got, want) < 1e-3 * apart(want, start)


def test_layers_that_do_not_exist_are_refused(tiny: Any) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="model.lora.targets"):
        load_policy(tiny("model.lora.targets=[nowhere]").model, CPU)


@pytest.mark.parametrize("targets", ["all-linear", "[q_proj, down_proj]"])
def test_the_memory_estimate_counts_adapters_as_peft_makes_them(
    tiny: Any,  # noqa: F811
    targets: str,
) -> None:
    config = tiny("model.lora.rank=4", f"model.lora.targets={targets}")
    model = load_policy(config.model, CPU).model
    real = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert Sizes.of(model.config).trained(config) == real > 0


def test_vllm_gets_the_merged_weights(tiny: Any) -> None:  # noqa: F811
    policy = load_policy(tiny("model.lora.rank=4", "model.lora.alpha=12").model, CPU)
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if ".lora_B" in name:
                p.normal_(0, 0.1)
    merged, _ = policy.weights()
    assert merged is not None
    sent = dict(
        named_weights(policy.model, torch.float32, untie=False, lora_scaling=policy.lora_scaling)
    )
    assert set(sent) == set(merged) - {"lm_head.weight"}  # tied: vLLM makes it of the embedding
    assert all(torch.equal(value, merged[name]) for name, value in sent.items())
