"""Every check that can be made before weights are loaded and work begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from siri_kernels.linear_logprob.screen.options import screen_of
from siri_train import distributed
from siri_train.checkpoint.sft_state import refuse_half_done
from siri_train.config import engines
from siri_train.config.base import ConfigError
from siri_train.config.model import ModelConfig
from siri_train.config.run import RunConfig
from siri_train.data.gate import check_data, check_think
from siri_train.data.sources import (
    EncodedQuestion,
    encode_questions,
    read_evaluation,
    read_sources,
)
from siri_train.model import demo_model
from siri_train.model.folder import check_model, load_config
from siri_train.model.ids import require_chat
from siri_train.model.lora import check_lora
from siri_train.model.policy import choose_device, max_positions, resolve_model_path
from siri_train.monitor.alarms import require_known
from siri_train.monitor.progress import say
from siri_train.monitor.token_groups import unwritable
from siri_train.monitor.trackers import require_packages
from siri_train.rollout.build import check_engine
from siri_train.terminal.lines import log_width, words
from siri_train.trainer.phase_switches import notices
from siri_train.trainer.reference_model import CheckedReference, check_reference


@dataclass(frozen=True)
class Checked:
    """Results of the checks.

    Args:
        train_questions, eval_questions: encoded with the model's tokenizer.
        start: the supervised stage's checkpoint if the run has one, else None.
        tokenizer: the model's.
        reference: the reference model of the loss; None where the loss has no KL term.
    """

    train_questions: list[EncodedQuestion]
    eval_questions: list[EncodedQuestion]
    start: Path | None
    tokenizer: Any = None
    reference: CheckedReference | None = None


def preflight(config: RunConfig) -> Checked:
    """Check everything that the configuration names, cheapest first.

    Raises:
        ConfigError: a device that is not there, a screen that it does not have, missing or
            malformed data (file, line, reason), what :func:`siri_train.data.gate.check_data` and
            ``check_think`` refuse, an unknown alarm in ``monitor.halt_on``, a prompt over
            ``data.max_prompt_len``, a missing model, a cap
            over the model's positions, an engine that cannot run here, or a reference model that
            :func:`check_reference` refuses.
    """
    device = choose_device(config.device)
    check_screen(config, device)
    check_rollout(config)
    if config.model.lora is not None and config.model.lora.dropout:
        print(
            f"{config.name}: model.lora.dropout={config.model.lora.dropout} holds in the "
            "supervised stage; RL trains without dropout, as its sampler samples",
            flush=True,
        )
    for said in notices(config):
        say(words(f"{config.name}:", said, log_width()))
    require_packages(config.monitor)
    require_known(config.monitor.halt_on)
    train = read_sources(config.data.train, "train", "data.train")
    evaluation = read_evaluation(config)
    check_data(train, evaluation, config.reward)
    longest, key = longest_response(config)
    check_positions(config.model, config.data.max_prompt_len, longest, key)
    start = supervised_folder(config)
    found = start if config.sft is not None and (start / "config.json").is_file() else None
    if found is None:
        refuse_half_done(config)
    tokenizer, rows = checked_model(config, found)
    check_engine(config, model_config(config, found), device)
    shipped = config.model.path in demo_model.START_FOLDERS
    if config.sft is not None and found is None and not shipped:
        print(
            f"{config.name}: the recipe's supervised stage has not been run ({start} is missing); "
            "training starts from the base model. Run `siri-train sft` first for a useful start.",
            flush=True,
        )
    if config.data.template == "chat":
        require_chat(tokenizer, config.data.system, config.data.instruction)
    for name, word in unwritable(tokenizer, config.monitor.token_groups):
        said = (
            f"monitor.token_groups.{name}: the model's tokenizer cannot write {word!r}, so it is "
            "never counted; take it out, or spell it as the model does"
        )
        say(words(f"{config.name}:", said, log_width()))
    checked = Checked(
        train_questions=encode_questions(train, tokenizer, config.data),
        eval_questions=encode_questions(evaluation, tokenizer, config.data),
        start=found,
        tokenizer=tokenizer,
        reference=check_reference(config, found, tokenizer),
    )
    refuse_unknown_tokens(checked, rows)
    check_think(config, tokenizer, checked.train_questions, model_config(config, found))
    return checked


def checked_model(config: RunConfig, start: Path | None) -> tuple[Any, int | None]:
    """The tokenizer of the model that training starts from, and its embedding's rows.

    Adapters start from the base model, but the tokenizer is that of the supervised start.

    Args:
        config: the recipe.
        start: the supervised stage's checkpoint if there is one.

    Raises:
        ConfigError: see :func:`siri_train.model.folder.check_model` and
            :func:`siri_train.model.lora.check_lora`.
    """
    if start is None and config.model.scratch is not None:
        return scratch_tokenizer(config.model), None
    if start is not None:
        checked = check_model(start, "sft: the supervised start")
    else:
        checked = check_model(resolve_model_path(config.model), "model.path")
    if config.model.lora is not None:
        check_lora(checked.skeleton, config.model.lora)
    return checked.tokenizer, checked.rows


def scratch_tokenizer(model: ModelConfig) -> Any:
    """The tokenizer of a model that is built anew, whose adapters are checked.

    Raises:
        ConfigError: see :func:`siri_train.model.lora.check_lora`.
    """
    assert model.scratch is not None
    if model.lora is not None:
        with torch.device("meta"):
            check_lora(demo_model.scratch_model(model.scratch)[0], model.lora)
    return demo_model.tokenizer()


def check_screen(config: RunConfig, device: torch.device) -> None:
    """Refuse a screen that ``linear_logprob`` would refuse in the first forward pass.

    Args:
        config: the recipe.
        device: of the model.

    Raises:
        ConfigError: ``train.screen`` names one that there is not on this device.
    """
    train, dtype = config.train, config.distributed.compute_dtype or config.model.dtype
    if train.screen is None:
        return
    try:
        screen_of(
            *("train.screen", train.screen, train.logprob_tol, True),
            backend="triton" if device.type == "cuda" else "portable",
            device=device,
            dtype=getattr(torch, dtype),
            process_group=None,
        )
    except ValueError as error:
        raise ConfigError(f"{error} (in a recipe: null or auto)") from error


def check_rollout(config: RunConfig) -> None:
    """Refuse what several processes cannot do together.

    Args:
        config: the recipe.

    Raises:
        ConfigError: asynchronous rollouts under torchrun, where sampling gathers the weights that
            are being updated, or with vLLM in this process, which gives its memory to the trainer
            meanwhile; or ``first_done``, where a rank knows of its own responses only.
    """
    if config.rollout.asynchronous and not engines.engine_of(config).samples_during_update:
        raise ConfigError(
            f"rollout.asynchronous: the engine {config.rollout.engine} cannot sample while the "
            f"trainer works; takes rollout.engine={engines.able('samples_during_update')}"
        )
    if config.rollout.asynchronous and distributed.active():
        raise ConfigError(
            "rollout.asynchronous: true is for a single process without torchrun, whose engine has "
            "weights of its own; set it to false"
        )
    if config.rollout.keep == "first_done" and distributed.world_size() > 1:
        raise ConfigError(
            f"rollout.keep: first_done needs one process, there are {distributed.world_size()}; "
            "takes in_order"
        )


def longest_response(config: RunConfig) -> tuple[int, str]:
    """Tokens of the longest response of a run, and the key that asks for it.

    Args:
        config: the recipe.
    """
    longest = max(config.schedule.max_len, *config.budgets)
    return longest, "eval.budgets" if longest > config.schedule.max_len else "schedule.max_len"


def check_positions(model: ModelConfig, prompt: int, response: int, key: str) -> None:
    """Refuse responses that would run over the model's positions.

    Args:
        model: the recipe's section.
        prompt: tokens of the longest prompt.
        response: tokens of the longest response.
        key: names the response's length, for the message.

    Raises:
        ConfigError: naming ``key``, the tokens needed and what fits.
    """
    require_positions(max_positions(model), prompt, response, key)


def require_positions(positions: int | None, prompt: int, response: int, key: str) -> None:
    """Refuse responses that would run over a number of positions.

    Args:
        positions: of the model; None: it has no bound.
        prompt: tokens of the longest prompt.
        response: tokens of the longest response.
        key: names the response's length, for the message.

    Raises:
        ConfigError: naming ``key``, the tokens needed and what fits.
    """
    if positions is not None and prompt + response > positions:
        raise ConfigError(
            f"{key}: data.max_prompt_len ({prompt}) + the longest response ({response}) = "
            f"{prompt + response} tokens, but the model has {positions} positions; at most "
            f"{positions - prompt} fit"
        )


def model_config(config: RunConfig, start: Path | None) -> Any:
    """The configuration of the recipe's model (transformers' ``PretrainedConfig``).

    Args:
        config: the recipe.
        start: the supervised stage's checkpoint if there is one.
    """
    if config.model.scratch is not None and start is None:
        return demo_model.scratch_config(config.model.scratch)
    return load_config(start or resolve_model_path(config.model), "model.path")


def supervised_folder(config: RunConfig) -> Path:
    """Where ``siri-train sft`` writes and ``siri-train train`` looks for the supervised start.

    Args:
        config: the recipe.
    """
    return config.run_dir / "sft"


def refuse_unknown_tokens(checked: Checked, rows: int | None) -> None:
    """Refuse prompts without a known token, and tokens that the embedding has no row for.

    A tokenizer may know marks of a multimodal model that the model at hand does not have.

    Args:
        checked: the questions and the tokenizer.
        rows: of the embedding; None: not known, and nothing is refused.

    Raises:
        ConfigError: naming the question.
    """
    if rows is None:
        return
    special = set(checked.tokenizer.all_special_ids)
    for key, questions in (("train", checked.train_questions), ("eval", checked.eval_questions)):
        for question in questions:
            if special.issuperset(question.prompt_ids):
                raise ConfigError(
                    f"data.{key}: {question.id}: the model's tokenizer makes nothing of its prompt "
                    f"but {checked.tokenizer.decode(question.prompt_ids)[:40]!r}, so no question "
                    "can be told from another; give the tokenizer.json that the model was trained "
                    "with"
                )
            past = [number for number in question.prompt_ids if number >= rows]
            if past:
                raise ConfigError(
                    f"data.{key}: {question.id}: its prompt holds token {past[0]} "
                    f"({checked.tokenizer.decode(past[:1])!r}), but the model's embedding has "
                    f"{rows} rows; leave the question out or give the model that has it"
                )
