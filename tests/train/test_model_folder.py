"""The gate for model folders: the right weights, or one line that names the file."""

from __future__ import annotations

import logging
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from siri_train.cli import main
from siri_train.config.base import ConfigError
from siri_train.config.model import ModelConfig
from siri_train.model import demo_model
from siri_train.model import folder as model_folder_module
from siri_train.model.folder import check_model, load_model
from siri_train.model.policy import load_policy
from tests.train.damage import damage, edit_json, edit_weights, model_folder

CPU = torch.device("cpu")
NAMES = sorted(load_file(demo_model.START_FOLDER / "model.safetensors"))


def refusal(folder: Path) -> str:
    """The one line with which a folder is refused before its weights are in memory."""
    with pytest.raises(ConfigError) as caught:
        check_model(folder, "model.path")
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and text.startswith("model.path: ") and str(folder) in text
    assert len(text) < 900
    return text


@pytest.mark.draw(3)
@pytest.mark.parametrize("seed", range(8))
def test_any_damage_is_one_line_or_leaves_the_weights(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    want = load_file(demo_model.START_FOLDER / "model.safetensors")
    refused = 0
    for number in range(12):
        folder = model_folder(tmp_path / str(number))
        what = damage(folder, rng)
        try:
            check_model(folder, "model.path")
            model = load_model(folder, "model.path", torch.float32)
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1 and str(folder) in str(error), what
            refused += 1
        else:
            have = model.state_dict()
            assert all(torch.equal(have[name], value) for name, value in want.items()), what
    assert refused >= 4  # most damages are none that can be lived with


@pytest.mark.draw(4)
@pytest.mark.parametrize("seed", range(10))
def test_weights_that_are_not_the_models_are_named(seed: int, tmp_path: Path) -> None:
    """Tensors drawn and then left out, renamed, cut, or stored as integers."""
    rng = random.Random(seed)
    for how in ("left out", "renamed", "surplus", "cut", "integers"):
        folder = model_folder(tmp_path / how)
        chosen = rng.sample(NAMES, rng.randrange(1, 4))

        def change(
            weights: dict[str, torch.Tensor], how: str = how, chosen: list[str] = chosen
        ) -> dict[str, torch.Tensor]:
            for name in chosen:
                if how == "surplus":
                    weights[f"{name}_more"] = torch.zeros(1)
                    continue
                value = weights.pop(name)
                if how == "renamed":
                    weights[name.replace("e", "E", 1)] = value
                elif how == "cut":
                    weights[name] = value[: rng.randrange(1, len(value))]
                elif how == "integers":
                    weights[name] = value.to(torch.int32)
            return weights

        edit_weights(folder, change)
        text = refusal(folder)
        assert "model.safetensors" in text and any(name in text for name in chosen), text
        if how != "integers":
            assert f"{len(chosen)} tensors" in text


@pytest.mark.parametrize(
    ("prefix", "likely"),
    [
        ("_orig_mod.", "torch.compile"),
        ("base_model.model.", "PEFT"),
        ("module.", "DistributedDataParallel"),
        ("_fsdp_wrapped_module.", "FSDP"),
        ("policy.", "are missing"),
    ],
)
def test_the_likely_wrapper_is_named(prefix: str, likely: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    edit_weights(folder, lambda weights: {prefix + k: v for k, v in weights.items()})
    assert likely in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 40), ("num_hidden_layers", 2), ("hidden_size", 10**9),
        ("vocab_size", 10**12), ("num_hidden_layers", 10**9), ("num_attention_heads", 2**50),
        ("intermediate_size", 127), ("hidden_act", "nothing"), ("num_key_value_heads", 4),
        ("tie_word_embeddings", False),
    ],
)  # fmt: skip
def test_a_config_of_another_model(key: str, value: Any, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    more = {"layer_types": ...} if key == "num_hidden_layers" else {}
    edit_json(folder / "config.json", **{key: value}, **more)
    text = refusal(folder)
    assert "config.json" in text or "model.safetensors" in text


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("bert", "encoder"), ("roberta", "encoder"), ("bart", "encoder"), ("vit", "causal"),
        ("clip", "causal"), ("t5", "causal"), ("wav2vec2", "causal"), ("nobodys", "auto_map"),
    ],
)  # fmt: skip
def test_what_does_not_write_text(model_type: str, said: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    changes: dict[str, Any] = {"model_type": model_type, "auto_map": {"AutoConfig": "own.Config"}}
    edit_json(folder / "config.json", **changes, layer_types=...)
    (folder / "own.py").write_text("raise SystemExit('code of a model folder has been run')\n")
    assert said in refusal(folder) and "config.json" in refusal(folder)


@pytest.mark.parametrize(
    "method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors", "mxfp4", "unheard-of"]
)
def test_quantised_models_are_refused_whatever_the_method(method: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    edit_json(folder / "config.json", quantization_config={"quant_method": method, "bits": 4})
    text = refusal(folder)
    assert method in text and "bfloat16" in text and "install" not in text


def test_paths_that_are_no_folder_of_a_model(tmp_path: Path) -> None:
    file, empty, link = tmp_path / "file", tmp_path / "empty", tmp_path / "link"
    file.write_text("{}")
    empty.mkdir()
    link.symlink_to(tmp_path / "nowhere")
    for folder, said in ((file, "is a file"), (empty, "config.json"), (link, "does not exist")):
        assert said in refusal(folder)
    adapter = model_folder(tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text("{}")
    assert "merge_and_unload" in refusal(adapter)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        broken = model_folder(tmp_path / f"broken_{name}")
        (broken / name).unlink()
        (broken / name).symlink_to("gone")
        assert f"{name}: is a link to gone" in refusal(broken)


@pytest.mark.parametrize("name", sorted(p.name for p in demo_model.START_FOLDER.iterdir()))
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b'{"a": ' * 100_000, ""),
    ],
)
def test_files_that_are_not_what_their_name_says(
    name: str, content: bytes, said: str, tmp_path: Path
) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / name).write_bytes(content)
    text = refusal(folder)
    assert name in text and said in text


def test_shards(tmp_path: Path) -> None:
    """Whole ones load; an index that names a missing or a foreign file is refused."""
    model = load_model(demo_model.START_FOLDER, "model.path", torch.float32)
    folder = model_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    demo_model.tokenizer().save_pretrained(folder)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    check_model(folder, "model.path")
    again = load_model(folder, "model.path", torch.float32).state_dict()
    assert all(torch.equal(again[k], v) for k, v in model.state_dict().items())

    index = folder / "model.safetensors.index.json"
    whole = index.read_text()
    for name, other in ((shards[0].name, "../x.safetensors"), (shards[1].name, "/etc/hostname")):
        index.write_text(whole.replace(name, other))
        assert "not in the folder" in refusal(folder) and other in refusal(folder)
    index.write_text('{"weight_map": [1]}')
    assert "weight_map" in refusal(folder)
    index.write_text(whole)
    shards[1].unlink()
    assert f"names the shard {shards[1].name}" in refusal(folder)
    index.unlink()
    assert "index.json: is missing" in refusal(folder)


class Command:
    """A pickle that would write a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def test_pickled_weights(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    check_model(folder, "model.path")
    have = load_model(folder, "model.path", torch.float32).state_dict()
    assert all(torch.equal(have[k], v) for k, v in weights.items())
    torch.save({f"x.{k}": v for k, v in weights.items()}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin: 38 tensors" in refusal(folder).replace("39", "38")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Command(tmp_path / "ran")}))
    assert "pytorch_model.bin" in refusal(folder) and not (tmp_path / "ran").exists()


def test_a_tied_model_with_two_heads(tmp_path: Path) -> None:
    """Equal ones are one head; different ones would be trained apart and saved as a tied pair."""
    for scale, fine in ((1.0, True), (1.5, False)):
        folder = model_folder(tmp_path / str(fine))
        edit_weights(
            folder,
            lambda w, scale=scale: {**w, "lm_head.weight": scale * w["model.embed_tokens.weight"]},
        )
        if fine:
            check_model(folder, "model.path")
        else:
            assert "tie_word_embeddings" in refusal(folder)
            with pytest.raises(ConfigError, match="tie_word_embeddings"):
                load_model(folder, "model.path", torch.float32)


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("weights", float("nan")), ("weights", float("inf")),
        ("config.json", {"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}}),
    ],
)  # fmt: skip
def test_what_only_the_numbers_show(where: str, change: Any, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    if where == "weights":

        def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            weights[NAMES[5]].view(-1)[3] = change
            return weights

        edit_weights(folder, spoil)
    else:
        edit_json(folder / where, **change)
    with pytest.raises(ConfigError, match="finite") as caught:
        load_policy(ModelConfig(path=str(folder)), CPU)
    assert len(str(caught.value).splitlines()) == 1


SMALL = {
    "vocab_size": 37, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 8,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "kind", ["gpt2", "gpt_neox", "gemma3_text", "qwen3_moe", "mixtral", "olmoe", "phi", "opt"]
)
def test_whole_models_of_other_families_pass(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Names that are converted on loading (experts), biases, tied and untied heads."""
    more = {"moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4}
    more |= {"num_experts_per_tok": 2, "word_embed_proj_dim": 32, "ffn_dim": 64}
    config = AutoConfig.for_model(kind, **SMALL, **more)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(tmp_path)
    demo_model.tokenizer().save_pretrained(tmp_path)
    assert check_model(tmp_path, "model.path").rows == 37
    have = load_model(tmp_path, "model.path", dtype).state_dict()
    assert all(torch.equal(have[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("command", ["train", "train --dry-run", "sft", "eval"])
@pytest.mark.parametrize("seed", range(3))
def test_every_command_says_one_line_and_writes_nothing(
    command: str, seed: int, tmp_path: Path, tiny: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(f"{command}/{seed}")
    folder = model_folder(tmp_path / "model")
    name = rng.choice(NAMES)
    edit_weights(folder, lambda w: {f"_orig_mod.{k}" if seed else k + "x": v for k, v in w.items()})
    if seed == 2:
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: rng.randrange(1, len(data))])
    recipe = tmp_path / "recipe.yaml"
    section = {"steps": 1, "batch_size": 4, "max_len": 64}
    settings = tiny(f"model.path={folder}", f"sft={section}" if command == "sft" else "sft=null")
    recipe.write_text(settings.to_yaml())
    before = sorted(tmp_path.rglob("*"))
    verb, *options = command.split()
    given = [str(folder), "--recipe", str(recipe)] if verb == "eval" else [str(recipe), *options]
    assert main([verb, *given]) == 1, name
    error = capfd.readouterr().err
    assert len(error.splitlines()) == 1 and "model.safetensors" in error, error
    assert sorted(tmp_path.rglob("*")) == before


def test_the_hub_is_silent_where_the_error_says_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bool] = []

    def ask(*_: Any, **__: Any) -> Any:
        logger = logging.getLogger("huggingface_hub.utils._http")
        heard.append(logger.isEnabledFor(logging.ERROR))
        raise OSError("no network")

    logger = logging.getLogger("huggingface_hub.utils._http")
    monkeypatch.setattr(model_folder_module.AutoConfig, "from_pretrained", ask)
    before = logger.isEnabledFor(logging.WARNING)
    with pytest.raises(ConfigError, match="owner/name"):
        check_model("owner/name", "model.path")
    assert heard == [False] and logger.isEnabledFor(logging.WARNING) == before
