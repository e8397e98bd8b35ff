"""The frozen reference model of the KL term: what it is, that it stays, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from bench.memory import peak_bytes
from siri_train.commands.dry_run import dry_run
from siri_train.config.base import ConfigError
from siri_train.config.loss import LossConfig
from siri_train.config.recipe import load_config, parse_config
from siri_train.model.attention import prepare
from siri_train.model.demo_model import START_FOLDER
from siri_train.model.packing import Sample
from siri_train.model.policy import Policy
from siri_train.plan.memory import Sizes, estimate
from siri_train.train import train, update
from siri_train.trainer.optimizer import make_optimizer
from siri_train.trainer.reference_model import Reference
from tests.train.conftest import TINY
from tests.train.test_memory import DISTILL_7B, qwen

KL = "loss.kl_coef=0.2"


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def demo_model(folder: Path, seed: int = 0) -> Path:
    """The demo's start, with weights moved by ``seed``; 0: as they are."""
    shutil.copytree(START_FOLDER, folder)
    if seed:
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.02 * p.std() * torch.randn(p.shape, generator=draw)
        model.save_pretrained(folder)
    return folder


@pytest.mark.draw(2, "runs")
def test_at_the_first_update_the_start_is_the_policy_to_the_bit(tiny: Any) -> None:
    """One update a step: the first KL is 0, and its gradient too, so SIRI's weights come out."""
    last = []
    for name, extra in (("kl", (KL,)), ("plain", ("loss.skip_zero_advantage=false",))):
        config = tiny("train.steps=2", "train.mini_batches=1", *extra)
        config = config.model_copy(update={"output": f"{config.output}-{name}"})
        last.append(train(config))
    assert rows(last[0])[0]["ref_kl"] == 0.0 != rows(last[0])[1]["ref_kl"]
    one, two = (weights(run / "checkpoints" / "step_000001") for run in last)
    assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = (weights(run / "checkpoints" / "step_000002") for run in last)
    assert any(not torch.equal(one[name], two[name]) for name in one)


@pytest.mark.draw(2, "runs")
def test_a_strong_kl_term_holds_the_policy_at_its_reference(tiny: Any) -> None:
    def last_kl(coefficient: float) -> float:
        config = tiny("train.steps=6", f"loss.kl_coef={coefficient}")
        config = config.model_copy(update={"output": f"{config.output}-{coefficient}"})
        return sum(row["ref_kl"] for row in rows(train(config))[-3:])

    assert 0 < last_kl(10.0) < 0.5 * last_kl(1e-6)


@pytest.mark.draw(2, "runs")
@pytest.mark.parametrize("reference", ["start", "another"])
def test_a_resumed_run_is_the_whole_one_to_the_bit(
    tiny: Any, tmp_path: Path, reference: str
) -> None:
    if reference == "another":
        reference = str(demo_model(tmp_path / "another", seed=1))
    keys = (KL, f"loss.reference={reference}", "train.steps=4")
    whole = train(tiny(*keys))
    shutil.copytree(whole, tmp_path / "half")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "half" / "checkpoints" / f"step_{step:06d}", ignore_errors=True)
    half = train(tiny(*keys).model_copy(update={"output": str(tmp_path / "half")}))
    one, two = (weights(run / "checkpoints" / "step_000004") for run in (whole, half))
    assert all(torch.equal(one[name], two[name]) for name in one)
    for row, again in zip(rows(whole), rows(half), strict=True):
        assert row["ref_kl"] == again["ref_kl"] and row["loss"] == again["loss"]


def test_files_that_changed_are_refused(tiny: Any, tmp_path: Path) -> None:
    path = demo_model(tmp_path / "another", seed=1)
    keys = (KL, f"loss.reference={path}")
    run = train(tiny(*keys, "train.steps=1"))
    before = (run / "reference.json").read_text()
    shutil.rmtree(path)
    demo_model(path, seed=2)
    with pytest.raises(ConfigError) as refused:
        train(tiny(*keys, "train.steps=2"))
    said = str(refused.value)
    assert said.startswith(f"loss.reference: {path}: model.safetensors is not the file that the")
    assert "\n" not in said and len(rows(run)) == 1
    assert (run / "reference.json").read_text() == before
    # Another name is another reference, chosen by the user; and none is none.
    other = demo_model(tmp_path / "other", seed=3)
    train(tiny(KL, f"loss.reference={other}", "train.steps=2"))
    assert json.loads((run / "reference.json").read_text())["path"] == str(other)
    train(tiny("train.steps=3"))
    assert "ref_kl" not in rows(run)[2] and (run / "reference.json").exists()


@pytest.mark.draw(2, "runs")
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"reference": "start", "files": 3}', "{"])
def test_a_damaged_record_is_one_line_or_none(
    tiny: Any, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny(KL, "train.steps=1"))
    (run / "reference.json").write_text(content)
    if content == "{}":  # of no reference: nothing to compare with
        train(tiny(KL, "train.steps=2"))
        assert json.loads((run / "reference.json").read_text())["reference"] == "start"
        return
    with pytest.raises(ConfigError, match="loss.reference: .*reference.json") as refused:
        train(tiny(KL, "train.steps=2"))
    assert "\n" not in str(refused.value) and "remove it" in str(refused.value)


def test_a_run_that_begins_without_kl_leaves_no_record_of_an_earlier_one(tiny: Any) -> None:
    config = tiny("train.steps=1")
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "reference.json").write_text('{"reference": "start", "files": {}}')
    train(config)
    assert not (config.run_dir / "reference.json").exists()


def test_another_vocabulary_is_refused(tiny: Any, tmp_path: Path) -> None:
    path = demo_model(tmp_path / "another")
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    first, second = tokenizer["added_tokens"][20:22]
    first["content"], second["content"] = second["content"], first["content"]
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = tiny(KL, f"loss.reference={path}")
    with pytest.raises(ConfigError, match=f"loss.reference: {path}: its tokenizer has ") as refused:
        train(config)
    assert "the policy's" in str(refused.value) and not config.run_dir.exists()


def test_what_cannot_be_a_reference_is_refused_before_work(tiny: Any, tmp_path: Path) -> None:
    path = demo_model(tmp_path / "another")
    (path / "model.safetensors").write_bytes(b"no weights")
    short = demo_model(tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    config["max_position_embeddings"] = 70
    (short / "config.json").write_text(json.dumps(config))
    for keys, said in (
        ((f"loss.reference={tmp_path / 'none'}",), r"none' does not exist; takes start, a folder"),
        ((f"loss.reference={path}",), "model.safetensors"),
        ((f"loss.reference={short}",), r"has 70 positions, but .* = 80 tokens"),
        (("model={scratch: {}}",), "got start, but model.scratch begins from random weights"),
    ):
        with pytest.raises(ConfigError, match=said) as refused:
            train(tiny(KL, *keys))
        assert str(refused.value).startswith("loss.reference: ")
        assert "\n" not in str(refused.value)
    assert not tiny().run_dir.exists()


@pytest.mark.draw(2, "runs")
def test_the_reference_may_be_of_another_size(tiny: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(START_FOLDER)
    shape = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=40, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    Qwen2ForCausalLM(shape).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    config = tiny(KL, f"loss.reference={tmp_path / 'small'}", "train.steps=1")
    assert all(row["ref_kl"] > 0.1 for row in rows(train(config)))
    # And the estimate counts that model, not the policy's size.
    counted = Sizes.of(shape).parameters * 4
    text = dry_run(config, memory_gb=80)
    line = next(line for line in text.splitlines() if line.startswith("# reference model"))
    assert line.split()[3:] == [f"{counted / 1e9:.3f}"] * 3


@pytest.mark.draw(2, "runs")
def test_adapters_switched_off_are_the_reference(tiny: Any) -> None:
    pytest.importorskip("peft")
    lora = ("model.lora={rank: 4}", "train.steps=3", "train.mini_batches=1", "train.lr=1e-2")
    whole = train(tiny(KL, *lora))
    assert rows(whole)[0]["ref_kl"] == 0.0 and rows(whole)[2]["ref_kl"] > 0
    # The same numbers as with the base model as a second copy.
    copied = tiny(KL, *lora, f"loss.reference={START_FOLDER}")
    copied = train(copied.model_copy(update={"output": f"{copied.output}-copied"}))
    for one, two in zip(rows(whole), rows(copied), strict=True):
        assert one["ref_kl"] == pytest.approx(two["ref_kl"], rel=1e-5, abs=1e-9)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
    # And to the bit after a resume.
    before = rows(whole)[2]
    shutil.rmtree(whole / "checkpoints" / "step_000003")
    again = rows(train(tiny(KL, *lora)))[2]
    assert (before["ref_kl"], before["loss"]) == (again["ref_kl"], again["loss"])


def test_the_estimate_counts_a_second_copy_and_none_with_adapters() -> None:
    shape = Sizes.of(DISTILL_7B)

    def of(*keys: str, ranks: int = 16) -> Any:
        return estimate(load_config("siri-7b.yaml", [*keys]), shape, ranks=ranks)

    for ranks in (1, 16):
        plain, with_kl = of(ranks=ranks), of(KL, ranks=ranks)
        added = plain.training["weights"]
        assert with_kl.training["reference model"] == added
        for moment, total in plain.totals.items():
            assert with_kl.totals[moment] == total + added
    lora = "model.lora={rank: 16}"
    assert of(KL, lora) == of(lora)
    named = of(KL, lora, "loss.reference=some/model")
    assert named.training["reference model"] == of(lora).training["weights"]
    assert of(KL, "distributed.offload=true").training["reference model"] == 0


@pytest.mark.draw(2, "runs")
def test_what_a_run_of_before_says_of_its_settings_is_nothing_new(
    tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its config.yaml has none of the keys that came later: they stand for their defaults."""
    import yaml

    run = train(tiny("train.steps=1"))
    old = yaml.safe_load((run / "config.yaml").read_text())
    kept = ("clip_low", "clip_high", "dual_clip", "aggregation", "entropy_coef", "old_logprobs",
            "rollout_correction", "skip_zero_advantage")  # fmt: skip
    old["loss"] = {key: old["loss"][key] for key in kept}
    (run / "config.yaml").write_text(yaml.safe_dump(old))
    assert load_config(run / "config.yaml") == tiny("train.steps=1")
    capsys.readouterr()
    train(tiny("train.steps=2", "loss.kl_limit=null"))
    said = [line for line in capsys.readouterr().out.splitlines() if " is now " in line]
    assert said == ["tiny: train.steps was 1, is now 2"]
    train(tiny("train.steps=3", "loss.objective=sapo"))
    assert "loss.objective was clip, is now sapo" in capsys.readouterr().out


def test_its_forward_pass_takes_no_more_than_the_policys() -> None:
    """So the estimate adds its weights and nothing else."""
    torch.manual_seed(0)
    shape = qwen(64, 160, 4, 4, 2, 512)
    policies = []
    for _ in range(2):
        model: Any = Qwen2ForCausalLM(shape)
        prepare(model)
        policies.append(Policy(model, tokenizer=None, eos_ids=frozenset([0]), softcap=None))
    reference = Reference(policies[1], own=True)
    config = parse_config(
        copy.deepcopy(TINY), [KL, "train.token_budget=512", "train.mini_batches=1"]
    )
    optimizer = make_optimizer(policies[0].model, config.train)
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 512, (4, 240), generator=draw).tolist()
    samples = [Sample(list(range(8)), row, [-1.0] * 240, 1.0) for row in ids]

    def step(with_kl: bool) -> None:
        loss = config.loss if with_kl else LossConfig()
        update(
            policies[0], optimizer, samples, config.train, loss, temperature=1.0,
            constant_length=40, seed=0, reference=reference if with_kl else None,
        )  # fmt: skip

    step(True)  # the optimiser's state exists from here on
    plain, with_kl = (peak_bytes(lambda w=w: step(w)) for w in (False, True))
    assert with_kl == pytest.approx(plain, rel=0.02)
