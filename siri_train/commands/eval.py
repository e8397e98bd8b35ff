"""Grading a checkpoint on its own: ``siri-train eval``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from siri_train.checkpoint.save_load import require_good, write_json
from siri_train.config import engines
from siri_train.config.base import ConfigError
from siri_train.config.recipe import load_config
from siri_train.config.run import RunConfig
from siri_train.data.gate import check_data
from siri_train.data.sources import encode_questions, read_evaluation, responses_in_all
from siri_train.files import replace_text
from siri_train.model.folder import check_model
from siri_train.model.ids import require_chat
from siri_train.model.lora import check_lora
from siri_train.model.policy import choose_device, load_policy
from siri_train.monitor.progress import Progress
from siri_train.monitor.question_records import FILE as QUESTIONS
from siri_train.monitor.token_groups import TokenGroups
from siri_train.rollout import EngineError
from siri_train.rollout.build import build_engine, check_engine
from siri_train.rollout.vllm.server_process import HOW_TO_CONTINUE
from siri_train.trainer.evaluate import Evaluation
from siri_train.trainer.preflight import check_positions
from siri_train.trainer.sync_probe import SyncProbe
from siri_train.trainer.verifier import build_verifier


def grade_checkpoint(
    checkpoint: Path, recipe: str | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Accuracy at every budget, pass@k and mean tokens of a checkpoint.

    Samples with the recipe's ``rollout.engine``, never with another. A server that is named only
    in the recipe is left alone while it holds the weights of a run, which they would replace.

    Args:
        checkpoint: a folder that ``from_pretrained`` loads.
        recipe: whose ``data.eval``, ``eval``, ``reward`` and ``rollout`` sections are used;
            default: the ``config.yaml`` of the run that the checkpoint lies in.
        overrides: ``a.b=c``.

    Returns:
        The row described in :class:`siri_train.trainer.evaluate.Evaluated`, also written to
        ``CHECKPOINT/eval.json``; the results question by question are written to
        ``CHECKPOINT/eval_questions.jsonl``.

    Raises:
        ConfigError: no such folder, or one that is damaged or cannot be loaded; no recipe to be
            found, or the sections name something missing; or the recipe's engine cannot run here,
            naming the override for another.
        EngineError: it does not start, fails, or has other weights than the checkpoint's.
    """
    if not (checkpoint / "config.json").is_file():
        raise ConfigError(
            f"eval: {checkpoint} is not a checkpoint (config.json is missing); give a folder of "
            "RUN/checkpoints, or one that from_pretrained loads"
        )
    config = _config_of(checkpoint, recipe, overrides)
    if config.threads:
        torch.set_num_threads(config.threads)
    questions = read_evaluation(config)
    of_a_run = checkpoint.resolve().parent.name == "checkpoints"
    if of_a_run or (checkpoint / "checkpoint.json").exists():
        require_good(checkpoint, checkpoint.resolve().parents[1], resume=False)
    checked = check_model(checkpoint, "eval", say=False)
    if config.model.lora is not None:
        check_lora(checked.skeleton, config.model.lora)
    check_data([], questions, config.reward)
    model = config.model.model_copy(update={"path": str(checkpoint), "scratch": None})
    check_positions(model, config.data.max_prompt_len, config.budgets[-1], key="eval.budgets")
    if config.data.template == "chat":
        require_chat(checked.tokenizer, config.data.system, config.data.instruction)
    # A server of this command's own keeps out of the folder of one that the run may have.
    config = config.model_copy(update={"output": str(checkpoint / "eval")})
    named = any(given.partition("=")[0].strip() == "rollout.server.url" for given in overrides)
    device = choose_device(config.device)
    with _others_named(config):
        check_engine(config, checked.config, device, take_server=named)
    policy = load_policy(model, device, named="eval")
    encoded = encode_questions(questions, policy.tokenizer, config.data)
    words = TokenGroups(policy.tokenizer, config.monitor.token_groups)
    progress = Progress("eval", responses_in_all(config, encoded))
    with (
        closing(progress),
        closing(build_verifier(config.reward)) as verifier,
        _others_named(config),
        closing(build_engine(config, policy)) as engine,
    ):
        if engines.engine_of(config).own_weights:
            prompts = [question.prompt_ids for question in encoded]
            SyncProbe(engine, policy, config, prompts).after_sync(config.seed)
        found = Evaluation(config, encoded, engine, policy, verifier, words)(
            lambda done, total: progress.update(done, "responses")
        )
    assert found is not None  # no stop request is given, so it is not cancelled
    step = _step_of(checkpoint)
    lines = [json.dumps(replace(record, step=step).row()) + "\n" for record in found.records]
    replace_text(checkpoint / QUESTIONS, "".join(lines))
    write_json(checkpoint / "eval.json", found.row)
    return found.row


def _step_of(checkpoint: Path) -> int | None:
    """The steps done of a checkpoint of a run, by its name; None of another model."""
    match = re.fullmatch(r"step_(\d+)", checkpoint.resolve().name)
    return int(match[1]) if match else None


@contextmanager
def _others_named(config: RunConfig) -> Iterator[None]:
    """An engine that cannot sample here is not replaced by another; the user may do so."""
    engine = config.rollout.engine
    try:
        yield
    except (ConfigError, EngineError) as error:
        if engines.engine_of(config).needs is None:
            raise
        reason, other = (
            str(error).replace(f"; {HOW_TO_CONTINUE}", ""),
            f"rollout.engine={engines.DEFAULT}",
        )
        hint = "" if other in reason else f". To sample with {engines.DEFAULT} instead: {other}"
        raise type(error)(
            f"eval samples with the recipe's rollout.engine, {engine}, which does not work here: "
            f"{reason}{hint}"
        ) from error


def _config_of(checkpoint: Path, recipe: str | None, overrides: Sequence[str]) -> RunConfig:
    if recipe is not None:
        return load_config(recipe, overrides)
    for folder in checkpoint.resolve().parents[:3]:
        if (folder / "config.yaml").is_file():
            return load_config(folder / "config.yaml", overrides)
    raise ConfigError(
        f"eval: {checkpoint} does not lie in a run's folder; give --recipe for the questions"
    )
