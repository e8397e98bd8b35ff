"""Model folders and tokenizers that are damaged or do not fit together."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from siri_train.model.demo_model import START_FOLDER
from tests.train.bad_inputs.bed import RECIPE, Bad, write_recipe

Change = Callable[[Path], None]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 459040\n"


def _bad(family: str, name: str, change: Change, *words: str, command: str = "train") -> Bad:
    def prepare(home: Path) -> None:
        write_recipe(home, model={"path": "model"}, sft={"steps": 2, "batch_size": 4})
        shutil.copytree(START_FOLDER, home / "model")
        change(home / "model")

    return Bad(family, name, (command, RECIPE), words, prepare)


def _edit(file: str, **values: Any) -> Change:
    """Set keys of a JSON file of the folder."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **values}))

    return change


def _replace(file: str, raw: bytes | None) -> Change:
    """Other bytes for a file; None removes it."""

    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        if raw is not None:
            (folder / file).write_bytes(raw)

    return change


def _pipe(file: str) -> Change:
    """A named pipe, which waits for a writer when it is opened."""

    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        os.mkfifo(folder / file)

    return change


def pipes() -> Iterator[Bad]:
    """A pipe in place of each file that a model folder may hold."""
    more = ("chat_template.jinja", "special_tokens_map.json", "model.safetensors.index.json")
    for file in sorted({*(path.name for path in START_FOLDER.iterdir()), *more}):
        for command in ("train", "sft"):
            name = f"{command}: {file} a pipe"
            yield _bad("pipes", name, _pipe(file), file, command=command)


def _cut(file: str, share: float) -> Change:
    def change(folder: Path) -> None:
        raw = (folder / file).read_bytes()
        (folder / file).write_bytes(raw[: int(share * len(raw))])

    return change


def _weights(spoil: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """The tensors changed in place, or others returned."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors = spoil(tensors) or tensors
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def _other(kind: str) -> Change:
    """A random model of another architecture."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        small = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "n_layer": 1,
                 "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
        config = AutoConfig.for_model(kind, **small)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)

    return change


def _both(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def tokenizers() -> Iterator[Bad]:
    """Files of the tokenizer: gone, cut, of another model."""
    draw = random.Random(9)
    for name, raw in (
        ("gone", None), ("empty", b""), ("no JSON", b"{"), ("a list", b"[]"), ("an object", b"{}"),
        ("not UTF-8", b'{"a": "\xff"}'), ("deep", b"[" * 50_000), ("zeros", bytes(100)),
        ("a pointer", POINTER.format("0" * 64).encode()), ("HTML", b"<!doctype html><html></html>"),
        ("a model that is no text", b'{"version": "1.0", "model": 5}'),
    ):  # fmt: skip
        yield _bad("tokenizers", f"tokenizer.json {name}", _replace("tokenizer.json", raw), "model")
    for share in (draw.random(), draw.random()):
        change = _cut("tokenizer.json", share)
        yield _bad("tokenizers", f"tokenizer.json cut at {share:.2f}", change, "model")
    for name, raw in (
        ("empty", b""),
        ("no JSON", b"{"),
        ("a list", b"[]"),
        ("deep", b"[" * 50_000),
    ):
        change = _replace("tokenizer_config.json", raw)
        yield _bad("tokenizers", f"tokenizer_config.json {name}", change, "model")

    def more_tokens(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        last = content["added_tokens"][-1]
        for number in range(draw.randrange(1, 40)):
            one = {**last, "id": last["id"] + 1 + number, "content": f" new{number}"}
            content["added_tokens"].append(one)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    # A tokenizer may know fewer words than the model has rows, never more.
    yield _bad("tokenizers", "more tokens than rows", more_tokens, "token")
    for key in ("eos_token_id", "pad_token_id"):
        past = draw.randrange(37, 10_000)
        for value in (past, -5):
            both = _both(
                _edit("config.json", **{key: value}),
                _edit("generation_config.json", **{key: value}),
            )
            yield _bad("tokenizers", f"{key} {value}", both, key)
    nothing_ends = _both(
        _edit("config.json", eos_token_id=None),
        _edit("generation_config.json", eos_token_id=None),
        _edit("tokenizer_config.json", eos_token=None),
    )
    yield _bad("tokenizers", "nothing ends", nothing_ends, "eos")
    remote = {"AutoTokenizer": ["own.OwnTokenizer", None]}
    yield _bad("tokenizers", "code of its own", _both(
        _edit("tokenizer_config.json", auto_map=remote, tokenizer_class="OwnTokenizer"),
        _replace("own.py", b"open('pwned', 'w')\n"), _replace("tokenizer.json", None),
    ), "model")  # fmt: skip


def models() -> Iterator[Bad]:
    """Weights and configurations: damaged, incomplete, of another shape, not trainable."""
    draw = random.Random(10)
    file = "model.safetensors"
    for name, raw in (
        ("gone", None), ("empty", b""), ("eight bytes", b"\xff" * 8), ("zeros", bytes(5000)),
        ("a pointer", POINTER.format("ab" * 32).encode()), ("HTML", b"<html>Not Found</html>"),
        ("a gzip", b"\x1f\x8b\x08\x00" * 40), ("a pickle", b"\x80\x02]q\x00."),
        ("a header of text", (20).to_bytes(8, "little") + b'{"__metadata__": 555}'),
    ):  # fmt: skip
        yield _bad("models", f"{file} {name}", _replace(file, raw), "model")
    for share in (draw.uniform(0, 0.01), draw.uniform(0.01, 0.5), draw.uniform(0.5, 0.99), 0.9999):
        yield _bad("models", f"{file} cut at {share:.4f}", _cut(file, share), file)

    names = sorted(load_file(START_FOLDER / file))
    for name in draw.sample(names, 4):
        yield _bad(
            "models",
            f"without {name}",
            _weights(lambda t, n=name: {k: v for k, v in t.items() if k != n}),
            name,
        )
    for prefix in ("_orig_mod.", "module.", "base_model.model.", draw.choice(("net.", "policy."))):
        change = _weights(lambda t, p=prefix: {p + n: v for n, v in t.items()})
        yield _bad("models", f"all behind {prefix}", change, prefix)
    for name in draw.sample([n for n in names if "norm" not in n], 3):
        for cut in (lambda v: v[:-1].clone(), lambda v: v.T.contiguous()[None]):
            change = _weights(lambda t, n=name, c=cut: {**t, n: c(t[n])})
            yield _bad(
                "models", f"other shape of {name} {cut(torch.ones(3, 2)).ndim}", change, name
            )
    extra = f"model.layers.7.{draw.choice(('mlp', 'self_attn'))}.own.weight"
    yield _bad("models", "a tensor more", _weights(lambda t: {**t, extra: torch.ones(2)}), extra)
    yield _bad("models", "no tensors", _weights(lambda t: {"nothing": torch.ones(1)}), "model")

    for name, raw in (
        ("gone", None), ("empty", b""), ("no JSON", b"{'a': 1}"), ("a list", b"[]"),
        ("an object", b"{}"),
        ("deep", b"[" * 50_000), ("not UTF-8", b'{"a": "\xff"}'),
        ("a pointer", POINTER.format("c" * 64).encode()),
    ):  # fmt: skip
        yield _bad("models", f"config.json {name}", _replace("config.json", raw), "model")
    for key, value in (
        ("model_type", "nonesuch"), ("model_type", 5), ("model_type", None), ("model_type", "t5"),
        ("vocab_size", 36), ("vocab_size", 4000), ("vocab_size", -1), ("vocab_size", "many"),
        ("hidden_size", 63), ("hidden_size", 0), ("hidden_size", 128), ("hidden_size", -64),
        ("num_hidden_layers", 4), ("num_hidden_layers", 2), ("num_hidden_layers", -1),
        ("num_attention_heads", 0), ("num_attention_heads", 5), ("num_key_value_heads", 3),
        ("intermediate_size", 127), ("hidden_act", "nonesuch"),
        ("rope_parameters", {"rope_type": "nonesuch"}),
        ("layer_types", ["full_attention"]), ("max_position_embeddings", 0),
        ("dtype", "float33"),
    ):  # fmt: skip
        yield _bad("models", f"{key} {value!r}"[:50], _edit("config.json", **{key: value}), "model")
    for key in ("attention_dropout", "rms_norm_eps"):
        for odd in (draw.uniform(1.1, 1e9), -draw.random() - 0.01):
            change = _edit("config.json", **{key: odd})
            yield _bad("models", f"{key} {odd:.3g}", change, "config.json", key)
    for kind in ("falcon", "gptj", "mamba"):  # packed rows cannot be kept apart in them
        yield _bad("models", f"a {kind}", _other(kind), "config.json", kind, command="sft")
    for method in ("gptq", "awq", "bitsandbytes", "fp8", draw.choice(("hqq", "nonesuch"))):
        config = {"quant_method": method, "bits": 4, "load_in_4bit": method == "bitsandbytes"}
        change = _edit("config.json", quantization_config=config)
        yield _bad("models", f"quantised: {method}", change, "quanti")
    remote = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    yield _bad("models", "code of its own", _both(
        _edit("config.json", auto_map=remote, model_type="own"),
        _replace("own.py", b"open('pwned', 'w')\n"),
    ), "model")  # fmt: skip
    for name, raw in (("no JSON", b"{"), ("a list", b"[]"), ("empty", b"")):
        change = _replace("generation_config.json", raw)
        yield _bad("models", f"generation_config.json {name}", change, "generation_config")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    yield _bad("models", "a shard gone", _both(
        _replace(file, None), _replace(f"{file}.index.json", json.dumps(index).encode()),
    ), "model-00001-of-00002.safetensors")  # fmt: skip
    yield _bad("models", "an index that is no JSON", _both(
        _replace(file, None), _replace(f"{file}.index.json", b"{"),
    ), "index.json")  # fmt: skip
    yield _bad("models", "only a pickle", _both(
        _replace(file, None), _replace("pytorch_model.bin", b"\x80\x02]q\x00."),
    ), "model")  # fmt: skip
    for name, change in (
        ("gone", _replace(file, None)), ("cut", _cut(file, draw.random())),
        ("without config", _replace("config.json", None)),
        ("without tokenizer", _replace("tokenizer.json", None)),
    ):  # fmt: skip
        yield _bad("models", f"sft: {name}", change, "model", command="sft")
