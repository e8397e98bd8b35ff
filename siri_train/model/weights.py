"""Compares the tensors of a model folder with those of its architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from siri_train.model.files import ModelFileError, stored_tensors, weight_files

# Prefixes that wrappers put before every name, and how to save without them.
_PREFIXES = {
    "_orig_mod.": "saved under torch.compile: save model._orig_mod",
    "base_model.model.": "saved under PEFT: save merge_and_unload()",
    "module.": "saved under DistributedDataParallel or FSDP: save model.module",
    "_fsdp_wrapped_module.": "saved under FSDP: save the unwrapped model",
}


# Masks and tables that earlier versions of transformers stored with the weights; not every
# architecture declares its own.
_CONSTANT = re.compile(
    r"(^|\.)((attn|attention)\.bias|masked_bias|(rotary_emb\.)?inv_freq|position_ids)$"
)


def loading_problem(report: Mapping[str, Any], model: str) -> str | None:
    """The problem in transformers' loading report, as a part of one line; None without one.

    Args:
        report: ``missing_keys``, ``unexpected_keys``, ``mismatched_keys`` and ``error_msgs``;
            transformers has removed the names that the architecture declares optional.
        model: the architecture's name.
    """
    missing = sorted(report["missing_keys"])
    unexpected = sorted(name for name in report["unexpected_keys"] if not _CONSTANT.search(name))
    for prefix, how in _PREFIXES.items():
        if unexpected and all(prefix in name for name in unexpected):
            return (
                f"{len(unexpected)} tensors have names with {prefix!r} in them (the first: "
                f"{unexpected[0]}), {how} and give that"
            )
    if mismatched := sorted(report["mismatched_keys"], key=str):
        name, there, wanted = mismatched[0]
        return (
            f"{len(mismatched)} tensors are not of the shape that config.json asks for (the first: "
            f"{name}, {list(there)} there, {list(wanted)} by config.json); give the config.json "
            "that the weights were saved with"
        )
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors of {model} are missing ({_first(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} tensors are not {model}'s ({_first(unexpected)})")
    if report.get("error_msgs"):
        parts.append(" ".join(str(m) for m in report["error_msgs"])[:200])
    if not parts:
        return None
    return f"{'; '.join(parts)}; give the config.json and the weights of one and the same model"


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def compare_stored(folder: Path, config: Any, model: Any) -> None:
    """Compare the weight files' headers with the architecture.

    Args:
        folder: the model's.
        config: its configuration.
        model: the architecture on the meta device.

    Raises:
        ModelFileError: naming the file and the first tensors that are missing, surplus, of another
            shape or no floating-point numbers; or a head that is not the embedding it is tied to.
    """
    files = weight_files(folder)
    stored = stored_tensors(files)
    name = weights_name(folder)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if layers and layers > len(stored):
        raise ModelFileError(
            f"{name}: holds {len(stored)} tensors, too few for the {layers} layers of config.json; "
            "give the config.json and the weights of one and the same model"
        )
    numbers = {n for n, _ in model.named_parameters()}
    for key, tensor in stored.items():
        if key in numbers and not tensor.is_floating_point():
            raise ModelFileError(
                f"{name}: {key} is stored as {str(tensor.dtype).removeprefix('torch.')}, not as "
                "floating-point numbers; quantised weights cannot be trained, give the model in "
                "float32, float16 or bfloat16"
            )
    report = _report(model, stored)
    problem = loading_problem(report, type(model).__name__) if report else None
    if problem:
        raise ModelFileError(f"{name}: {problem}")
    if should_be_tied(model) and _stored_apart(model, stored, files):
        raise ModelFileError(two_heads(name))


def _report(model: Any, stored: dict[str, torch.Tensor]) -> dict[str, Any] | None:
    """The loading report of transformers for tensors on the meta device, or None."""
    try:
        loaded = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=dict(stored),
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    except Exception:
        # An architecture whose weights must be in memory to be converted: load_model will tell.
        return None
    return loaded[1]


def _stored_apart(model: Any, stored: dict[str, torch.Tensor], files: list[Path]) -> bool:
    """Whether the files hold an embedding and another head for a model whose head is tied."""
    head = model.get_output_embeddings()
    words = {id(head): "", id(model.get_input_embeddings()): ""}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in words:
            words[id(module)] = f"{name}.weight"
    names = [name for name in words.values() if name in stored]
    if len(names) < 2 or files[0].suffix != ".safetensors":
        return False  # load_model checks .bin files
    values = []
    for wanted in names:
        for path in files:
            with safe_open(path, framework="pt") as file:
                if wanted in file.keys():
                    values.append(file.get_tensor(wanted))
                    break
    return not torch.equal(values[0], values[1])


def should_be_tied(model: Any) -> bool:
    """Whether the configuration says so and the architecture has a head to tie."""
    declared = getattr(model, "_tied_weights_keys", None)
    return bool(declared) and bool(getattr(model.config, "tie_word_embeddings", False))


def is_tied(model: Any) -> bool:
    """Whether head and embedding are one tensor, or cannot be."""
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    return head is None or head.weight is words.weight or head.weight.shape != words.weight.shape


def two_heads(name: str) -> str:
    """The message for a tied model whose weight file ``name`` holds two tensors."""
    return (
        f"{name}: holds an embedding and another head, though config.json says that they are one "
        "(tie_word_embeddings); set it to false, or save the model with its head tied"
    )


def weights_name(folder: Path) -> str:
    """The name of the folder's weight file, for messages."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        for path in (folder / name, folder / f"{name}.index.json"):
            if path.exists():
                return path.name
    return "weights"
