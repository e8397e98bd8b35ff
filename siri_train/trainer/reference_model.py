"""The frozen model that the KL term of the loss compares the policy with (``loss.reference``)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siri_train import distributed
from siri_train.checkpoint.save_load import size_and_crc, write_json
from siri_train.config.base import ConfigError
from siri_train.config.loss import START
from siri_train.config.model import ModelConfig
from siri_train.config.run import RunConfig
from siri_train.model import fsdp, lora
from siri_train.model.files import ModelFileError, cause, weight_files
from siri_train.model.folder import check_model
from siri_train.model.packing import MicroBatch
from siri_train.model.policy import Policy, load_policy, resolve_model_path
from siri_train.model.same_model import require_same_vocabulary

RECORD = "reference.json"
"""A file in the run's folder: which model is the reference, size and CRC-32 of its files."""


@dataclass(frozen=True)
class CheckedReference:
    """A reference that can be loaded.

    Args:
        source: its folder or hub id.
        own: whether it is a model of its own; else the policy's base, without its adapters.
        config: its configuration (transformers' ``PretrainedConfig``); None: as the policy's.
    """

    source: str
    own: bool = True
    config: Any = None


@dataclass(frozen=True)
class Reference:
    """Log-probs of the reference model, without gradient.

    Args:
        policy: the reference model; or the policy that is trained, if it has adapters.
        own: whether ``policy`` is a model of its own; else its adapters are switched off.
        record: the content of :data:`RECORD`.
    """

    policy: Policy
    own: bool
    record: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def token_logprobs(self, batch: MicroBatch, temperature: float) -> Tensor:
        """The reference's log-prob of every response token, [T] float32.

        It uses the same head and the same micro-batch as the policy: a policy that is the
        reference has the same bits. Collective where the model is sharded.

        Args:
            batch: a micro-batch.
            temperature: of the sampling distribution, as for the policy.
        """
        if not self.own:
            with lora.adapters_off(self.policy.model):
                return self.policy.token_logprobs(batch, temperature=temperature)[0]
        logprobs, _ = self.policy.token_logprobs(batch, temperature=temperature)
        # No backward pass follows, after which FSDP2 would free what it has gathered.
        fsdp.reshard(self.policy.model)
        return logprobs


def check_reference(
    config: RunConfig, start: Path | None, tokenizer: Any
) -> CheckedReference | None:
    """Check ``loss.reference`` before anything is loaded.

    Args:
        config: the recipe.
        start: the supervised stage's checkpoint if the run begins from one.
        tokenizer: the policy's.

    Returns:
        What to load; None where the loss has no KL term.

    Raises:
        ConfigError: a policy that is built anew as its own reference; a reference that does not
            exist or cannot be loaded, has another vocabulary, or fewer positions than a sequence
            may have.
    """
    if config.loss.kl_coef == 0:
        return None
    name = config.loss.reference
    if name == START:
        if start is None and config.model.scratch is not None:
            raise ConfigError(
                "loss.reference: got start, but model.scratch begins from random weights, which a "
                "resumed run could not find again; run `siri-train sft` first, or give a folder"
            )
        # The policy's own start has been checked.
        return CheckedReference(_source(config, start), own=config.model.lora is None)
    source = _source(config, start)
    checked = check_model(source, "loss.reference", say=False)
    require_same_vocabulary(source, checked.tokenizer, tokenizer, "loss.reference")
    positions = getattr(checked.config, "max_position_embeddings", None)
    needed = config.data.max_prompt_len + config.schedule.max_len
    if positions is not None and positions < needed:
        raise ConfigError(
            f"loss.reference: {source} has {positions} positions, but data.max_prompt_len + "
            f"schedule.max_len = {needed} tokens; give a model with as many, or lower one of them"
        )
    return CheckedReference(source, config=checked.config)


def open_reference(
    config: RunConfig, checked: CheckedReference | None, policy: Policy, source: Path | None
) -> Reference | None:
    """The reference model on the policy's device, sharded as the policy is; None where none is.

    Every rank must call it.

    Args:
        config: the recipe.
        checked: as :func:`check_reference` gave it.
        policy: as loaded for training.
        source: the checkpoint that is resumed from; None for a run that begins.

    Raises:
        ConfigError: see :func:`siri_train.model.policy.load_policy`; or a resumed run has had
            another reference.
    """
    if checked is None:
        return None
    if checked.own:
        model = _model_section(config, checked.source)
        sharding = config.distributed if distributed.active() else None
        policy = load_policy(
            *(model, policy.device, checked.source, sharding),
            named="loss.reference",
            train=config.train,
        )
        policy.model.eval()
    # Now the files of a hub id are on this machine.
    record = distributed.on_main(_record, config.loss.reference, checked.source)
    distributed.on_main(_require_same, record, source)
    return Reference(policy, checked.own, record)


def write_record(run_dir: Path, reference: Reference | None, begins: bool) -> None:
    """Write :data:`RECORD`; a run that begins without a reference has none.

    Args:
        run_dir: the run's folder.
        reference: the run's.
        begins: whether the run begins; a resumed one keeps its record while its KL term is off.

    Raises:
        OSError: it cannot be written.
    """
    path = run_dir / RECORD
    if reference is not None:
        write_json(path, reference.record)
    elif begins:
        path.unlink(missing_ok=True)


def _record(name: str, source: str) -> dict[str, Any]:
    """The content of :data:`RECORD` for a reference that has been loaded.

    Raises:
        ConfigError: a file of it cannot be read.
    """
    try:
        folder = _folder(source)
        files = [folder / "config.json", *weight_files(folder)]
        sizes = {path.name: size_and_crc(path) for path in files}
    except (ModelFileError, OSError) as error:
        raise ConfigError(f"loss.reference: {source}: {cause(error)}") from error
    return {"reference": name, "path": source, "files": sizes}


def _require_same(record: dict[str, Any], source: Path | None) -> None:
    """Refuse to go on with another reference model than the run has had.

    Raises:
        ConfigError: ``loss.reference`` is what it was, and the files differ; or the run's record
            is damaged.
    """
    path = source.resolve().parent.parent / RECORD if source is not None else None
    if path is None or not path.exists():
        return  # its KL term is new
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        name, files = before.get("reference"), dict(before.get("files") or {})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"loss.reference: {path}: is damaged ({cause(error)}), so the files that the run began "
            "with are not known; remove it to take today's files as the reference"
        ) from error
    if name != record["reference"]:
        return  # compare_with_before prints that the key was changed
    now = record["files"]
    changed = [name for name in sorted({*files, *now}) if files.get(name) != now.get(name)]
    if changed:
        was = f" (then at {before.get('path')!s:.200})" * (before.get("path") != record["path"])
        raise ConfigError(
            f"loss.reference: {record['path']}: {changed[0]} is not the file that the run began "
            f"with{was}; put that one back, or name the model to compare with now "
            "(loss.reference=PATH)"
        )


def _source(config: RunConfig, start: Path | None) -> str:
    """The reference's folder or hub id.

    Raises:
        ConfigError: it does not exist.
    """
    name = config.loss.reference
    if name == START:
        return str(start) if start is not None else resolve_model_path(config.model)
    try:
        return resolve_model_path(_model_section(config, name))
    except ConfigError as error:
        raise ConfigError(
            f"loss.reference: {name!r} does not exist; takes start, a folder that from_pretrained "
            "loads, or a hub id"
        ) from error


def _model_section(config: RunConfig, path: str) -> ModelConfig:
    """The policy's section for a model that is loaded from ``path`` and not trained."""
    return config.model.model_copy(
        update={
            "path": path,
            "convert_from": None,
            "scratch": None,
            "lora": None,
            "gradient_checkpointing": False,
        }
    )


def _folder(source: str) -> Path:
    """The folder of a model that has been loaded: of a hub id, the one it was stored in."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    from transformers.utils.hub import cached_file

    found = cached_file(source, "config.json")
    return Path(str(found)).parent
