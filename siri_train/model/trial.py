"""Runs a model once, for a few tokens, before work begins: finds faults that only show there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from siri_train.model.attention import NAME, Layout, packed_forward
from siri_train.model.files import ModelFileError

_LENGTHS = (6, 4)
# Largest difference of a sequence in a packed row from the same sequence alone. In float32,
# attention gives 2e-7, and a leak from the other sequence 4e-4 and more. In 16 bits, rounding may
# make a mixture of experts choose another expert.
_TOLERANCE, _TOLERANCE_16 = 1e-4, 0.1
# Parts of the names of layers that carry a state from token to token.
_CARRY = ("linear", "mamba", "conv", "recurrent", "rwkv", "hybrid")


def check_layers(config: Any) -> None:
    """Refuse an architecture whose class or configuration shows that packed rows would mix.

    Args:
        config: transformers' ``PretrainedConfig``.

    Raises:
        ModelFileError: naming the first layer that is no attention; or transformers has the
            architecture with an attention of its own only.
    """
    architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if getattr(architecture, "_supports_sdpa", True) is False:
        raise ModelFileError(
            f"config.json: transformers has {config.model_type} without scaled-dot-product "
            "attention, which packed rows need; give another model"
        )
    text = config.get_text_config()
    for key in ("layer_types", "layers_block_type"):
        for kind in getattr(text, key, None) or ():
            if isinstance(kind, str) and any(word in kind for word in _CARRY):
                raise ModelFileError(
                    f"config.json: {key} holds {kind!r}: such layers do not stop where a sequence "
                    f"of a packed row ends, so {config.model_type} cannot be trained here; give a "
                    "model whose layers all are attention"
                )


@torch.no_grad()
def try_model(model: Any) -> None:
    """Run two short sequences in one packed row, and the second alone.

    An odd rotary base or epsilon shows only in the output. Layers that carry a state from token to
    token, or have attention or positions of their own, do not stop at the end of a sequence in a
    packed row; the model would be trained on wrong numbers.

    Args:
        model: a transformers model after :func:`siri_train.model.attention.prepare`, in evaluation
            mode.

    Raises:
        ValueError: the output is not finite, or a sequence depends on the one before it.
    """
    require_packed(model)
    weight = model.get_input_embeddings().weight
    ids = (7 * torch.arange(1, 1 + sum(_LENGTHS), device=weight.device) % len(weight))[None]
    with packed_forward(Layout.of(_LENGTHS, weight.device)) as packed:
        row = model.base_model(input_ids=ids, **packed).last_hidden_state[0].float()
    own = ids[:, _LENGTHS[0] :]
    seen = torch.ones_like(own)
    whole = model.base_model(input_ids=own, attention_mask=seen, use_cache=False)
    alone = whole.last_hidden_state[0].float()
    if not (row.isfinite().all() and alone.isfinite().all() and _tables_are_numbers(model)):
        raise ValueError("its output is not finite; correct config.json or give whole weights")
    most = _TOLERANCE if weight.dtype == torch.float32 else _TOLERANCE_16
    if (row[_LENGTHS[0] :] - alone).norm() > most * alone.norm():
        raise ValueError(_mixes(model))


def require_packed(model: Any) -> None:
    """Refuse a model that ``model.attention.prepare`` could not give packed attention.

    Raises:
        ValueError: transformers has left its own attention in place.
    """
    if model.config._attn_implementation != NAME:
        raise ValueError(_mixes(model))


def _tables_are_numbers(model: Any) -> bool:
    """Whether rotary tables hold numbers: some attention kernels take NaN scores as masked."""

    def right(name: str, table: Tensor) -> bool:
        odd = ~table.isfinite() if name.endswith("inv_freq") else table.isnan()
        return not bool(odd.any())

    return all(right(name, table) for name, table in model.named_buffers())


def _mixes(model: Any) -> str:
    return (
        "its layers do not keep the sequences of a packed row apart (recurrent, convolutional, or "
        f"attention or positions of {model.config.model_type}'s own), so it cannot be trained "
        "here; give a model whose layers all are attention"
    )
