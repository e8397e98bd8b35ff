"""The recipe's vLLM server: checked before anything is loaded, then started or connected to."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from siri_train import distributed
from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig
from siri_train.model.policy import Policy
from siri_train.rollout.vllm import versions
from siri_train.rollout.vllm.engine import check_model
from siri_train.rollout.vllm.handshake import Settings, check_settings, read_settings
from siri_train.rollout.vllm.http_client import JsonClient
from siri_train.rollout.vllm.server import VllmServerEngine
from siri_train.rollout.vllm.server_process import (
    ServerProcess,
    python_version_of_vllm,
    wait_for_server,
)
from siri_train.rollout.vllm.weight_sync import (
    UNUSED,
    DiskTransfer,
    NcclTransfer,
    drain,
    named_weights,
    write_engine_folder,
)


def check_server(
    config: RunConfig, model_config: Any, device: torch.device, *, take_server: bool = True
) -> None:
    """Refuse a server that cannot serve this recipe.

    Args:
        config: the recipe, with ``rollout.engine: vllm-server``.
        model_config: the model's configuration (transformers' ``PretrainedConfig``).
        device: the trainer's.
        take_server: also take a server of ``rollout.server.url`` that holds the weights of a run.

    Raises:
        ConfigError: the server does not fit (see :func:`.check_settings`) or holds the weights of a
            run. For a server that the trainer starts: vLLM is missing or unsupported, no GPUs are
            named for it, or ranks are on several machines.
        EngineError: ``rollout.server.url`` does not answer.
    """
    server = config.rollout.server
    if server.sync == "nccl" and device.type != "cuda":
        raise ConfigError(
            f"rollout.server.sync: got nccl, but the trainer works on {device}; takes disk there"
        )
    if server.url is not None:
        client = _client(server.url, os.environ.get(versions.KEY))
        wait_for_server(client, 60 * server.start_minutes)
        settings = read_settings(client)
        _check(config, settings, client.url, model_config)
        if not take_server and settings.weights not in UNUSED:
            raise ConfigError(
                f"rollout.server.url: {client.url} holds the weights {settings.weights} of a run "
                "that may still sample with them. Is it over? Then say so by naming the server on "
                f"the command line, rollout.server.url={client.url}. Else name another one, or "
                "null to start one here"
            )
        return
    known = python_version_of_vllm(server.python or sys.executable)
    versions.features(known, f"is installed for {server.python or sys.executable}")
    check_model(model_config, device)
    if device.type == "cuda" and server.gpus is None:
        raise ConfigError(
            'rollout.server.gpus: name the server\'s own GPUs, as "1" (they are its '
            "CUDA_VISIBLE_DEVICES); to share the trainer's set rollout.engine=vllm"
        )
    ranks = os.environ.get("WORLD_SIZE", "1")
    if os.environ.get("LOCAL_WORLD_SIZE", ranks) != ranks:
        raise ConfigError(
            "rollout.server.url: the ranks are on several machines, where the trainer starts no "
            "server; start `vllm serve` yourself and name it"
        )


def build_server_engine(
    config: RunConfig, policy: Policy, *, ahead: bool = False
) -> VllmServerEngine:
    """Connect to the recipe's server, or start it, and give it the policy's weights.

    Every rank must call it.

    Args:
        config: the recipe, with ``rollout.engine: vllm-server``.
        policy: the trainer's.
        ahead: without effect: the server has weights of its own anyway.

    Raises:
        ConfigError: as :func:`check_server`.
        EngineError: the server does not come up, or does not take the weights.
    """
    server, model_config = config.rollout.server, policy.model.config
    folder = _folder(config)
    transfer: DiskTransfer | NcclTransfer = DiskTransfer(folder)
    if server.sync == "nccl":
        transfer = NcclTransfer(policy.device)
    untie = server.url is None and policy.device.type == "cpu"
    process, url, key = None, server.url, os.environ.get(versions.KEY)
    problem: Exception | None = None
    if distributed.is_main():
        try:
            _clear(folder)
        except OSError as error:
            problem = error
    if url is None:
        weights: Iterator[tuple[str, Any]] = iter(())
        if isinstance(transfer, DiskTransfer):
            dtype = getattr(torch, config.sampler_dtype)
            scaling = policy.lora_scaling
            weights = named_weights(policy.model, dtype, untie=untie, lora_scaling=scaling)
        if distributed.is_main() and problem is None:
            try:
                process = _start(config, policy, transfer, weights, untie=untie)
                url, key = process.url, process.key
            except Exception as error:  # the other ranks wait for the address or an error
                problem = error
        drain(weights)
    url, key, problem = distributed.from_main((url, key, problem))
    if problem is not None:
        raise problem
    assert url is not None
    try:
        client = _client(url, key)
        wait_for_server(client, 60 * server.start_minutes, process)
        settings = read_settings(client)
        untied = _check(config, settings, url, model_config)
        if server.sync == "nccl":
            here = versions.installed_version()
            if not versions.same_minor(here, settings.version):
                raise ConfigError(
                    f"rollout.server.sync: nccl needs the same vLLM on both sides; here is {here}, "
                    f"{url} runs {settings.version}"
                )
        return VllmServerEngine(
            policy.model,
            client,
            settings,
            transfer,
            vocab_size=model_config.vocab_size,
            untie=untied or untie,
            lora_scaling=policy.lora_scaling,
            process=process,
            written=server.url is None and server.sync == "disk",
            concurrency=server.concurrency,
            patience=60 * server.start_minutes,
            request_timeout=60 * server.request_minutes,
            retries=server.retries,
        )
    except BaseException:
        if process is not None:
            process.close()
        if distributed.is_main():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _start(
    config: RunConfig,
    policy: Policy,
    transfer: DiskTransfer | NcclTransfer,
    weights: Iterator[tuple[str, Any]],
    *,
    untie: bool,
) -> ServerProcess:
    """Start a server with the policy's weights, or with random ones where nccl sends them."""
    server = config.rollout.server
    if isinstance(transfer, DiskTransfer):
        transfer.prepare = lambda path: write_engine_folder(policy.model, path, untie=untie)
        transfer.write(weights, "weights_000000")
        folder = transfer.latest
    else:
        folder = _folder(config) / "model"
        write_engine_folder(policy.model, folder, untie=untie)
    return ServerProcess(
        folder,
        _arguments(config),
        config.run_dir / "server.log",
        python=server.python or sys.executable,
        gpus=server.gpus,
        restarts=server.restarts,
    )


def _check(config: RunConfig, settings: Settings, url: str, model_config: Any) -> bool:
    return check_settings(
        settings,
        url,
        model_config=model_config,
        longest=config.longest_sequence,
        temperature=config.rollout.temperature,
        dtype=config.sampler_dtype,
        sync=config.rollout.server.sync,
    )


def _arguments(config: RunConfig) -> list[str]:
    """Flags of the trainer's own server; those of ``rollout.server.args`` override the others."""
    nccl = config.rollout.server.sync == "nccl"
    flags = versions.server_flags(config.longest_sequence, nccl=nccl)
    flags += versions.own_server_flags(config.sampler_dtype, nccl=nccl)
    return flags + config.rollout.server.args


def _client(url: str, key: str | None) -> JsonClient:
    try:
        return JsonClient(url, key)
    except ValueError as error:
        raise ConfigError(f"rollout.server.url: {error}") from error


def _folder(config: RunConfig) -> Path:
    """The folder where weights are written for the server; each run has its own."""
    run = config.run_dir.resolve()
    if config.rollout.server.sync_dir is None:
        return run / "server"
    return Path(config.rollout.server.sync_dir) / ("siri" + str(run).replace(os.sep, "_"))


def _clear(folder: Path) -> None:
    """Empty the folder: weights of a killed run are as large as the model."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
