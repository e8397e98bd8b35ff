"""Checks and loads model folders; a model that cannot be trained is refused in one line.

Used by train, sft, eval, resume and export. :func:`check_model` runs before anything is written and
needs no weights in memory: it compares the headers of the weight files with the architecture.
:func:`load_model` checks transformers' loading report again when it loads the weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from siri_train.config.base import ConfigError
from siri_train.model.attention import prepare
from siri_train.model.files import (
    AGAIN,
    ModelFileError,
    cause,
    check_counts,
    first_bytes,
    json_object,
)
from siri_train.model.ids import check_ids, check_savable, check_template, make_savable
from siri_train.model.trial import check_layers, require_packed
from siri_train.model.weights import (
    compare_stored,
    is_tied,
    loading_problem,
    should_be_tied,
    two_heads,
    weights_name,
)

# One bar per checkpoint is noise in a loop that saves every few steps.
transformers_logging.disable_progress_bar()

# Heads whose logits are scaled in a way `LogprobHead` does not know would train on wrong numbers.
_UNSUPPORTED_HEADS = ("logit_scale", "logits_scaling")

_CONFIG = "correct it, or give a folder that from_pretrained loads"

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class CheckedModel:
    """A model folder's configuration and tokenizer, as :func:`check_model` has read them.

    Args:
        config: transformers' ``PretrainedConfig``.
        tokenizer: the folder's.
        rows: token ids that the embedding has rows for.
        skeleton: the model on the meta device, for checks of its layers.
    """

    config: Any
    tokenizer: Any
    rows: int
    skeleton: Any


def check_model(source: str | Path, named: str, say: bool = True) -> CheckedModel:
    """Every check of a model folder that needs no weights in memory.

    Args:
        source: a folder, or a hub id, whose weights are checked when they are loaded.
        named: the key or argument that gave it, for the message.
        say: whether to print what checkpoints will not hold.

    Raises:
        ConfigError: one line with ``named``, the folder, the file, the cause and the remedy: files
            missing, damaged or incomplete; a model that cannot be trained (quantised, an encoder,
            code of its own); tensors missing, unexpected or of other shapes; a tokenizer,
            generation configuration or chat template that does not fit.
    """
    config = load_config(source, named)
    tokenizer = load_tokenizer(source, named)
    with _one_line(source, named, "config.json", _CONFIG):
        check_layers(config)
        with torch.device("meta"):
            # A copy: building a model writes into its configuration. An id to pad with that has
            # no row would end it; check_ids names that one.
            model: Any = AutoModelForCausalLM.from_config(
                type(config).from_dict({**config.to_dict(), "pad_token_id": None}),
                attn_implementation="sdpa",
                trust_remote_code=False,
            )
        rows = int(model.get_input_embeddings().weight.shape[0])
        prepare(model)  # an architecture whose attention or head cannot be had
        require_packed(model)
    folder = Path(source)
    with _one_line(source, named, "weights"):
        if folder.is_dir():
            compare_stored(folder, config, model)
    generation = load_generation(source, named)
    with _one_line(source, named, "tokenizer_config.json"):
        check_ids(tokenizer, config, generation, rows)
        check_template(tokenizer)
        if generation is not None:
            left_out = make_savable(generation)
            if left_out and say:
                print(
                    f"{named}: generation_config.json: left out of checkpoints, for they have no "
                    f"effect without sampling: {', '.join(left_out)}",
                    flush=True,
                )
        check_savable(config, tokenizer, generation)
    return CheckedModel(config, tokenizer, rows, model)


def load_config(source: str | Path, named: str) -> Any:
    """The configuration of a model that can be trained (transformers' ``PretrainedConfig``).

    Raises:
        ConfigError: see :func:`check_model`.
    """
    folder = Path(source)
    with _one_line(source, named, "config.json", _CONFIG):
        if folder.exists() or folder.is_symlink():
            _check_config_file(folder)
        config: Any = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
        kind = config.model_type
        # Files may name an attention of another package, even code of the hub's, to be loaded.
        config._attn_implementation = "sdpa"
        if getattr(config, "quantization_config", None) is not None:
            raise ModelFileError(_quantised(config.quantization_config))
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ModelFileError(
                f"config.json: model_type {kind!r} is no causal language model; give one that "
                "writes text"
            )
        encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(
            config, "is_decoder", False
        )
        if encoder or getattr(config, "is_encoder_decoder", False):
            raise ModelFileError(
                f"config.json: model_type {kind!r} is an encoder (is_decoder is false), which does "
                "not write text from left to right; give a causal language model"
            )
        for key in _UNSUPPORTED_HEADS:
            value = getattr(config, key, None)
            if value not in (None, 1.0):
                raise ModelFileError(
                    f"config.json: {kind} scales its logits ({key}={value}), which the log-prob "
                    "head does not support yet; give another model"
                )
    return config


def _check_config_file(folder: Path) -> None:
    if folder.is_symlink() and not folder.exists():
        raise ModelFileError(
            f"is a link to {folder.readlink()}, which does not exist; give the folder itself"
        )
    if not folder.is_dir():
        raise ModelFileError("is a file; give the folder that holds config.json and the weights")
    for entry in sorted(folder.iterdir()):
        # Opening a pipe waits for its writer, and a device may have no end.
        if entry.exists() and not entry.is_file() and not entry.is_dir():
            raise ModelFileError(f"{entry.name}: is a device or a pipe; give the file itself")
    path = folder / "config.json"
    adapter = (folder / "adapter_config.json").exists()
    if adapter:
        raise ModelFileError(
            "adapter_config.json: holds PEFT adapters, which would be put over the weights; save "
            "merge_and_unload() and give that folder"
        )
    if not path.exists() and not path.is_symlink():
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:4]) or "nothing"
        raise ModelFileError(
            f"config.json: is missing (the folder holds {held}); give a folder that "
            "from_pretrained loads"
        )
    raw = json_object(path)
    check_counts(raw)
    for section in (raw, raw.get("text_config")):
        if isinstance(section, dict) and section.get("quantization_config") is not None:
            raise ModelFileError(_quantised(section["quantization_config"]))
    kind = raw.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise ModelFileError(f"config.json: model_type is {kind!r}; takes a name, as 'qwen2'")
    if kind not in _known_kinds():
        own = "it brings code of its own (auto_map), which is never run; " * ("auto_map" in raw)
        raise ModelFileError(
            f"config.json: model_type {kind!r} is not one that transformers knows; {own}give "
            "another model or update transformers"
        )


def _known_kinds() -> Mapping[str, Any]:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING


def _quantised(section: Any) -> str:
    read = section.get if isinstance(section, dict) else lambda key: getattr(section, key, None)
    how = read("quant_method") or "quantization_config"
    return (
        f"config.json: the weights are quantised ({how}), which cannot be trained; give the model "
        "in float32, float16 or bfloat16"
    )


def load_tokenizer(source: str | Path, named: str) -> Any:
    """The tokenizer of a model folder.

    Raises:
        ConfigError: see :func:`check_model`.
    """
    folder = Path(source)
    with _one_line(source, named, "tokenizer_config.json"):
        if folder.is_dir():
            _check_tokenizer_files(folder)
        return AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)


def _check_tokenizer_files(folder: Path) -> None:
    there = [n for n in _TOKENIZER_FILES if (folder / n).exists() or (folder / n).is_symlink()]
    vocabularies = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")
    if not any(next(folder.glob(pattern), None) for pattern in vocabularies):
        if "tokenizer.json" not in there:
            raise ModelFileError("tokenizer.json: is missing; download the whole folder again")
    for name in there:
        json_object(folder / name)
    if "tokenizer.json" in there:
        import tokenizers

        try:
            tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exceptions
            raise ModelFileError(f"tokenizer.json: is damaged: {cause(error)}{AGAIN}") from error
    template = folder / "chat_template.jinja"
    if template.exists() or template.is_symlink():
        first_bytes(template)
        try:
            template.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(
                f"{template.name}: is not UTF-8 (byte {error.start}){AGAIN}"
            ) from error


def load_generation(source: str | Path, named: str) -> Any:
    """The generation configuration of a folder, None where it has none (or is a hub id).

    Raises:
        ConfigError: it is damaged.
    """
    path = Path(source) / "generation_config.json"
    with _one_line(source, named, path.name, "correct or remove it"):
        if not path.exists() and not path.is_symlink():
            return None
        json_object(path)
        return GenerationConfig.from_pretrained(str(source))


def load_model(source: str | Path, named: str, dtype: torch.dtype) -> Any:
    """The model with every weight from the files, or an error.

    Args:
        source: a folder or hub id.
        named: the key or argument that gave it, for the message.
        dtype: of the weights.

    Returns:
        A transformers model on the CPU, in evaluation mode, that can be saved.

    Raises:
        ConfigError: see :func:`check_model`; or a weight is not finite.
    """
    folder = Path(source)
    with _one_line(source, named, "weights"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(source),
            config=load_config(source, named),
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
        model, report = loaded
        problem = loading_problem(report, type(model).__name__)
        if problem:
            raise ModelFileError(f"{weights_name(folder)}: {problem}")
        if should_be_tied(model) and not is_tied(model):
            raise ModelFileError(two_heads(weights_name(folder)))
        for name, weight in model.named_parameters():
            if not torch.isfinite(weight.detach().sum(dtype=torch.float32)):
                raise ModelFileError(
                    f"{weights_name(folder)}: {name} holds values that are not finite, or too big "
                    f"for {str(dtype).removeprefix('torch.')}; give weights that are whole"
                )
    if model.generation_config is not None:
        with _one_line(source, named, "generation_config.json", "correct or remove it"):
            make_savable(model.generation_config)
    return model


@contextmanager
def _one_line(
    source: str | Path,
    named: str,
    file: str,
    remedy: str = "give a folder that from_pretrained loads",
) -> Iterator[None]:
    """Turn any error of a library in the body into a ConfigError of one line.

    Libraries' own warnings and log lines are suppressed meanwhile.

    Raises:
        ConfigError: in place of any error; interrupts pass.
    """
    where = f"{named}: {str(source)!r}"
    level = transformers_logging.get_verbosity()
    hub_level = hub_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    hub_logging.set_verbosity(hub_logging.CRITICAL)  # a line for every try without a network
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ConfigError:
        raise
    except ModelFileError as error:
        raise ConfigError(f"{where}: {error}") from error
    except Exception as error:
        raise ConfigError(f"{where}: {file}: cannot be loaded: {cause(error)}; {remedy}") from error
    except BaseException as error:
        # The tokenizers' Rust code panics with an exception that is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise ConfigError(f"{where}: {file}: cannot be loaded: {cause(error)}; {remedy}") from error
    finally:
        transformers_logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
