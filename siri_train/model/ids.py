"""Checks that tokenizer, generation configuration and model agree on token ids."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from siri_train.config.base import ConfigError
from siri_train.model.chat_template import eos_token_ids, prompt_messages
from siri_train.model.files import ModelFileError, cause

_SPECIAL = ("eos_token", "pad_token", "bos_token", "unk_token")

# Greedy decoding reads none of the first group, and one beam none of the second. Yet transformers
# refuses to save a generation configuration that has them.
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
_BEAMS = ("early_stopping", "length_penalty")


def check_ids(tokenizer: Any, config: Any, generation: Any, rows: int | None) -> None:
    """Refuse token ids that the model has no row for, and models whose answers never end.

    Args:
        tokenizer: a transformers tokenizer.
        config: the model's configuration.
        generation: its generation configuration, or None.
        rows: of the embedding; None where it is not known.

    Raises:
        ModelFileError: naming the file, the token, its id and the rows there are.
    """
    for name, source in (("generation_config.json", generation), ("config.json", config)):
        for key in ("eos_token_id", "pad_token_id"):
            _check_configured(name, key, getattr(source, key, None), rows)
    try:
        ends = eos_token_ids(tokenizer, config, generation)
    except ValueError as error:
        raise ModelFileError(
            "tokenizer_config.json: no eos_token, and no eos_token_id in generation_config.json or "
            "config.json: no answer would ever end; set one of them"
        ) from error
    _try_tokenizer(tokenizer)
    words = tokenizer.get_vocab()
    if not words:
        raise ModelFileError("tokenizer.json: the tokenizer has no tokens; download it again")
    if rows is None:
        return
    for kind in _SPECIAL:
        number = getattr(tokenizer, f"{kind}_id", None)
        if number is not None and not 0 <= number < rows:
            raise ModelFileError(
                f"tokenizer_config.json: {kind} {getattr(tokenizer, kind)!r} is id {number}, but "
                f"the model's embedding has {rows} rows; give the tokenizer that the model was "
                "trained with, or resize_token_embeddings before saving it"
            )
    if not any(0 <= number < rows for number in ends):
        raise ModelFileError(
            f"config.json: no end-of-sequence id is under the {rows} rows of the embedding; set "
            f"eos_token_id to an id of 0 to {rows - 1}"
        )
    # Multimodal families share one tokenizer: the text models have no row for an image's mark.
    aside = {number for number, added in tokenizer.added_tokens_decoder.items() if added.special}
    past = {number: word for word, number in words.items() if number >= rows}
    wrong = sorted(set(past) - aside)
    if wrong:
        raise ModelFileError(
            f"tokenizer.json: {len(wrong)} tokens have no row in the model's embedding of {rows} "
            f"(the first: {past[wrong[0]]!r}, id {wrong[0]}); give the tokenizer that the model "
            "was trained with, or resize_token_embeddings before saving it"
        )


def _try_tokenizer(tokenizer: Any) -> None:
    """Encode and decode a text: only that shows a bad setting, as a length that is a text."""
    try:
        tokenizer.decode(tokenizer("1 + 1 = 2")["input_ids"])
    except Exception as error:
        raise ModelFileError(
            f"tokenizer_config.json: the tokenizer cannot encode and decode a text: {cause(error)}"
            "; correct it"
        ) from error


def _check_configured(file: str, key: str, value: Any, rows: int | None) -> None:
    if value is None:
        return
    given = value if isinstance(value, (list, tuple)) else [value]
    for number in given:
        if isinstance(number, bool) or not isinstance(number, int):
            raise ModelFileError(f"{file}: {key} is {value!r}; takes an id or a list of ids")
        # LLaMA's first configurations have pad_token_id -1 for none.
        low = -1 if key == "pad_token_id" else 0
        if number < low or (rows is not None and number >= rows):
            has = "" if rows is None else f", the model's embedding has {rows} rows"
            below = "" if rows is None else f" to {rows - 1}"
            raise ModelFileError(f"{file}: {key} is {number}{has}; set it to an id of 0{below}")


def check_template(tokenizer: Any) -> None:
    """Refuse a chat template that is no Jinja.

    Raises:
        ModelFileError: naming its line.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return
    if not isinstance(template, (str, dict)):
        raise ModelFileError(f"tokenizer_config.json: chat_template is {template!r}; takes a text")
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "1"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise ModelFileError(
            f"chat_template.jinja: line {error.lineno}: {cause(error)}; correct it, or remove it "
            "and use data.template=plain"
        ) from error
    except Exception:  # a template may refuse messages; require_chat says so where it is used
        return


def require_chat(tokenizer: Any, system: str | None, instruction: str | None) -> None:
    """Refuse a chat template that cannot write a question of the run.

    Args:
        tokenizer: a transformers tokenizer.
        system: the recipe's system message, None for none.
        instruction: the recipe's, appended to the question.

    Raises:
        ConfigError: naming ``data.template``, what the template said and the remedy.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "data.template: chat, but the model's tokenizer has no chat template; set "
            "data.template=plain, or give a model that has one"
        )
    try:
        messages = prompt_messages("1 + 1", template="chat", system=system, instruction=instruction)
        written = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        if not written.strip():
            raise ValueError("it writes nothing")
    except Exception as error:  # whatever the template's own code raises
        given = "with data.system " if system is not None else ""
        raise ConfigError(
            f"data.template: chat: the model's chat template cannot write a question {given}"
            f"({type(error).__name__}: {cause(error)}); correct chat_template.jinja, leave out "
            "data.system, or set data.template=plain"
        ) from error


def make_savable(generation: Any) -> list[str]:
    """Remove values of a generation configuration that have no effect and prevent saving it.

    Other values stay, however odd: the trainer reads nothing of it but the end-of-sequence ids, as
    the recipe says how to sample.

    Args:
        generation: transformers' ``GenerationConfig``, changed in place.

    Returns:
        The keys that were left out, with their values: a notice for the user.

    Raises:
        ModelFileError: it cannot be saved even so.
    """
    left_out = []
    for keys in ((), _SAMPLING, _BEAMS, ("pad_token_id",)):
        for key in keys:
            value = getattr(generation, key, None)
            idle = not generation.do_sample if keys is _SAMPLING else True
            idle = (generation.num_beams or 1) == 1 if keys is _BEAMS else idle
            if key == "pad_token_id":
                idle = isinstance(value, int) and value < 0
            if value is not None and idle:
                setattr(generation, key, None)
                left_out.append(f"{key}={value}")
        try:
            generation.validate(strict=True)
            return left_out
        except Exception as error:  # ValueError, and TypeError for values of odd types
            refused = error
    raise ModelFileError(
        f"generation_config.json: cannot be saved with a checkpoint: {cause(refused)}; correct or "
        "remove it"
    ) from refused


def check_savable(config: Any, tokenizer: Any, generation: Any) -> None:
    """Save configuration and tokenizer once, into a folder that is removed again.

    Otherwise the first checkpoint would fail.

    Args:
        config: the model's configuration.
        tokenizer: a transformers tokenizer.
        generation: the generation configuration, or None.

    Raises:
        ModelFileError: one of them cannot be saved.
    """
    parts = {
        "config.json": config,
        "tokenizer_config.json": tokenizer,
        "generation_config.json": generation,
    }
    with tempfile.TemporaryDirectory(prefix="siri-train-") as folder:
        for file, part in parts.items():
            try:
                if part is not None:
                    part.save_pretrained(Path(folder))
            except OSError:
                return  # the temporary disk's fault, not the model's
            except Exception as error:
                raise ModelFileError(
                    f"{file}: cannot be saved with a checkpoint: {cause(error)}; correct it"
                ) from error
