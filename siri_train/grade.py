"""Grading a checkpoint on its own: ``siri-train eval``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from siri_train.checkpoint import write_json
from siri_train.config import ConfigError, RunConfig
from siri_train.data.sources import encode_questions, read_sources
from siri_train.evaluate import evaluate
from siri_train.model import choose_device, load_policy
from siri_train.monitor.backtrack import BacktrackCounter
from siri_train.monitor.progress import Progress
from siri_train.preflight import check_positions
from siri_train.recipe import load_config
from siri_train.rollout.build import build_engine, check_engine
from siri_train.run import build_verifier


def grade_checkpoint(
    checkpoint: Path, recipe: str | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Accuracy at every budget, pass@k and mean tokens of a checkpoint.

    Args:
        checkpoint: a folder that ``from_pretrained`` loads.
        recipe: whose ``data.eval``, ``eval`` and ``reward`` sections are used; default: the
            ``config.yaml`` of the run that the checkpoint lies in.
        overrides: ``a.b=c``.

    Returns:
        The row described in :func:`siri_train.evaluate.evaluate`, also written to
        ``CHECKPOINT/eval.json``.

    Raises:
        ConfigError: no such folder, no recipe to be found, or the sections name something missing.
    """
    if not (checkpoint / "config.json").is_file():
        raise ConfigError(f"eval: {checkpoint} is not a checkpoint (config.json is missing)")
    config = _config_of(checkpoint, recipe, overrides)
    if config.threads:
        torch.set_num_threads(config.threads)
    questions = read_sources(config.data.eval, "test")
    model = config.model.model_copy(update={"path": str(checkpoint), "scratch": None})
    check_positions(model, config.data.max_prompt_len, config.budgets[-1], key="eval.budgets")
    if config.rollout.engine == "vllm-server":
        # It may be sampling for a run that goes on: its weights are not this command's to replace.
        rollout = config.rollout.model_copy(update={"engine": "transformers"})
        config = config.model_copy(update={"rollout": rollout})
    device = choose_device(config.device)
    check_engine(config, AutoConfig.from_pretrained(str(checkpoint)), device)
    policy = load_policy(model, device)
    encoded = encode_questions(questions, policy.tokenizer, config.data)
    progress = Progress("eval", len(encoded) * config.eval.samples)
    with (
        closing(build_verifier(config.reward)) as verifier,
        closing(build_engine(config, policy)) as engine,
    ):
        row = evaluate(
            engine,
            encoded,
            config.eval,
            config.budgets,
            eos_ids=policy.eos_ids,
            decode=policy.decode,
            verifier=verifier,
            think=config.reward.think,
            counter=BacktrackCounter(),
            seed=config.seed + 7,
            progress=lambda done, total: progress.update(done, "responses"),
        )
    write_json(checkpoint / "eval.json", row)
    return row


def _config_of(checkpoint: Path, recipe: str | None, overrides: Sequence[str]) -> RunConfig:
    if recipe is not None:
        return load_config(recipe, overrides)
    for folder in checkpoint.resolve().parents[:3]:
        if (folder / "config.yaml").is_file():
            return load_config(folder / "config.yaml", overrides)
    raise ConfigError(
        f"eval: {checkpoint} does not lie in a run's folder; give --recipe for the questions"
    )
