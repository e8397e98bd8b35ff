"""Checks that a vLLM server fits the recipe and has the right flags, before weights are sent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from siri_train.config.base import ConfigError
from siri_train.rollout.engine import EngineError
from siri_train.rollout.vllm import versions
from siri_train.rollout.vllm.engine import check_model
from siri_train.rollout.vllm.http_client import Faulty, JsonClient, Refused, Unreachable
from siri_train.rollout.vllm.versions import Routes

_WAIT = 120.0  # the first /server_info collects the machine's whole environment
_COMPARED = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)


@dataclass(frozen=True)
class Settings:
    """The settings that a server reports.

    Args:
        version: of vLLM.
        model: a folder or a hub id.
        dtype: what it computes in.
        device: ``cpu``, ``cuda``.
        max_model_len: longest prompt with response, in tokens.
        logprobs_mode: of its flag.
        load_format: of its flag.
        transfer: of ``--weight-transfer-config``; None without it.
        weights: the name of the weights that it holds.
    """

    version: str
    model: str
    dtype: torch.dtype
    device: str
    max_model_len: int
    logprobs_mode: str
    load_format: str
    transfer: str | None
    weights: str


def read_settings(client: JsonClient) -> Settings:
    """Ask a server for its version and settings.

    Raises:
        ConfigError: not a vLLM server, of an unsupported version, or without the routes of weight
            sync or of token ids.
        EngineError: it cannot be reached.
    """
    try:
        return _read(client)
    except Unreachable as error:
        raise EngineError(f"rollout.server.url: {error}") from error
    except (Faulty, KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"rollout.server.url: {client.url} does not answer as a vLLM server does: "
            f"{type(error).__name__}: {error}"
        ) from error


def _read(client: JsonClient) -> Settings:
    try:
        version = client.get(Routes.VERSION, _WAIT)["version"]
    except Refused as error:
        raise ConfigError(f"rollout.server.url: {client.url} is no vLLM server: {error}") from error
    versions.features(version, f"runs at {client.url}")
    try:
        config = client.get(Routes.SETTINGS, _WAIT)["vllm_config"]
        weights = versions.weights_name(client.get(Routes.WEIGHTS_NAME, _WAIT))
    except Refused as error:
        raise ConfigError(
            f"rollout.server.url: {client.url} has no routes for new weights ({error}); start "
            f"`vllm serve` with {versions.DEVELOPER_MODE}=1 in its environment"
        ) from error
    try:
        client.post(Routes.GENERATE, {}, _WAIT)
    except Refused as error:
        if error.status == 401:
            raise ConfigError(
                f"rollout.server.url: {client.url} wants a key; set {versions.KEY} to it"
            ) from error
        if error.status in (403, 404):
            raise ConfigError(
                f"rollout.server.url: {client.url} does not take token ids ({error}); start "
                f"`vllm serve` with {versions.TOKENS_ONLY}"
            ) from error
    found = versions.reported(config)
    dtype = getattr(torch, found.pop("dtype"))
    return Settings(version=version, dtype=dtype, weights=weights, **found)


def check_settings(
    settings: Settings,
    url: str,
    *,
    model_config: Any,
    longest: int,
    temperature: float,
    dtype: str,
    sync: str,
) -> bool:
    """Refuse a server that would sample from another model or distribution than the trained one.

    Args:
        settings: see :class:`Settings`.
        url: of the server, for the errors.
        model_config: the trainer's model configuration (transformers' ``PretrainedConfig``).
        longest: tokens of the longest prompt with the longest response.
        temperature: of the rollouts.
        dtype: what the server must compute in.
        sync: ``rollout.server.sync``.

    Returns:
        Whether the server's head is a separate matrix although the trainer's is tied.

    Raises:
        ConfigError: naming what is wrong and the flag of ``vllm serve`` that makes it right.
    """

    def wrong(what: str, how: str) -> ConfigError:
        return ConfigError(f"rollout.server.url: {url} {what}; start `vllm serve` {how}")

    mode = settings.logprobs_mode
    if mode != versions.LOGPROBS_MODE:
        raise wrong(
            f"reports {mode}: its log-probs are from before the temperature ({temperature})",
            f"with --logprobs-mode {versions.LOGPROBS_MODE}",
        )
    if settings.max_model_len < longest:
        raise wrong(
            f"takes {settings.max_model_len} tokens, but data.max_prompt_len + the longest "
            f"response = {longest}",
            f"with --max-model-len {longest}",
        )
    if settings.dtype != getattr(torch, dtype):
        raise wrong(
            f"computes in {settings.dtype}, expected is {dtype} (rollout.vllm.dtype, else "
            "model.dtype)",
            f"with --dtype {dtype}",
        )
    if sync == "disk" and settings.load_format == "dummy":
        raise wrong("was started with --load-format dummy, which cannot load files", "without it")
    if sync == "nccl" and settings.transfer != "nccl":
        raise wrong(
            f"has the weight transfer {settings.transfer}, rollout.server.sync is nccl",
            "with {} '{}'".format(*versions.nccl_flags()),
        )
    if settings.device == "cpu":
        check_model(model_config, torch.device("cpu"))
    theirs = _config_json(settings.model)
    tied = bool(getattr(model_config, "tie_word_embeddings", False))
    if theirs is None:
        print(
            f"vLLM server at {url}: {settings.model} cannot be read here, so its shape is not "
            "compared with the model's; weights that do not fit fail at the first sync",
            flush=True,
        )
        return False
    ours = model_config.to_dict()
    for name in _COMPARED:
        a, b = ours.get(name), theirs.get(name)
        if a is not None and b is not None and a != b:
            raise wrong(
                f"serves another model: {name} is {b} there and {a} here ({settings.model})",
                "with the model of the recipe",
            )
    untied = tied and not theirs.get("tie_word_embeddings", False)
    stale = versions.keeps_stale_head(settings.device, settings.dtype == torch.float32)
    if stale and tied and not untied:
        raise wrong(
            "shares one matrix between embedding and head, which vLLM on a CPU in float32 keeps "
            "stale when weights are replaced",
            "on a copy of the model's folder with tie_word_embeddings false in config.json",
        )
    if not tied and theirs.get("tie_word_embeddings", False):
        raise wrong(
            "shares one matrix between embedding and head, the model here does not",
            "with the model of the recipe",
        )
    return untied


def _config_json(model: str) -> dict[str, Any] | None:
    """The config.json of a folder or of the hub's cache here; None where there is none."""
    from transformers import PretrainedConfig

    path = Path(model) / "config.json"
    if path.is_file():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    try:
        return dict(PretrainedConfig.get_config_dict(model, local_files_only=True)[0])
    except (OSError, ValueError):
        return None
