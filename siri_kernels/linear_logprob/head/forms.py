"""The forms of a ``LogprobHead`` in a model: inside FSDP's wrappers and under PEFT's adapters.

Nothing of torch.distributed or peft is imported; their modules are known by what they hold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from siri_kernels.linear_logprob.api import linear_logprob
from siri_kernels.linear_logprob.head.scoring import ScoringHead
from siri_kernels.linear_logprob.head.uncast import unpack
from siri_kernels.linear_logprob.types import LogprobOutput

# Modules that hand their arguments on unchanged: FSDP1's, activation checkpointing's, DDP's.
_PASSING = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")
_REMEDY = (
    "Leave the head out of the adapter (exclude_modules=['lm_head'] in its configuration), or "
    "train it whole (modules_to_save=['lm_head']), or merge the adapter "
    "(peft_model.merge_and_unload())"
)


class HeadError(RuntimeError):
    """A head that was changed after ``LogprobHead.wrap`` into one that cannot score targets."""


def innermost(head: Any) -> nn.Module:
    """The linear layer itself, taken out of every wrapper and adapter around it."""
    while True:
        parts = getattr(head, "_modules", {})
        for name in (*_PASSING, "original_module", "token_adapter", "base_layer"):
            if isinstance(parts.get(name), nn.Module):
                head = parts[name]
                break
        else:
            return head


def is_wrapped(head: Any) -> bool:
    """Whether ``head`` was made by ``LogprobHead.wrap``, whatever was put around it since."""
    return isinstance(innermost(head), ScoringHead)


def score(
    head: Any, hidden: torch.Tensor, targets: torch.Tensor, options: dict[str, Any]
) -> LogprobOutput:
    """Log-probs and entropy of ``targets`` by the weights that ``head`` would use for logits.

    Taken are a ``LogprobHead``, also inside FSDP1 or activation checkpointing, PEFT's
    ``modules_to_save`` and ``trainable_token_indices``, and plain LoRA on the head: its rank is
    added to the width of the product, for which the weight is copied once a call.

    Args:
        head: the output embeddings of a wrapped model.
        hidden: [..., D].
        targets: [...] int64.
        options: of ``linear_logprob``.

    Raises:
        HeadError: another head, and what to do.
    """
    inner = head
    while not isinstance(inner, ScoringHead):
        _refuse_adapter_names(inner)
        parts = getattr(inner, "_modules", {})
        passing = next((parts[name] for name in _PASSING if parts.get(name) is not None), None)
        if passing is not None:
            inner = passing
        elif "modules_to_save" in parts:
            inner = _saved(inner)
        else:
            break
    if isinstance(inner, ScoringHead):
        return head(hidden, targets, **options)
    hidden, weight, bias = _adapted(inner, hidden)
    if weight is not innermost(inner).weight:
        options = {**options, "screen": _screen_of_a_new_weight(options.get("screen"))}
    if hasattr(weight, "full_tensor"):
        raise HeadError(
            f"its head is a {type(inner).__name__} and a sharded unit of its own; leave it to the "
            "unit around it (no fully_shard of the head alone)"
        )
    if not torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(weight.dtype)
    temperature = unpack(options.get("temperature", 1.0), hidden.device)
    return linear_logprob(
        hidden, weight, targets, bias=bias, **{**options, "temperature": temperature}
    )


def _screen_of_a_new_weight(screen: Any) -> Any:
    """The screen where an adapter makes a new weight in every call: none, for what it costs.

    The 8-bit copy of the weight would be made in every call too.

    Raises:
        HeadError: the caller asks for one by name.
    """
    if screen == "auto":
        return None
    if screen in ("int8", "fp8"):
        raise HeadError(
            f"screen={screen!r} keeps an 8-bit copy of the head's weight, but the adapter on the "
            f"head makes a new weight in every call; pass screen='auto' or None. {_REMEDY}"
        )
    return screen


def _refuse_adapter_names(module: Any) -> None:
    """PEFT gives the names of a mixed batch to its layers by hooks, which are not run here."""
    for hook in getattr(module, "_forward_pre_hooks", {}).values():
        if "adapter_names" in getattr(hook, "keywords", {}):
            raise HeadError(
                "its head has adapters and adapter_names gives each row one of its own; score the "
                "rows of each adapter in a call of their own (peft_model.set_adapter(NAME)), or "
                "leave the head out of the adapters (exclude_modules=['lm_head'])"
            )


def forget_adapter_names(model: nn.Module) -> None:
    """Removes PEFT's hooks of a mixed batch after a refused call.

    PEFT itself removes them only after a call that succeeds. Every later call would still be a
    mixed one.
    """
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if "adapter_names" in getattr(hook, "keywords", {}):
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)


def _saved(wrapper: Any) -> Any:
    """The copy of the head that PEFT's ModulesToSaveWrapper uses now."""
    active = wrapper.active_adapters
    if wrapper.disable_adapters or not active or active[0] not in wrapper.modules_to_save:
        return wrapper.original_module
    return wrapper.modules_to_save[active[0]]


def _adapted(
    layer: Any, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """``hidden``, weight and bias whose product is what ``layer`` computes."""
    kind = type(layer)
    if kind.forward is nn.Linear.forward:  # a tied copy that PEFT made for modules_to_save
        return hidden, layer.weight, layer.bias
    if "token_adapter" in getattr(layer, "_modules", {}):
        layer = layer.token_adapter
        kind = type(layer)
    if hasattr(layer, "get_merged_weights"):  # trainable_token_indices
        base = layer.base_layer
        if layer.disable_adapters or layer.merged or not layer.active_adapters:
            return hidden, base.weight, base.bias
        return hidden, layer.get_merged_weights(layer.active_adapters), None
    if kind.__name__ == "Linear" and kind.__module__ == "peft.tuners.lora.layer":
        return _lora(layer, hidden)
    raise HeadError(f"its head is {kind.__module__}.{kind.__name__} now. {_REMEDY}")


def _lora(layer: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """W h + s B A h = [W, s B] [h; A h], also with dropout before A."""
    base = layer.base_layer
    if layer.disable_adapters and layer.merged:
        layer.unmerge()
    if layer.disable_adapters or layer.merged:
        return hidden, base.weight, base.bias
    dtype = base.weight.dtype
    widths, columns, bias = [hidden.to(dtype)], [base.weight], base.bias
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        if name in getattr(layer, "lora_variant", {}):
            kind = type(layer.lora_variant[name]).__name__
            raise HeadError(f"its head has an adapter of the kind {kind}. {_REMEDY}")
        a, b, scale = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
        if b.bias is not None:
            more = scale * b.bias
            bias = more if bias is None else bias + more
        # PEFT keeps adapters of a 16-bit model in float32: A h is computed so, then rounded.
        widths.append(a(layer.lora_dropout[name](hidden.to(a.weight.dtype))).to(dtype))
        columns.append((scale * b.weight).to(dtype))
    return torch.cat(widths, -1), torch.cat(columns, -1), bias
