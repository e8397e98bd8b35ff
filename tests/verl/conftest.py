"""The real verl 0.9.1; run by ``make test-verl`` in the environment of scripts/verl.sh."""

from __future__ import annotations

import copy
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from siri_train.config import RunConfig
from siri_train.recipe import parse_config

# Not collected elsewhere: `make test` has no verl. Asked for by name there, pytest finds nothing
# and fails. Entry points are what is tested, so a verl on the path alone is not enough.
try:
    importlib.metadata.distribution("TransferQueue")
except importlib.metadata.PackageNotFoundError:
    collect_ignore_glob = ["test_*.py"]
else:
    from siri_train.integrations.verl import command
    from siri_train.integrations.verl.options import Machines


@pytest.fixture(autouse=True)
def fresh_random_inputs(request: pytest.FixtureRequest) -> None:
    """Each test draws its own numbers, the same ones in every run."""
    torch.manual_seed(sum(map(ord, request.node.nodeid)))


TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "train": [{"kind": "embedded", "size": 16}],
        "eval": [{"kind": "embedded", "size": 4, "seed": 1}],
        "max_prompt_len": 16,
    },
    "schedule": {"max_len": 48, "min_len": 16, "cycle": 4},
    "rollout": {"prompts": 4, "group_size": 4},
    "train": {"steps": 4, "lr": 1e-3, "token_budget": 256},
    "eval": {"every": 4},
    "checkpoint": {"every": 1, "keep_last": 1},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """``recipe("a.b=c", ...)``: a tiny recipe with its run in ``tmp_path/run``."""

    def make(*overrides: str) -> RunConfig:
        return parse_config(copy.deepcopy(TINY), [f"output={tmp_path / 'run'}", *overrides])

    return make


@pytest.fixture
def verl_config(recipe: Any) -> Any:
    """``verl_config("a.b=c", ...)``: what verl composes of the command that is made of a recipe."""

    def make(*overrides: str, extra: tuple[str, ...] = ()) -> Any:
        words, _ = command.prepare(recipe(*overrides), Machines(gpus=1), extra)
        return command.check_config(words[3:])

    return make
