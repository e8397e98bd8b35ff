"""``siri-train verl RECIPE``: the data, the checks and the whole command of a run on verl."""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from siri_kernels.integrations import verl as kernels
from siri_train.config.base import ConfigError
from siri_train.config.run import RunConfig
from siri_train.data.sources import EncodedQuestion, QuestionSampler
from siri_train.files import replace_text
from siri_train.integrations.verl.held_out import repeated
from siri_train.integrations.verl.options import PLAIN_TEMPLATE, Machines, verl_options
from siri_train.integrations.verl.settings import AGENT_LOOP, REWARD_MANAGER, settings_of
from siri_train.model.chat_template import prompt_messages
from siri_train.model.policy import resolve_model_path
from siri_train.trainer.preflight import Checked, preflight


class Prepared(NamedTuple):
    """The words of the command, notes on keys that are left out, and verl's configuration."""

    command: list[str]
    notes: list[str]
    config: Any


def prepare(config: RunConfig, machines: Machines, extra: Sequence[str] = ()) -> Prepared:
    """Everything up to the start: registry, data, options, verl's own validation.

    Writes ``RUN/verl/train.parquet``, ``eval.parquet`` and ``command.sh``.

    Args:
        config: the recipe.
        machines: GPUs and rollout engine.
        extra: ``KEY=VALUE`` of verl's, which go before the recipe's.

    Raises:
        ConfigError: a name that is not registered and why; whatever siri-train's own checks
            refuse; a key that verl cannot do; what verl's validation refuses.
    """
    check_registry()
    checked = preflight(config.model_copy(update={"device": "cpu"}))
    QuestionSampler(checked.train_questions, config.rollout.prompts, config.seed)  # its check
    model = str(checked.start or resolve_model_path(config.model))
    folder = (config.run_dir / "verl").resolve()
    options = verl_options(
        config,
        machines,
        model=str(Path(model).resolve()) if Path(model).exists() else model,
        train_file=str(folder / "train.parquet"),
        eval_file=str(folder / "eval.parquet"),
    )
    overrides = merged(options.values, extra)
    composed = check_config(overrides)
    check_prompts(config, checked, model)
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.parquet", config, checked.train_questions, AGENT_LOOP)
    held_out = repeated(config, checked.eval_questions)
    write_rows(folder / "eval.parquet", config, held_out, "single_turn_agent")
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides]
    replace_text(folder / "command.sh", as_script(command))
    return Prepared(command, options.notes, composed)


def launch(command: Sequence[str]) -> None:
    """Replace this process by verl, so that signals and the exit status are verl's."""
    os.execv(command[0], list(command))


def as_script(command: Sequence[str]) -> str:
    """The command as a shell script, one key a line."""
    words = list(map(shlex.quote, command))
    return (
        "#!/bin/sh\nexec " + " ".join(words[:3]) + "".join(f" \\\n  {w}" for w in words[3:]) + "\n"
    )


def check_registry() -> None:
    """Check that verl has registered our four names; verl hides the errors of plugins.

    Raises:
        ConfigError: which are missing, and why as far as can be seen.
    """
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER as managers
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY

    wanted = {
        "siri_kernels": (
            ("policy loss", kernels.LOSS, POLICY_LOSS_REGISTRY),
            ("advantage estimator", kernels.ESTIMATOR, ADV_ESTIMATOR_REGISTRY),
        ),
        "siri_train": (
            ("agent loop", AGENT_LOOP, _agent_loop_registry),
            ("reward manager", REWARD_MANAGER, managers),
        ),
    }
    declared = {ep.name for ep in importlib.metadata.entry_points(group="verl.plugins")}
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    problems = []
    for package, things in wanted.items():
        missing = [f"{what} {name!r}" for what, name, registry in things if name not in registry]
        if package not in declared:
            problems.append(
                f"{package}: no entry point in the group verl.plugins; install siri-kernels "
                "(pip install --no-deps), it is only on the path"
            )
        elif policy != "auto" and package not in policy.split(","):
            problems.append(
                f"VERL_USE_EXTERNAL_PLUGINS: got {policy!r}; takes auto, or names with {package}"
            )
        elif missing:
            problems.append(f"verl has not registered {', '.join(missing)}")
    if problems:
        raise ConfigError("; ".join(problems))


def merged(values: dict[str, Any], extra: Sequence[str]) -> list[str]:
    """Hydra's overrides: ``values``, with those of ``extra`` in place of the same keys.

    Raises:
        ConfigError: an item of ``extra`` is not KEY=VALUE.
    """
    words = {key.lstrip("+"): f"{key}={hydra_value(value)}" for key, value in values.items()}
    for override in extra:
        key, sign, _ = override.partition("=")
        if not sign or not key.strip("+~ "):
            raise ConfigError(f"--set {override!r}: expected KEY=VALUE in verl's keys")
        name = key.lstrip("+")
        ours_is_new = words.get(name, "").startswith("+") and key == name
        words[name] = f"+{override}" if ours_is_new else override
    return list(words.values())


def hydra_value(value: Any) -> str:
    """A value in the grammar of hydra's overrides."""
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(hydra_value, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{hydra_value(item)}' for name, item in value.items())}}}"
    if not isinstance(value, str):
        return str(value)
    if re.fullmatch(r"[A-Za-z_/.][\w/.:@-]*", value) and value.lower() not in _WORDS:
        return value
    # Within quotes only quotes are escaped, and backslashes before one.
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    return '"' + re.sub(r"(\\+)$", r"\1\1", escaped) + '"'


_WORDS = ("null", "true", "false", "nan", "inf")


def check_config(overrides: Sequence[str]) -> Any:
    """Composes verl's configuration as its command line does and has verl validate it.

    Returns:
        The composed ``DictConfig``.

    Raises:
        ConfigError: what hydra or verl say against it.
    """
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    from siri_train.integrations.verl.checkpoints import SiriCheckpoints

    try:
        with initialize_config_module("verl.trainer.config", version_base=None):
            config = compose("ppo_trainer", overrides=list(overrides))
        OmegaConf.resolve(config)
        with contextlib.redirect_stdout(sys.stderr):
            validate_config(config, need_reference_policy(config), need_critic(config))
            omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    except (HydraException, OmegaConfBaseException, AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"verl refuses the configuration: {error}") from error
    settings_of(config)
    SiriCheckpoints(config)
    return config


def check_prompts(config: RunConfig, checked: Checked, model: str) -> None:
    """Check on some questions that verl's agent loops make the recipe's prompts of its messages.

    Args:
        config: the recipe.
        checked: its questions and tokenizer.
        model: what ``from_pretrained`` loads.

    Raises:
        ConfigError: they do not, as with a tokenizer that adds a token to plain text, or cannot.
    """
    from transformers import AutoConfig
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    tokenizer = copy.copy(checked.tokenizer)
    if config.data.template == "plain":
        tokenizer.chat_template = PLAIN_TEMPLATE
    kind = AutoConfig.from_pretrained(model, trust_remote_code=False).model_type
    try:
        builder = create_continuous_token_builder(tokenizer, hf_model_type=kind)
    except ValueError as error:
        raise ConfigError(
            f"model.path: got {model}; verl cannot build prompts for it: {error}"
        ) from error
    for question in checked.train_questions[:32]:
        ids = builder.build_initial_tokens(_messages(config, question))
        if tuple(ids) != question.prompt_ids:
            raise ConfigError(
                f"data.template: got {config.data.template!r}; verl would make other tokens of "
                f"question {question.id}, {ids[:8]}... for {list(question.prompt_ids[:8])}...: it "
                "always uses a chat template"
            )


def write_rows(
    path: Path, config: RunConfig, questions: Sequence[EncodedQuestion], agent: str
) -> None:
    """Write questions as Parquet with verl's columns.

    Args:
        path: of the file.
        config: the recipe.
        questions: a data row each.
        agent: the column ``agent_name``: the loop that samples; ours has the cap.
    """
    import pyarrow
    import pyarrow.parquet

    rows = [
        {
            "data_source": question.set or config.name,
            "prompt": _messages(config, question),
            "reward_model": {"style": "rule", "ground_truth": question.answer},
            "extra_info": {"index": index, "id": question.id},
            "agent_name": agent,
        }
        for index, question in enumerate(questions)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _messages(config: RunConfig, question: EncodedQuestion) -> list[dict[str, str]]:
    data = config.data
    return prompt_messages(
        question.prompt,
        template=data.template,
        system=data.system,
        instruction=data.instruction,
        messages=question.messages,
    )
