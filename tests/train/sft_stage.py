"""What the tests of the supervised stage share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import siri_train.commands.sft
from siri_train.commands.sft import SupervisedStats
from siri_train.config.run import RunConfig

STEPS = 9
SMALL = (
    "model.scratch={layers: 1, hidden_size: 16, intermediate_size: 32, heads: 2, kv_heads: 1}",
    "sft.batch_size=8",
    "sft.lr=0.003",
    "checkpoint.every=4",
)


def rows(config: RunConfig) -> list[dict[str, Any]]:
    text = (config.run_dir / "sft.jsonl").read_text()
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def before_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """``act`` happens at the beginning of the given call of ``supervised_step``, from 0."""
    step = siri_train.commands.sft.supervised_step
    calls: list[int] = []

    def watched(*args: Any, **kwargs: Any) -> SupervisedStats:
        calls.append(1)
        if len(calls) == number + 1:
            act()
        return step(*args, **kwargs)

    monkeypatch.setattr(siri_train.commands.sft, "supervised_step", watched)


class Killed(BaseException):
    """Stands for SIGKILL: nothing that catches errors catches it."""


def kill() -> None:
    raise Killed
