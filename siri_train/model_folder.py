"""The one gate for model folders: what cannot be trained is refused in a line naming the file.

Used by train, sft, eval, resume and export. :func:`check_model` needs no weights in memory: it
compares the headers of the weight files with the architecture and is made before anything is
written; :func:`load_model` asks for the loading report again when the weights come.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from siri_train.attention import prepare
from siri_train.config import ConfigError
from siri_train.model_files import (
    ModelFileError,
    cause,
    check_counts,
    first_bytes,
    json_object,
    stored_tensors,
    weight_files,
)
from siri_train.model_ids import check_ids, check_savable, check_template, make_savable

# One bar per checkpoint is noise in a loop that saves every few steps.
transformers_logging.disable_progress_bar()

# Heads whose logits are scaled in a way `LogprobHead` does not know would train on wrong numbers.
_UNSUPPORTED_HEADS = ("logit_scale", "logits_scaling")

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

# What wrappers put before every name, and how to save without it.
_PREFIXES = {
    "_orig_mod.": "saved under torch.compile: save model._orig_mod",
    "base_model.model.": "saved under PEFT: save merge_and_unload()",
    "module.": "saved under DistributedDataParallel or FSDP: save model.module",
    "_fsdp_wrapped_module.": "saved under FSDP: save the unwrapped model",
}


@dataclass(frozen=True)
class CheckedModel:
    """What :func:`check_model` has read.

    Args:
        config: transformers' ``PretrainedConfig``.
        tokenizer: the folder's.
        rows: token ids that the embedding has rows for.
    """

    config: Any
    tokenizer: Any
    rows: int


def check_model(source: str | Path, named: str, say: bool = True) -> CheckedModel:
    """Every check of a model folder that needs no weights in memory.

    Args:
        source: a folder, or a hub id, whose weights are checked when they are loaded.
        named: the key or argument that gave it, for the message.
        say: whether to print what checkpoints will not hold.

    Raises:
        ConfigError: one line with ``named``, the folder, the file, the cause and the remedy: files
            missing, damaged or cut short; a model that cannot be trained (quantised, an encoder,
            code of its own); tensors missing, unexpected or of other shapes; a tokenizer,
            generation configuration or chat template that does not fit.
    """
    config = load_config(source, named)
    tokenizer = load_tokenizer(source, named)
    with _one_line(source, named, "config.json"):
        with torch.device("meta"):
            # A copy: building a model writes into its configuration.
            model: Any = AutoModelForCausalLM.from_config(
                type(config).from_dict(config.to_dict()),
                attn_implementation="sdpa",
                trust_remote_code=False,
            )
        rows = int(model.get_input_embeddings().weight.shape[0])
        prepare(model)  # an architecture whose attention or head cannot be had
    folder = Path(source)
    with _one_line(source, named, "weights"):
        if folder.is_dir():
            _check_stored(folder, config, model)
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
    return CheckedModel(config, tokenizer, rows)


def load_config(source: str | Path, named: str) -> Any:
    """The configuration of a model that can be trained (transformers' ``PretrainedConfig``).

    Raises:
        ConfigError: see :func:`check_model`.
    """
    folder = Path(source)
    with _one_line(source, named, "config.json"):
        if folder.exists() or folder.is_symlink():
            _check_config_file(folder)
        config: Any = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
        kind = config.model_type
        if getattr(config, "quantization_config", None):
            raise ModelFileError(_quantised(config.quantization_config))
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ModelFileError(
                f"config.json: model_type {kind!r} is no causal language model; give one that "
                "writes text"
            )
        encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_decoder
        if encoder or config.is_encoder_decoder:
            raise ModelFileError(
                f"config.json: model_type {kind!r} is an encoder (is_decoder is false), which does "
                "not write text from left to right; give a causal language model"
            )
        for key in _UNSUPPORTED_HEADS:
            value = getattr(config, key, None)
            if value not in (None, 1.0):
                raise ModelFileError(
                    f"config.json: {kind} scales its logits ({key}={value}), which the log-prob "
                    "head does not support yet"
                )
    return config


def _check_config_file(folder: Path) -> None:
    if folder.is_symlink() and not folder.exists():
        raise ModelFileError(f"is a link to {folder.readlink()}, which does not exist")
    if not folder.is_dir():
        raise ModelFileError("is a file; give the folder that holds config.json and the weights")
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
        if isinstance(section, dict) and section.get("quantization_config"):
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
            raise ModelFileError(f"tokenizer.json: is damaged: {cause(error)}") from error
    template = folder / "chat_template.jinja"
    if template.exists() or template.is_symlink():
        first_bytes(template)
        try:
            template.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{template.name}: is not UTF-8 (byte {error.start})") from error


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
            dtype=dtype,
            attn_implementation="sdpa",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
        model, report = loaded
        problem = loading_problem(report, type(model).__name__)
        if problem:
            raise ModelFileError(f"{_files_name(folder)}: {problem}")
        if _should_be_tied(model) and not _is_tied(model):
            raise ModelFileError(_two_heads(_files_name(folder)))
        for name, weight in model.named_parameters():
            if not torch.isfinite(weight.detach().sum(dtype=torch.float32)):
                raise ModelFileError(
                    f"{_files_name(folder)}: {name} holds values that are not finite, or too large "
                    f"for {str(dtype).removeprefix('torch.')}; give weights that are whole"
                )
    if model.generation_config is not None:
        with _one_line(source, named, "generation_config.json", "correct or remove it"):
            make_savable(model.generation_config)
    return model


def loading_problem(report: Mapping[str, Any], model: str) -> str | None:
    """What transformers' loading report says is wrong, as a part of one line; None if nothing.

    Args:
        report: ``missing_keys``, ``unexpected_keys``, ``mismatched_keys`` and ``error_msgs``, from
            which transformers has taken what the architecture declares it can do without.
        model: the architecture's name.
    """
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    for prefix, how in _PREFIXES.items():
        if unexpected and all(prefix in name for name in unexpected):
            return (
                f"{len(unexpected)} tensors have names with {prefix!r} in them (the first: "
                f"{unexpected[0]}), {how} and give that"
            )
    if mismatched := sorted(report["mismatched_keys"], key=str):
        name, there, wanted = mismatched[0]
        return (
            f"{len(mismatched)} tensors are not of the shape that config.json asks for (the first: "
            f"{name}, {list(there)} there, {list(wanted)} by config.json); give the config.json "
            "that the weights were saved with"
        )
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors of {model} are missing ({_first(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} tensors are not {model}'s ({_first(unexpected)})")
    if report.get("error_msgs"):
        parts.append(" ".join(str(m) for m in report["error_msgs"])[:200])
    if not parts:
        return None
    return f"{'; '.join(parts)}; give the config.json and the weights of one and the same model"


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _check_stored(folder: Path, config: Any, model: Any) -> None:
    """Compare the weight files' headers with the architecture, which lies on the meta device."""
    files = weight_files(folder)
    stored = stored_tensors(files)
    name = _files_name(folder)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if layers and layers > len(stored):
        raise ModelFileError(
            f"{name}: holds {len(stored)} tensors, too few for the {layers} layers of config.json; "
            "give the config.json and the weights of one and the same model"
        )
    numbers = {n for n, _ in model.named_parameters()}
    for key, tensor in stored.items():
        if key in numbers and not tensor.is_floating_point():
            raise ModelFileError(
                f"{name}: {key} is stored as {str(tensor.dtype).removeprefix('torch.')}, not as "
                "floating-point numbers; quantised weights cannot be trained"
            )
    report = _report(model, stored)
    problem = loading_problem(report, type(model).__name__) if report else None
    if problem:
        raise ModelFileError(f"{name}: {problem}")
    if _should_be_tied(model) and _stored_apart(model, stored, files):
        raise ModelFileError(_two_heads(name))


def _report(model: Any, stored: dict[str, torch.Tensor]) -> dict[str, Any] | None:
    """transformers' loading report for tensors on the meta device; None where it gives none."""
    try:
        loaded = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=dict(stored),
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    except Exception:
        # An architecture whose weights must be in memory to be converted: load_model will tell.
        return None
    return loaded[1]


def _stored_apart(model: Any, stored: dict[str, torch.Tensor], files: list[Path]) -> bool:
    """Whether the files hold an embedding and another head for a model whose head is tied."""
    head = model.get_output_embeddings()
    words = {id(head): "", id(model.get_input_embeddings()): ""}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in words:
            words[id(module)] = f"{name}.weight"
    names = [name for name in words.values() if name in stored]
    if len(names) < 2 or files[0].suffix != ".safetensors":
        return False  # of a .bin file load_model tells
    values = []
    for wanted in names:
        for path in files:
            with safe_open(path, framework="pt") as file:
                if wanted in file.keys():
                    values.append(file.get_tensor(wanted))
                    break
    return not torch.equal(values[0], values[1])


def _should_be_tied(model: Any) -> bool:
    """Whether the configuration says so and the architecture has a head to tie."""
    declared = getattr(model, "_tied_weights_keys", None)
    return bool(declared) and bool(getattr(model.config, "tie_word_embeddings", False))


def _is_tied(model: Any) -> bool:
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    return head is None or head.weight is words.weight or head.weight.shape != words.weight.shape


def _two_heads(name: str) -> str:
    return (
        f"{name}: holds an embedding and another head, though config.json says that they are one "
        "(tie_word_embeddings); set it to false, or save the model with its head tied"
    )


def _files_name(folder: Path) -> str:
    """One name for the weights, for the message."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        for path in (folder / name, folder / f"{name}.index.json"):
            if path.exists():
                return path.name
    return "weights"


@contextmanager
def _one_line(
    source: str | Path,
    named: str,
    file: str,
    remedy: str = "give a folder that from_pretrained loads",
) -> Iterator[None]:
    """Turn whatever a library raises in the body into a ConfigError of one line.

    Libraries' own warnings and log lines are kept back meanwhile: the error says it all.

    Raises:
        ConfigError: in place of any error; interrupts pass.
    """
    where = f"{named}: {str(source)!r}"
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
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
        raise ConfigError(f"{where}: {file}: cannot be loaded: {cause(error)}") from error
    finally:
        transformers_logging.set_verbosity(level)
