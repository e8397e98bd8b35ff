"""LoRA through peft: adapters inside the model, merged weights outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from siri_train.config.base import ConfigError
from siri_train.config.model import LoraConfig

_A, _B, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."


def add_lora(model: Any, config: LoraConfig) -> None:
    """Put adapters into a model, in place, and freeze everything else.

    The model keeps its class and its methods; names gain ``base_layer``, ``lora_A`` and ``lora_B``.

    Args:
        model: a transformers model.
        config: the recipe's ``model.lora``.

    Raises:
        ConfigError: see :func:`check_lora`.
    """
    check_lora(model, config)
    from peft import LoraConfig as Adapter
    from peft import inject_adapter_in_model

    targets = config.targets
    adapter = Adapter(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    if isinstance(targets, str):
        adapter.target_modules = set(_linear(model))
    try:
        inject_adapter_in_model(adapter, model)
    except ValueError as error:
        raise ConfigError(f"model.lora.targets: {targets!r}: {error}") from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def check_lora(model: Any, config: LoraConfig) -> None:
    """Check that adapters can be put into a model; nothing is changed.

    Args:
        model: a transformers model, which may be on the meta device.
        config: the recipe's ``model.lora``.

    Raises:
        ConfigError: one of ``model.lora.targets`` is no layer of the model, not a
            ``torch.nn.Linear``, or the head or the embedding; the message lists the names that are
            accepted. Or the model has no such layer at all, or peft is not installed.
    """
    linear, targets = _linear(model), config.targets
    kind = type(model).__name__
    if not linear:
        # GPT-2's Conv1D keeps its weight transposed, which `merged` does not know.
        raise ConfigError(
            f"model.lora: {kind} has no torch.nn.Linear but its head, and no other layer takes "
            "adapters; set model.lora=null"
        )
    if not isinstance(targets, str):
        _refuse_vocabulary(model, targets)
        names = sorted({name.rpartition(".")[2] for name in linear})
        takes = f"takes all-linear, or names among {', '.join(names)}"
        if not targets:
            raise ConfigError(f"model.lora.targets: got []; {takes}")
        for target in targets:
            hits = [n for n, _ in model.named_modules() if n == target or n.endswith(f".{target}")]
            odd = next((name for name in hits if name not in linear), None)
            if odd is not None:
                raise ConfigError(
                    f"model.lora.targets: {target!r} names {odd} of {kind}, which is a "
                    f"{type(model.get_submodule(odd)).__name__}, no torch.nn.Linear; {takes}"
                )
            if not hits:
                raise ConfigError(f"model.lora.targets: {kind} has no layer {target!r}; {takes}")
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ConfigError("model.lora: needs the package peft; pip install peft") from error


def _linear(model: Any) -> dict[str, None]:
    """Names of the layers that take adapters, in the model's order."""
    head = model.get_output_embeddings()
    return {
        name: None
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def _refuse_vocabulary(model: Any, targets: list[str]) -> None:
    """Refuse adapters of head and embedding.

    Merging would separate a tied pair, and an embedding's adapter has another form.
    """
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


@contextmanager
def adapters_off(model: torch.nn.Module) -> Iterator[None]:
    """Switch the adapters off inside the body: the model is its base, without a second copy.

    Args:
        model: see :func:`add_lora`; it may be sharded.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    # Not enable_adapters(False): it freezes the adapters' weights, which FSDP2 does not expect
    # to change after it has sharded them.
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, off in zip(layers, before, strict=True):
            layer._disable_adapters = off
