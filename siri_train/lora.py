"""LoRA through peft: adapters inside the model, merged weights outside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from siri_train.config import ConfigError, LoraConfig

_A, _B, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."


def add_lora(model: Any, config: LoraConfig) -> None:
    """Put adapters into a model, in place, and freeze everything else.

    The model keeps its class and its methods; names gain ``base_layer``, ``lora_A`` and ``lora_B``.

    Raises:
        ConfigError: peft is not installed, no module has one of ``model.lora.targets``' names, or
            one of them is the head or the embedding.
    """
    try:
        from peft import LoraConfig as Adapter
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("model.lora: needs the package peft; pip install peft") from error
    targets = config.targets
    if not isinstance(targets, str):
        _refuse_vocabulary(model, targets)
    adapter = Adapter(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    if isinstance(targets, str):
        linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
        head = model.get_output_embeddings()
        adapter.target_modules = {n for n in linear if model.get_submodule(n) is not head}
    try:
        inject_adapter_in_model(adapter, model)
    except ValueError as error:
        raise ConfigError(f"model.lora.targets: {targets!r}: {error}") from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def _refuse_vocabulary(model: Any, targets: list[str]) -> None:
    """Head and embedding take no adapters: merged, a tied pair would become two, and an
    embedding's adapter has another form."""
    kept = {id(model.get_output_embeddings()), id(model.get_input_embeddings())}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) not in kept:
            continue
        hit = next((t for t in targets if name == t or name.endswith(f".{t}")), None)
        if hit is not None:
            raise ConfigError(
                f"model.lora.targets: {hit!r} is the model's head or embedding ({name}), which "
                "takes no adapter; takes layers of the transformer, as [q_proj, v_proj]"
            )


def has_lora(model: torch.nn.Module) -> bool:
    """Whether :func:`add_lora` has been applied."""
    return any(".lora_" in name for name, _ in model.named_parameters())


def merged(state: dict[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """A state without adapters: W + scaling * B A under the names of the plain model.

    Args:
        state: ``model.state_dict()``, whole tensors; not changed.
        scaling: alpha / rank.
    """
    plain = {}
    for name, value in state.items():
        if ".lora_" in name:
            continue
        stem = name.removesuffix("weight").rstrip(".").removesuffix(_BASE.rstrip("."))
        if _BASE in name and stem + _A in state:
            delta = state[stem + _B].float() @ state[stem + _A].float()
            value = (value.float() + scaling * delta).to(value.dtype)
        plain[name.replace(_BASE, ".")] = value
    return plain


def adapters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The adapters of a state, under their own names."""
    return {name: value for name, value in state.items() if ".lora_" in name}
