"""Model folders for tests: a copy of the embedded model, and drawn damages to one."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from siri_train.model.demo_model import START_FOLDER

ODD: list[Any] = [
    None, True, -1, 0, 1, 3, 2**40, 10**9, 1e30, 0.5, float("nan"), "", "abc", [], [1], {},
    {"a": 1},
]  # fmt: skip
"""Values that stand in the place of others."""


def model_folder(at: Path) -> Path:
    """A copy of the embedded model that a test may harm."""
    return Path(shutil.copytree(START_FOLDER, at))


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; a value of ``...`` removes the key."""
    value = json.loads(path.read_text())
    for key, new in changes.items():
        if new is ...:
            value.pop(key, None)
        else:
            value[key] = new
    path.write_text(json.dumps(value))


def edit_weights(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    """Replace the weights by what ``change`` makes of them."""
    path = folder / "model.safetensors"
    weights = change(load_file(path))
    save_file({k: v.contiguous() for k, v in weights.items()}, path, metadata={"format": "pt"})


def damage(folder: Path, rng: random.Random) -> str:
    """Harm one drawn file in a drawn way; says what was done.

    Only the header of the weights is harmed: nothing can tell a flipped bit among numbers.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    path = rng.choice(files)
    how = rng.choice(["cut", "flip", "delete", "garble", "empty", "value", "value", "value"])
    if how == "value":
        path = rng.choice([path for path in files if path.suffix == ".json"])
        return f"{path.name}: {_other_value(path, rng)}"
    data = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif how == "garble":
        path.write_bytes(rng.randbytes(rng.randrange(1, 300)))
    elif how == "empty":
        path.write_bytes(b"")
    else:
        place = rng.randrange(min(len(data), 3000))
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        how = f"flip at {place}"
    return f"{path.name}: {how}"


def _other_value(path: Path, rng: random.Random) -> str:
    """Put an odd value in the place of a drawn one, however deep."""
    value = json.loads(path.read_text())
    at, names = value, []
    while True:
        key = rng.choice(sorted(at) if isinstance(at, dict) else range(len(at)))
        names.append(str(key))
        inner = at[key]
        if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.2:
            break
        at = inner
    at[key] = rng.choice(ODD)
    path.write_text(json.dumps(value))
    return f"{'.'.join(names)} = {at[key]!r}"
