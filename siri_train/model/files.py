"""Reads the files of a model folder; an error says in one line what is wrong with a file."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

_INDEX = ".index.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In transformers' order; each may be split into several files that an index lists."""

_OTHERS = (".safetensors", ".bin", ".gguf", ".h5", ".msgpack", ".pt", ".pth", ".ckpt")
"""Suffixes of files that may hold weights, for the message that lists what was found."""

_LFS = b"version https://git-lfs"

# Code loops over these counts, and makes tables of these widths, before anything is compared with
# the weights. Each bound is ten times the largest known model's.
_EPSILONS = ("_eps", "_epsilon")
_MOST_LAYERS, _MOST_PARTS, _MOST_WIDTH = 10_000, 1_000_000, 10_000_000


AGAIN = "; correct it, or copy or download it again"
"""The remedy for a damaged file of a model folder, at the end of a message."""


class ModelFileError(ValueError):
    """A file of a model folder that cannot be used; the message begins with its name."""


def cause(error: BaseException, most: int = 240) -> str:
    """A library's error as a part of one line.

    Args:
        error: any exception.
        most: characters; a longer text is shortened.

    Returns:
        Its text with every run of blanks and line ends as one blank; its class where it has none.
    """
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    if not text or isinstance(error, KeyError):
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= most else f"{text[: most - 3]}..."


def first_bytes(path: Path, count: int = 512) -> bytes:
    """The beginning of a file that must be there.

    Raises:
        ModelFileError: it is missing, a broken link, a folder, unreadable, empty, a Git LFS pointer
            or a web page.
    """
    name = path.name
    try:
        if path.is_symlink() and not path.exists():
            raise ModelFileError(
                f"{name}: is a link to {path.readlink()}, which does not exist; put the file "
                "itself there"
            )
        with path.open("rb") as file:
            start = file.read(count)
    except FileNotFoundError as error:
        raise ModelFileError(f"{name}: is missing; download the whole folder again") from error
    except OSError as error:
        raise ModelFileError(f"{name}: cannot be read: {cause(error)}{AGAIN}") from error
    if not start:
        raise ModelFileError(f"{name}: is empty; download it again")
    if start.startswith(_LFS):
        raise ModelFileError(
            f"{name}: is a Git LFS pointer, not the file itself; run `git lfs pull` in the folder"
        )
    if start.lstrip()[:15].lower().startswith((b"<!doctype", b"<html")):
        raise ModelFileError(f"{name}: is a web page, not the file; download it again")
    return start


def json_object(path: Path, remedy: str = AGAIN) -> dict[str, Any]:
    """A JSON file whose value is an object.

    Args:
        path: of the file.
        remedy: end of the message for a damaged one.

    Raises:
        ModelFileError: see :func:`first_bytes`; or it is not UTF-8, no JSON or no object.
    """
    first_bytes(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path.name}: is not UTF-8 (byte {error.start}){remedy}") from error
    except (ValueError, RecursionError, OSError) as error:
        raise ModelFileError(f"{path.name}: is damaged: no JSON: {cause(error)}{remedy}") from error
    if not isinstance(value, dict):
        raise ModelFileError(
            f"{path.name}: holds a {type(value).__name__}, not a JSON object{remedy}"
        )
    return value


def check_counts(config: dict[str, Any], file: str = "config.json") -> None:
    """Refuse numbers in a configuration that no model has, before any code uses them.

    Layers, heads, experts and widths have an upper bound. Dropout and epsilons have a range; values
    outside of it would give a library's error, or zeros, at the first update.

    Args:
        config: as it stands in the file.
        file: its name, for the message.

    Raises:
        ModelFileError: naming the key and the bound.
    """
    for key, value in config.items():
        if isinstance(value, dict):
            check_counts(value, file)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        part = key.endswith(("dropout", "_drop", "pdrop", "layerdrop"))
        if (part and not 0 <= value < 1) or (key.endswith(_EPSILONS) and not 0 <= value <= 1):
            takes = "takes a number from 0 to below 1" if part else "takes a number from 0 to 1"
            raise ModelFileError(f"{file}: {key} is {value}; {takes}")
        wide = key.endswith(("_size", "_dim", "_embd", "d_model")) and key != "vocab_size"
        counted = key.startswith(("num_", "n_")) or key.endswith(("_layers", "_heads"))
        most = _MOST_WIDTH if wide else _MOST_LAYERS if "layer" in key else _MOST_PARTS
        if (wide or counted) and not -most <= value <= most:
            raise ModelFileError(f"{file}: {key} is {value}; takes at most {most}")


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load the weights from.

    Raises:
        ModelFileError: there are none, or an index is damaged or names a shard that is missing or
            lies elsewhere.
    """
    for name in _WEIGHTS:
        # A broken link counts as a file, so that the message names it.
        if (folder / name).exists() or (folder / name).is_symlink():
            first_bytes(folder / name)
            return [folder / name]
        index = folder / f"{name}{_INDEX}"
        if index.exists() or index.is_symlink():
            return _shards(index)
    others = sorted(p.name for p in folder.iterdir() if p.suffix in _OTHERS)
    if any("-of-" in name for name in others):
        raise ModelFileError(
            f"{_WEIGHTS[0]}{_INDEX}: is missing, though there are shards ({others[0]}){AGAIN}"
        )
    held = f"; there is {', '.join(others[:3])}" if others else ""
    if any(name.endswith(".gguf") for name in others):
        raise ModelFileError(
            f"{_WEIGHTS[0]}: is missing{held}; convert it: `siri-train convert FILE.gguf FOLDER`"
        )
    raise ModelFileError(f"{_WEIGHTS[0]}: is missing{held}; download the whole folder again")


def _shards(index: Path) -> list[Path]:
    content = json_object(index)
    named = content.get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(v, str) for v in named.values()):
        raise ModelFileError(f"{index.name}: has no weight_map from tensors to files{AGAIN}")
    if not named:
        raise ModelFileError(f"{index.name}: its weight_map is empty{AGAIN}")
    if not isinstance(content.get("metadata"), dict):
        raise ModelFileError(
            f"{index.name}: has no metadata, without which transformers does not read it; add "
            '"metadata": {}'
        )
    names = sorted(set(named.values()))
    for name in names:
        if Path(name).name != name or "\0" in name:
            raise ModelFileError(f"{index.name}: names {name!r}, which is not in the folder{AGAIN}")
        path = index.parent / name
        if not path.exists() and not path.is_symlink():
            count = sum(v == name for v in named.values())
            raise ModelFileError(
                f"{index.name}: names the shard {name} ({count} tensors), which is missing; "
                "download the whole folder again"
            )
        first_bytes(path)
    return [index.parent / name for name in names]


def stored_tensors(files: list[Path]) -> dict[str, torch.Tensor]:
    """Names, shapes and dtypes of the tensors in weight files, as tensors on the meta device.

    Only headers are read (of ``.bin`` files the pickle, which may hold tensors and nothing else).

    Raises:
        ModelFileError: a file is incomplete, or is no safetensors or ``.bin`` file.
    """
    found: dict[str, torch.Tensor] = {}
    for path in files:
        read = _safetensors if path.suffix == ".safetensors" else _pickled
        for name, tensor in read(path):
            found[name] = tensor
    if not found:
        raise ModelFileError(f"{files[0].name}: holds no tensors{AGAIN}")
    return found


def _safetensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    _require_whole(path)
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                part = file.get_slice(name)
                dtype = _DTYPES.get(str(part.get_dtype()))
                if dtype is None:
                    raise ModelFileError(
                        f"{path.name}: {name} is stored as {part.get_dtype()}; quantised weights "
                        "cannot be trained, give the model in float32, float16 or bfloat16"
                    )
                yield name, torch.empty(part.get_shape(), dtype=dtype, device="meta")
    except ModelFileError:
        raise
    except Exception as error:  # SafetensorError, and torch's errors for odd shapes
        raise ModelFileError(f"{path.name}: is damaged: {cause(error)}{AGAIN}") from error


# What weights and their buffers are stored as; all else is a quantised format.
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def _require_whole(path: Path) -> None:
    """Refuse an incomplete file, with a message of its own."""
    start, size = first_bytes(path), path.stat().st_size
    if len(start) < 8:
        raise ModelFileError(f"{path.name}: is incomplete: {size} bytes; download it again")
    header = 8 + struct.unpack("<Q", start[:8])[0]
    if not start[8:].lstrip().startswith(b"{"):
        raise ModelFileError(
            f"{path.name}: is no safetensors file (it begins with {start[:12]!r}); download it "
            "again"
        )
    end = header
    if header <= size:
        try:
            with path.open("rb") as file:
                file.seek(8)
                entries = json.loads(file.read(header - 8))
            ends = [e["data_offsets"][1] for k, e in entries.items() if k != "__metadata__"]
            end = header + max(ends, default=0)
        except (ValueError, RecursionError, AttributeError, LookupError, TypeError, OSError):
            return  # the library says what is wrong with it
    if end > size:
        raise ModelFileError(
            f"{path.name}: is incomplete: {size} bytes where its header asks for {end}; download "
            "it again"
        )


def _pickled(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        state = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, BadZipFile, ...
        raise ModelFileError(
            f"{path.name}: cannot be read as tensors alone (incomplete, damaged, or a pickle that "
            "would run code); give safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ModelFileError(f"{path.name}: is no table of tensors; give safetensors")
    yield from ((str(name), value) for name, value in state.items())
