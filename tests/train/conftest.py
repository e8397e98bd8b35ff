"""Fixtures of the trainer's tests: a tiny run that takes a second or two, a server.

Each imports what it needs when it is asked for: test_attention.py runs on machines that lack the
trainer's packages.
"""

from __future__ import annotations

import copy
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from siri_train.config.run import RunConfig
    from siri_train.model.policy import Policy
    from tests.train.fake_vllm import FakeVllm

TINY: dict[str, Any] = {
    "name": "tiny",
    "threads": 1,
    "model": {"path": "embedded"},
    "data": {
        "train": [{"kind": "embedded", "size": 64}],
        "eval": [{"kind": "embedded", "size": 16, "seed": 1}],
        "max_prompt_len": 24,
    },
    "schedule": {"max_len": 56, "min_len": 24, "cycle": 4},
    "rollout": {"prompts": 4, "group_size": 4},
    "train": {"steps": 4, "lr": 1e-3, "token_budget": 1024},
    "eval": {"every": 0},
    "checkpoint": {"every": 1, "keep_last": 2},
    "monitor": {"rollouts_every": 2},
}


@pytest.fixture
def tiny(tmp_path: Path) -> Any:
    """``tiny("a.b=c", ...)``: a tiny valid configuration with its run in ``tmp_path/run``."""
    from siri_train.config.recipe import parse_config

    def make(*overrides: str) -> RunConfig:
        return parse_config(copy.deepcopy(TINY), [f"output={tmp_path / 'run'}", *overrides])

    return make


@pytest.fixture
def policy() -> Policy:
    """A random tiny Qwen2 policy."""
    from siri_train.config.model import ArchitectureConfig, ModelConfig
    from siri_train.model.policy import load_policy

    torch.manual_seed(0)
    config = ModelConfig(
        path="scratch", scratch=ArchitectureConfig(hidden_size=32, intermediate_size=64, layers=2)
    )
    return load_policy(config, torch.device("cpu"))


@pytest.fixture
def fake(policy: Policy, tmp_path: Path) -> Iterator[FakeVllm]:
    """A vLLM server that was started with the policy's shape and draws without a model."""
    from tests.train.fake_vllm import FakeVllm

    policy.model.config.save_pretrained(tmp_path / "model")
    server = FakeVllm(tmp_path / "model").start()
    yield server
    server.die()


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """The system's and Python's own handlers: a shell ignores SIGINT for what runs in its
    background, and what ignores a signal goes on doing so."""
    names = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    before = {s: signal.signal(s, signal.SIG_DFL) for s in (getattr(signal, n) for n in names)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    """The same draws in every run, others in every test."""
    return random.Random(request.node.name)


@pytest.fixture
def small(tiny: Any, tmp_path: Path) -> Callable[..., RunConfig]:
    """``small("name", "a.b=c", ...)``: a recipe whose supervised stage takes a fraction of 1 s."""
    from tests.train.sft_stage import SMALL, STEPS

    def make(name: str, *overrides: str, steps: int | None = None) -> RunConfig:
        folder = f"output={tmp_path / name}"
        return tiny("sft={}", *SMALL, f"sft.steps={steps or STEPS}", folder, *overrides)

    return make
