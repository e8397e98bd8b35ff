"""Model folders that are unusual and right: each is loaded with every weight as it is stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from siri_train.config.base import ConfigError
from siri_train.model.demo_model import START_FOLDER
from siri_train.model.folder import check_model, load_model
from tests.train.damage import edit_json, edit_weights, model_folder

WEIGHTS = load_file(START_FOLDER / "model.safetensors")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
INDEX = "model.safetensors.index.json"
Change = Callable[[Path], None]


def tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    return lambda folder: edit_weights(folder, change)


def edited(file: str, **values: Any) -> Change:
    return lambda folder: edit_json(folder / file, **values)


def no_metadata(folder: Path) -> None:
    save_file(WEIGHTS, folder / "model.safetensors")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({**WEIGHTS, HEAD: WEIGHTS[EMBEDDING]}, folder / "pytorch_model.bin")


def sharded(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def odd_index(folder: Path) -> None:
    """An index that names another shard, a tensor that is none, and leaves some out: transformers
    reads the shards themselves."""
    sharded(folder)
    index = json.loads((folder / INDEX).read_text())
    named = index["weight_map"]
    shards = sorted(set(named.values()))
    for name in sorted(named)[:3]:
        named[name] = shards[(shards.index(named[name]) + 1) % len(shards)]
    for name in sorted(named)[3:6]:
        del named[name]
    named["model.ghost.weight"] = shards[0]
    edit_json(folder / INDEX, weight_map=named)


def linked(folder: Path) -> None:
    """As a hub's cache lays them out."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for path in list(folder.iterdir()):
        shutil.move(path, blobs / path.name)
        path.symlink_to(f"../blobs/{path.name}")


def neighbours(folder: Path) -> None:
    """Files that belong to other programs, some damaged."""
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tf_model.h5"):
        (folder / name).write_bytes(b"junk")
    for name in ("README.md", ".gitattributes", "model.fp16.safetensors"):
        (folder / name).write_text("x")
    (folder / "onnx").mkdir()
    (folder / "old.txt").symlink_to("nowhere")


def special_map(folder: Path) -> None:
    """As earlier versions of transformers wrote special tokens."""
    token = {"content": "<eos>", "lstrip": False, "normalized": False, "rstrip": False,
             "single_word": False}  # fmt: skip
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": token, "pad_token": "<pad>"})
    )
    edit_json(folder / "tokenizer_config.json", eos_token={"__type": "AddedToken", **token})
    (folder / "added_tokens.json").write_text("{}")


UNUSUAL: dict[str, Change] = {
    "head stored beside the embedding": tensors(lambda w: {**w, HEAD: w[EMBEDDING].clone()}),
    "only the head stored": tensors(
        lambda w: {(HEAD if name == EMBEDDING else name): value for name, value in w.items()}
    ),
    "names without the prefix": tensors(lambda w: {k[len("model.") :]: v for k, v in w.items()}),
    "no metadata": no_metadata,
    "in float64": tensors(lambda w: {k: v.double() for k, v in w.items()}),
    "norms in another dtype": tensors(
        lambda w: {k: v.double() if "norm" in k else v for k, v in w.items()}
    ),
    "pickled": pickled,
    "sharded": sharded,
    "an odd index": odd_index,
    "links": linked,
    "neighbours": neighbours,
    "special tokens as objects": special_map,
    "old rotary keys": edited(
        "config.json", dtype=..., torch_dtype="float32", rope_parameters=..., rope_theta=10000.0,
        rope_scaling=None, layer_types=..., transformers_version="4.31.0",
    ),
    "generation settings in config.json": edited(
        "config.json", temperature=0.9, max_length=20, transformers_version="4.20.0"
    ),
    "flash attention asked for": edited("config.json", _attn_implementation="flash_attention_2"),
    "a hub's kernel asked for": edited("config.json", _attn_implementation="someone/kernel"),
    "several ends": edited("generation_config.json", eos_token_id=[2, 0]),
    "no end in config.json": edited("config.json", eos_token_id=None),
    "no padding": edited("config.json", pad_token_id=None),
    "padding -1": edited("config.json", pad_token_id=-1),
    "code of its own, not needed": edited("config.json", auto_map={"AutoConfig": "a.B"}),
    "no architectures": edited("config.json", architectures=None),
    "no quantisation": edited("config.json", quantization_config=None),
    "no generation_config.json": lambda folder: (folder / "generation_config.json").unlink(),
    "a class by its old name": edited(
        "tokenizer_config.json", tokenizer_class="Qwen2TokenizerFast"
    ),
}  # fmt: skip


@pytest.mark.draw(8)
@pytest.mark.parametrize("name", UNUSUAL)
def test_the_weights_are_those_of_the_files(name: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    UNUSUAL[name](folder)
    checked = check_model(folder, "model.path")
    model = load_model(folder, "model.path", torch.float32)
    have = model.state_dict()
    assert all(torch.equal(have[key], value) for key, value in WEIGHTS.items())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    plain = AutoTokenizer.from_pretrained(START_FOLDER)
    text = " 1 +2 *3 ="
    assert checked.tokenizer(text)["input_ids"] == plain(text)["input_ids"] != []
    assert checked.tokenizer.eos_token_id == plain.eos_token_id


@pytest.mark.parametrize("rows", [38, 64, 100])
def test_an_embedding_with_more_rows_than_the_tokenizer_has_words(
    rows: int, tmp_path: Path
) -> None:
    folder = model_folder(tmp_path / "m")
    more = torch.zeros(rows - 37, WEIGHTS[EMBEDDING].shape[1])
    edit_weights(folder, lambda w: {**w, EMBEDDING: torch.cat([w[EMBEDDING], more])})
    edit_json(folder / "config.json", vocab_size=rows)
    assert check_model(folder, "model.path").rows == rows


@pytest.mark.parametrize(
    "name",
    ["model.layers.{}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", "inv_freq",
     "transformer.h.{}.attn.masked_bias", "transformer.h.{}.attn.bias", "position_ids",
     "gpt_neox.layers.{}.attention.bias", "model.layers.{}.attention.masked_bias"],
)  # fmt: skip
def test_tables_that_earlier_versions_stored(name: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    edit_weights(folder, lambda w: {**w, **{name.format(i): torch.ones(1, 4) for i in range(3)}})
    check_model(folder, "model.path")
    load_model(folder, "model.path", torch.float32)


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.q_proj.masked_bias2", "model.layers.0.mlp.bias", "inv_freqs.weight",
     "model.layers.0.self_attn.bias.weight", "a\x1b[31mb"],
)  # fmt: skip
def test_names_that_only_look_alike_are_still_refused(name: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    edit_weights(folder, lambda w: {**w, name: torch.ones(1)})
    with pytest.raises(ConfigError, match="tensors are not Qwen2ForCausalLM's"):
        check_model(folder, "model.path")


@pytest.mark.parametrize("value", [..., None, [1], "x", 5])
def test_an_index_that_transformers_cannot_read_is_named(value: Any, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    sharded(folder)
    edit_json(folder / INDEX, metadata=value)
    with pytest.raises(ConfigError, match=rf'{INDEX}: has no metadata.*add "metadata"'):
        check_model(folder, "model.path")


@pytest.mark.parametrize("section", [{}, [], "", {"quant_method": "gptq"}])
def test_any_quantisation_is_refused_by_name(section: Any, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    edit_json(folder / "config.json", quantization_config=section)
    with pytest.raises(ConfigError, match="config.json: the weights are quantised"):
        check_model(folder, "model.path")


@pytest.mark.parametrize("other", ["a.gguf", "tf_model.h5", "consolidated.00.pth", "x.ckpt"])
def test_weights_in_another_format_are_named(other: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / other)
    with pytest.raises(ConfigError) as caught:
        check_model(folder, "model.path")
    assert other in str(caught.value)
    assert ("siri-train convert" in str(caught.value)) == other.endswith("gguf")


@pytest.mark.parametrize("length", ["x", None, [5], {"a": 1}])
def test_a_length_that_is_no_number_is_told_by_the_gate(length: Any, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    edit_json(folder / "tokenizer_config.json", model_max_length=length)
    try:
        check_model(folder, "model.path")
    except ConfigError as error:
        assert "tokenizer_config.json" in str(error) and "correct it" in str(error)
    else:
        assert length is None  # transformers' own word for no length
