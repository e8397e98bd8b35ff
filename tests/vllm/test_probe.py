"""The sync probe on a real vLLM: planted faults are caught, clean syncs pass."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from siri_train.config.recipe import parse_config
from siri_train.model.policy import Policy
from siri_train.rollout import SamplingParams
from siri_train.rollout.vllm import versions
from siri_train.rollout.vllm.engine import VllmEngine
from siri_train.trainer.sync_probe import SyncError, SyncProbe
from tests.vllm.conftest import PROMPTS


def probe(engine: VllmEngine, policy: Policy) -> SyncProbe:
    config = parse_config(
        {"rollout": {"engine": "vllm", "temperature": 0.7}, "schedule": {"max_len": 64,
         "min_len": 32, "cycle": 4}}
    )  # fmt: skip
    return SyncProbe(engine, policy, config, PROMPTS)


def move(policy: Policy, by: float = 0.02) -> None:
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(by * torch.randn_like(parameter))


@pytest.fixture
def restored(engine: VllmEngine, policy: Policy) -> Iterator[None]:
    """The session's weights and engine as they were, after the test."""
    kept = copy.deepcopy(policy.model.state_dict())
    yield
    policy.model.load_state_dict(kept)
    engine.sync()
    assert probe(engine, policy).look(1) < 1e-5


def half(weights: Any) -> Any:
    everything = list(weights)
    return iter(everything[: len(everything) // 2])


def coarse(weights: Any) -> Any:
    return ((name, value.bfloat16().float()) for name, value in weights)


def asleep(weights: Any) -> Any:
    return ((name, torch.zeros_like(value)) for name, value in weights)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (lambda weights: iter(()), "did not reach"),
        (half, "half written"),
        (asleep, "slept"),
        (coarse, "sampler float32"),
    ],
    ids=["stale", "half", "asleep", "dtype"],
)
@pytest.mark.usefixtures("restored")
def test_weights_that_are_not_the_trainers(
    engine: VllmEngine,
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Any], Any],
    named: str,
) -> None:
    real = versions.reload_in_process
    move(policy)
    with monkeypatch.context() as patch:
        patch.setattr(versions, "reload_in_process", lambda llm, w: real(llm, fault(w)))
        engine.sync()
    with pytest.raises(SyncError, match=named):
        probe(engine, policy).after_sync(5)


def test_a_temperature_applied_twice(
    engine: VllmEngine, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine._params

    def twice(params: SamplingParams, index: int, k: int) -> Any:
        return real(dataclasses.replace(params, temperature=params.temperature**2), index, k)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_params", twice)
        with pytest.raises(SyncError, match="the sampler applies the temperature twice"):
            probe(engine, policy).after_sync(5)
    assert probe(engine, policy).look(5) < 1e-5


@pytest.mark.usefixtures("restored")
def test_clean_syncs_never_trip(engine: VllmEngine, policy: Policy) -> None:
    look = probe(engine, policy)
    for seed in range(12):
        move(policy, 0.05)
        engine.sync()
        difference = look.after_sync(seed)
        assert difference is not None and difference < 1e-5
