"""The checks of ``--dry-run``: all that can be made here, and a line for each that cannot.

Nothing is downloaded. Questions, weights, packages or GPUs that are not here cannot be looked at;
what is here and wrong is refused, as before a run. Where all is here the checks are those of
:func:`siri_train.trainer.preflight.preflight`, which this module then calls.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from siri_train.checkpoint.sft_state import refuse_half_done
from siri_train.config import engines
from siri_train.config.base import ConfigError
from siri_train.config.loss import START
from siri_train.config.run import RunConfig
from siri_train.data.gate import check_data, check_think
from siri_train.data.sources import encode_questions
from siri_train.model import demo_model
from siri_train.model.folder import load_config
from siri_train.model.ids import require_chat
from siri_train.model.lora import check_lora
from siri_train.model.policy import choose_device
from siri_train.monitor.alarms import require_known
from siri_train.monitor.trackers import PACKAGES
from siri_train.plan.families import known_config
from siri_train.plan.questions import Questions, read_what_is_here
from siri_train.rollout.build import check_engine
from siri_train.trainer import preflight
from siri_train.trainer.reference_model import check_reference


@dataclass(frozen=True)
class Looked:
    """The findings of the checks.

    Args:
        questions: how many there are, or are known or assumed to be.
        model: the model's configuration (transformers' ``PretrainedConfig``).
        reference: that of a reference model of its own; None: as the policy's, or there is none.
        not_checked: a line for everything that could not be looked at here.
    """

    questions: Questions
    model: Any
    reference: Any
    not_checked: list[str]


def look(config: RunConfig) -> Looked:
    """Make every check that this machine allows, without a network.

    Args:
        config: the recipe.

    Raises:
        ConfigError: something is wrong, as :func:`siri_train.trainer.preflight.preflight` says; or
            the model is neither a folder here nor of a known shape.
    """
    missing = _missing(config)
    if missing:
        return _look_at_the_rest(config, missing)
    checked = preflight.preflight(config)
    sets: dict[str, int] = {}
    for question in checked.eval_questions:
        sets[question.set] = sets.get(question.set, 0) + 1
    return Looked(
        questions=Questions(len(checked.train_questions), sets),
        model=preflight.model_config(config, checked.start),
        reference=None if checked.reference is None else checked.reference.config,
        not_checked=[],
    )


def offline() -> None:
    """Forbid downloads to the libraries in this process, unless the environment says otherwise."""
    if os.environ.setdefault("HF_HUB_OFFLINE", "1") != "1":
        return
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True  # read from the environment before this call


def _missing(config: RunConfig) -> dict[str, str]:
    """Things that are not here, by part of the recipe: a line each, with the remedy."""
    found = {}
    path = config.model.path
    if not _model_is_here(config):
        where = f"download it into a folder and set model.path, as models/{path.rpartition('/')[2]}"
        found["model"] = f"weights and tokenizer of {path} (shape known): {where}"
    if config.device not in ("auto", "cpu"):
        try:
            choose_device(config.device)
        except ConfigError:
            found["device"] = f"device {config.device}: run this on the machine that has it"
    spec = engines.engine_of(config)
    if not spec.in_process:
        server = config.rollout.server.url or "the server that the trainer starts"
        found["engine"] = f"rollout.engine {config.rollout.engine}: {server} is not asked here"
    elif spec.needs is not None and _lacks(spec.needs):
        found["engine"] = (
            f"rollout.engine {config.rollout.engine}: {spec.needs} is not installed; "
            f"pip install 'siri-kernels[{spec.needs}]' where it will run"
        )
    for name, module in PACKAGES.items():
        if getattr(config.monitor, name) and _lacks(module):
            found[f"monitor.{name}"] = f"monitor.{name}: pip install 'siri-kernels[loggers]'"
    if config.model.lora is not None and _lacks("peft"):
        found["peft"] = "model.lora: peft is not installed; pip install peft"
    if config.model.liger == "on" and _lacks("liger_kernel"):
        found["liger"] = "model.liger: pip install liger-kernel"
    if config.reward.verifier == "math_verify" and _lacks("math_verify"):
        found["verifier"] = "answers against the verifier: pip install 'siri-kernels[train]'"
    if (
        config.loss.kl_coef
        and config.loss.reference != START
        and not _is_here(config.loss.reference)
    ):
        found["reference"] = f"weights of loss.reference {config.loss.reference}: download them"
    questions = read_what_is_here(config, only_missing=True)
    if questions.not_here:
        found["questions"] = ""  # its lines come from the reading itself
    return found


def _look_at_the_rest(config: RunConfig, missing: dict[str, str]) -> Looked:
    """The checks of a machine that lacks something, in the order of :func:`preflight`."""
    device = torch.device("cpu") if "device" in missing else choose_device(config.device)
    if "device" not in missing:
        preflight.check_screen(config, device)
    preflight.check_rollout(config)
    require_known(config.monitor.halt_on)
    read = read_what_is_here(config)
    if "verifier" not in missing and (read.train or read.evaluation):
        check_data(read.train, read.evaluation, config.reward)
    folder = preflight.supervised_folder(config)
    start = folder if config.sft is not None and (folder / "config.json").is_file() else None
    if start is None:
        refuse_half_done(config)
    here = start is not None or "model" not in missing
    model = preflight.model_config(config, start) if here else known_config(config.model.path)
    longest, key = preflight.longest_response(config)
    positions = getattr(model, "max_position_embeddings", None)
    preflight.require_positions(positions, config.data.max_prompt_len, longest, key)
    tokenizer = None
    if here and "peft" not in missing:
        tokenizer, rows = preflight.checked_model(config, start)
    elif config.model.lora is not None and "peft" not in missing:
        check_lora(_skeleton(model), config.model.lora)
    if "engine" not in missing and "device" not in missing:
        check_engine(config, model, device)
    reference = None
    if config.loss.kl_coef and "reference" in missing:
        reference = known_config(config.loss.reference, "loss.reference")
    if tokenizer is not None:
        if config.data.template == "chat":
            require_chat(tokenizer, config.data.system, config.data.instruction)
        if "reference" not in missing:
            own = check_reference(config, start, tokenizer)
            reference = None if own is None else own.config
        train, evaluation = (
            encode_questions(asked, tokenizer, config.data) if asked else []
            for asked in (read.train, read.evaluation)
        )
        checked = preflight.Checked(train, evaluation, start, tokenizer)
        preflight.refuse_unknown_tokens(checked, rows)
        if train:
            check_think(config, tokenizer, train, model)
    lines = [line for line in missing.values() if line] + read.not_here
    return Looked(read.counts, model, reference, lines)


def _model_is_here(config: RunConfig) -> bool:
    """Whether the model's files can be read: a folder, a shipped one, one that is made here."""
    model = config.model
    made = model.scratch is not None or model.convert_from is not None
    return made or model.path in demo_model.START_FOLDERS or _is_here(model.path)


def _is_here(name: str) -> bool:
    """Whether a path exists; a text that is no hub id counts, so that its error comes up."""
    path = Path(name)
    try:
        there = path.exists() or path.is_symlink()
    except OSError:
        return True
    hub_id = len(path.parts) == 2 and not name.startswith((".", "/", "models/", "runs/"))
    return there or not hub_id or in_cache(name)


def in_cache(name: str) -> bool:
    """Whether the hub's cache on this machine holds a model's configuration and tokenizer.

    Args:
        name: a hub id.
    """
    from huggingface_hub import try_to_load_from_cache

    files = ("config.json", "tokenizer_config.json")
    return all(isinstance(try_to_load_from_cache(name, file), str) for file in files)


def _lacks(module: str) -> bool:
    """Whether a package is not installed; nothing is imported but its parents."""
    try:
        return importlib.util.find_spec(module) is None
    except (ImportError, ValueError):
        return True


def _skeleton(model: Any) -> Any:
    """The model on the meta device."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(model, trust_remote_code=False)


def config_of(name: str, key: str = "model.path") -> Any:
    """The configuration of a model that is a folder here, in the hub's cache, or of a known shape.

    Args:
        name: a folder or a hub id.
        key: the recipe key that named it, for messages.

    Raises:
        ConfigError: it is neither.
    """
    here = Path(name).exists() or (name.count("/") == 1 and in_cache(name))
    return load_config(name, key) if here else known_config(name, key)
