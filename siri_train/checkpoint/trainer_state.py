"""The trainer's state in a checkpoint: read defensively, checked before it is used."""

from __future__ import annotations

import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import torch

from siri_train.config.base import ConfigError

_NEEDED = ("lr", "betas", "eps", "weight_decay")


def read(path: Path) -> Any:
    """The tensors and numbers of a file that ``torch.save`` wrote, on the CPU.

    Objects of any other kind are never created: creating them can run any program.

    Raises:
        ConfigError: the file holds such objects, is damaged or cannot be read; one line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other pickles, before they are refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        said = str(error)
        named = said.partition("Unsupported global: GLOBAL ")[2].split() or ["of another kind"]
        raise ConfigError(
            f"{path}: cannot be resumed from: it holds objects ({named[0]}) that are no tensors "
            "and numbers; loading them could run any program, so take another checkpoint "
            "(--resume PATH)"
        ) from error
    except Exception as error:  # whatever its bytes lead to inside of torch
        raise ConfigError(unusable(path, error)) from error


def unusable(path: Path, error: Exception) -> str:
    """The line for a file that was read but holds nothing to continue from."""
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, KeyError):
        reason = f"{reason} is missing"
    elif not isinstance(error, (ValueError, RuntimeError)) or not reason:
        reason = f"{type(error).__name__}: {reason}"
    return f"{path}: cannot be resumed from: {reason}; take another checkpoint (--resume PATH)"


def check(state: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Compare the content of ``trainer_state.pt`` with what this version writes.

    Args:
        state: as :func:`read` gave it.
        optimizer: the one that will take it.
        step: the steps done by ``checkpoint.json``.

    Raises:
        ValueError, KeyError: what differs; ``load_state_dict`` itself compares the number of
            parameters only, and the rest would show in the middle of an update.
    """
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__} where the trainer's state should be")
    if type(state["step"]) is not int or state["step"] != step:
        raise ValueError(f"its step is {state['step']!r}, checkpoint.json has {step}")
    _check_rng(state["rng"])
    if state["optimizer"] is not None:
        _check_optimizer(state["optimizer"], optimizer)


def rng_state() -> dict[str, Any]:
    """States of every generator that a step may draw from, as ``weights_only`` loads them."""
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(numbers), gauss],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Restore what :func:`rng_state` gave; for GPUs only where their number is the same."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def _check_rng(state: Any) -> None:
    if not isinstance(state, dict):
        raise ValueError("the state of its random number generators is no mapping")
    now = torch.get_rng_state()
    numbers = [state["torch"], *state["cuda"]]
    if not all(isinstance(one, torch.Tensor) and one.dtype == torch.uint8 for one in numbers):
        raise ValueError("the state of its random number generators is no tensor of bytes")
    if state["torch"].shape != now.shape:
        raise ValueError(
            f"the state of its random number generator has shape {tuple(state['torch'].shape)}, "
            f"this torch has {tuple(now.shape)}"
        )
    here = random.getstate()
    version, words, _ = state["python"]
    if version != here[0] or len(words) != len(here[1]):
        raise ValueError("the state of Python's random number generator is another version's")


def _check_optimizer(state: Any, optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(state, dict) or not isinstance(state["state"], dict):
        raise ValueError("the optimiser's state is no mapping")
    groups = list(zip(state["param_groups"], optimizer.param_groups, strict=True))
    for saved, group in groups:
        for key, value in group.items():
            if key == "params" or (key not in saved and key not in _NEEDED):
                continue  # an older PyTorch's optimiser has not all of them
            if not _alike(saved[key], value):
                raise ValueError(f"the optimiser's {key} is {saved[key]!r}, this one's {value!r}")
    parameters = [
        pair for saved, group in groups
        for pair in zip(saved["params"], group["params"], strict=True)
    ]  # fmt: skip
    for number, parameter in parameters:
        moments = state["state"].get(number)
        if moments is None:  # it has not been updated yet
            continue
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if not isinstance(moments[key], torch.Tensor):
                raise ValueError(f"the optimiser's {key} is a {type(moments[key]).__name__}")
        for key, value in moments.items():
            shape = () if key == "step" else parameter.shape
            if isinstance(value, torch.Tensor) and value.shape != shape:
                raise ValueError(
                    f"the optimiser's state is another model's: {tuple(value.shape)} where this "
                    f"one has {tuple(shape)}"
                )


def _alike(saved: Any, now: Any) -> bool:
    """Whether a setting of the optimiser is of the kind that it has here."""
    if isinstance(now, (tuple, list)):
        if not isinstance(saved, (tuple, list)) or len(saved) != len(now):
            return False
        return all(map(_alike, saved, now))
    if isinstance(now, bool) or now is None:
        return saved is None or isinstance(saved, bool)
    if isinstance(now, (int, float)):
        return isinstance(saved, (int, float)) and not isinstance(saved, bool)
    return type(saved) is type(now)
