"""The policy: loading, end-of-sequence ids, and log-probs of packed responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from siri_train.config.base import ConfigError
from siri_train.config.model import ModelConfig
from siri_train.config.run import DistributedConfig, TrainConfig
from siri_train.files import shown
from siri_train.model import attention, demo_model, fsdp, lora
from siri_train.model.attention import Layout
from siri_train.model.attention import prepare as prepare  # where it can be had without pydantic
from siri_train.model.chat_template import eos_token_ids
from siri_train.model.files import cause
from siri_train.model.folder import check_model, load_config, load_model
from siri_train.model.gguf import ConversionError, convert_gguf
from siri_train.model.packing import MicroBatch
from siri_train.model.think_marks import decode_responses
from siri_train.model.trial import try_model


@dataclass
class Policy:
    """A causal language model with what training needs to know about it.

    Args:
        model: the transformers model; its language-model head is a ``siri_kernels.LogprobHead``
            and its attention ``siri_train.model.attention`` (:func:`prepare` makes it so).
        tokenizer: its tokenizer.
        eos_ids: the end-of-sequence set.
        softcap: final logit soft-capping of the architecture, if any.
        lora_scaling: alpha / rank where only adapters are trained, else None.
        screen: of ``siri_kernels.linear_logprob``, for every log-prob; None: exact.
        logprob_tol: the same.
    """

    model: Any
    tokenizer: Any
    eos_ids: frozenset[int]
    softcap: float | None
    lora_scaling: float | None = None
    screen: str | None = None
    logprob_tol: float = 1e-4

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        placed = getattr(self.model, "siri_device", None)
        return next(self.model.parameters()).device if placed is None else placed

    @property
    def pad_token_id(self) -> int:
        """An id to pad with; it is always masked."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else min(self.eos_ids)

    def token_logprobs(
        self, batch: MicroBatch, *, temperature: float = 1.0, tail: float = 1e-2
    ) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy of every response token.

        The transformer runs on a packed row; the head sees only the hidden states that predict a
        response token.

        Args:
            batch: what to score; [T] response tokens in all.
            temperature: of the sampling distribution.
            tail: see ``siri_kernels.linear_logprob``.

        Returns:
            logprobs [T] and entropy [T], float32, both differentiable.
        """
        # A sharded model gathers its weights around this method (fsdp.shard put it there).
        call = getattr(self.model, "siri_token_logprobs", None)
        if call is None:
            call = MethodType(token_logprobs, self.model)
        return call(
            batch.input_ids,
            batch.layout,
            batch.predictors,
            batch.targets,
            temperature=temperature,
            tail=tail,
            softcap=self.softcap,
            screen=self.screen,
            logprob_tol=self.logprob_tol,
        )

    def decode(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """The responses' text without special tokens, but with the marks of the reward."""
        return decode_responses(self.tokenizer, responses)

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write a folder that ``from_pretrained`` loads: config, safetensors, tokenizer.

        Args:
            folder: where to.
            weights: :meth:`weights`, collected before; needed where the model is sharded.
        """
        self.model.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save_pretrained(folder)

    def weights(self) -> tuple[dict[str, Tensor] | None, dict[str, Tensor] | None]:
        """The weights that :meth:`save` writes, and the adapters; every rank must call it.

        Returns:
            The whole weights, adapters merged, on the CPU of rank 0 where the model is sharded
            (empty on the others); None where they are the model's own. And the adapters, or None.
        """
        sharded, adapted = fsdp.is_sharded(self.model), self.lora_scaling is not None
        if not sharded and not adapted:
            return None, None
        state = fsdp.full_state_dict(self.model)
        if self.lora_scaling is None:
            return state, None
        return lora.merged(state, self.lora_scaling), lora.adapters(state)


def token_logprobs(
    model: Any,
    input_ids: Tensor,
    layout: Layout,
    predictors: Tensor,
    targets: Tensor,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The forward pass of :meth:`Policy.token_logprobs` as a method of the model.

    Args:
        model: see :func:`prepare`.
        input_ids: [1, N] int64.
        layout: where the row's sequences are.
        predictors: [T] int64, positions in the row.
        targets: [T] int64.
        **options: of ``siri_kernels.linear_logprob``.

    Returns:
        logprobs [T] and entropy [T], float32.
    """
    with attention.packed_forward(layout) as packed:
        hidden = model.base_model(input_ids=input_ids, **packed).last_hidden_state
    out = model.get_output_embeddings()(hidden[0, predictors], targets, **options)
    # Copies: FSDP2 hooks into what is returned and warns about views.
    return out.logprobs.clone(), out.entropy.clone()


def resolve_model_path(config: ModelConfig) -> str:
    """The folder (or hub id) to load, converting a GGUF file first where the recipe says so.

    Raises:
        ConfigError: a local path that does not exist and nothing to convert it from.
    """
    if config.path in demo_model.START_FOLDERS:
        return str(demo_model.START_FOLDERS[config.path])
    path = Path(config.path)
    if not config.path.strip():
        raise ConfigError("model.path: is empty; give a folder that from_pretrained loads")
    try:
        there = path.exists() or path.is_symlink()
    except OSError as error:
        raise ConfigError(
            f"model.path: {shown(config.path)!r} cannot be read: {cause(error)}; "
            "give a folder that from_pretrained loads"
        ) from error
    if there:
        return str(path)
    if config.convert_from:
        print(f"model: converting {config.convert_from} to {path} (once)", flush=True)
        try:
            convert_gguf(config.convert_from, path, dtype=config.dtype)
        except ConversionError as error:
            raise ConfigError(f"model.convert_from: {error}") from error
        return str(path)
    if len(path.parts) == 2 and not config.path.startswith((".", "/", "models/", "runs/")):
        return config.path  # a hub id, NAME/MODEL
    raise ConfigError(
        f"model.path: {config.path!r} does not exist; give a folder that from_pretrained loads, a "
        "hub id, or set model.convert_from=PACKAGE:FILE.gguf"
    )


def load_policy(
    config: ModelConfig,
    device: torch.device,
    path: str | Path | None = None,
    sharding: DistributedConfig | None = None,
    named: str = "model.path",
    train: TrainConfig | None = None,
) -> Policy:
    """Load model and tokenizer for training.

    Args:
        config: the recipe's model section.
        device: where to put the weights.
        path: load from here (a checkpoint) instead of ``config.path``.
        sharding: shard the weights over the ranks of the process group so; None: every process has
            all of them.
        named: the key or argument that gave the folder, for error messages.
        train: the recipe's section, whose screen log-probs have; None: they are exact.

    Raises:
        ConfigError: what :func:`siri_train.model.folder.load_model` refuses, a model whose output
            is not finite or mixes the sequences of a packed row (:func:`try_model`), or
            ``model.liger: on`` without a GPU.
    """
    model: Any
    tokenizer: Any
    if config.liger == "on" and device.type == "cpu":  # Triton would say so at the first forward
        raise ConfigError(
            f"model.liger: on, but Liger's kernels need a GPU and device is {str(device)!r}; use "
            "auto or off"
        )
    if config.scratch is not None and path is None:
        model, tokenizer = demo_model.scratch_model(config.scratch)
    else:
        source = str(path) if path is not None else resolve_model_path(config)
        tokenizer = check_model(source, named, say=False).tokenizer
        model = load_model(source, named, getattr(torch, config.dtype))
        try:
            prepare(model)
            try_model(model)
        except Exception as error:  # an odd config.json may raise anything in the layers
            raise ConfigError(
                f"{named}: {source!r}: config.json: {type(model).__name__} cannot be run: "
                f"{cause(error)}"
            ) from error
    prepare(model)
    try:
        eos_ids = eos_token_ids(tokenizer, model.config, model.generation_config)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{named}: {error}; no answer would ever end") from error
    if sharding is None:
        model.to(device)
    if config.liger == "on" or (config.liger == "auto" and device.type == "cuda"):
        apply_liger(model, required=config.liger == "on")
    if config.lora is not None:
        lora.add_lora(model, config.lora)
        model.to(next(model.parameters()).device)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if sharding is not None:
        try:
            fsdp.shard(
                model,
                device,
                methods={"siri_token_logprobs": token_logprobs},
                reshard_after_forward=sharding.reshard_after_forward,
                compute_dtype=getattr(torch, sharding.compute_dtype or "", None),
                offload=sharding.offload,
                vocabulary_parallel_head=sharding.vocabulary_parallel_head,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
    scoring = train or TrainConfig()
    return Policy(
        model=model,
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        softcap=getattr(model.config, "final_logit_softcapping", None),
        lora_scaling=config.lora.alpha / config.lora.rank if config.lora else None,
        screen=scoring.screen,
        logprob_tol=scoring.logprob_tol,
    )


def max_positions(config: ModelConfig) -> int | None:
    """Positions the model was built for, read from its config without loading weights."""
    if config.scratch is not None:
        return config.scratch.max_position_embeddings
    loaded = load_config(resolve_model_path(config), "model.path")
    return getattr(loaded, "max_position_embeddings", None)


def apply_liger(model: Any, required: bool) -> bool:
    """Swap in Liger's RMSNorm, SwiGLU and RoPE kernels; the head and the loss stay ours.

    Args:
        model: a transformers model; its modules are changed in place.
        required: whether it is an error where they cannot be had.

    Returns:
        Whether it was done.

    Raises:
        ConfigError: ``required``, and liger-kernel is missing or has nothing for this model.
    """
    kind = model.config.model_type
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

        problem = "" if kind in MODEL_TYPE_TO_APPLY_LIGER_FN else f"has no kernels for {kind!r}"
    except ImportError as error:
        problem = f"cannot be imported ({error})"
    if problem:
        if required:
            raise ConfigError(f"model.liger: on, but liger-kernel {problem}; use auto or off")
        print(f"model.liger: auto: left out, liger-kernel {problem}", flush=True)
        return False
    _apply_liger_kernel_to_instance(
        model=model, cross_entropy=False, fused_linear_cross_entropy=False
    )
    return True


def choose_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the GPU if there is one, else the CPU.

    Raises:
        ConfigError: torch does not have this device here; the message lists those it has.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device: {name!r} is not available here: {cause(error)}; takes {_devices()}"
        ) from error
    return device


def _devices() -> str:
    """The values that ``device`` takes on this machine, for the message."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ", ".join(["auto", "cpu", *gpus, *mps])
