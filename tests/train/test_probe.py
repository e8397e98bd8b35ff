"""The sync probe: every planted fault is caught right after the sync, a clean run never trips.

Here with engines that sample by transformers from a copy of the weights; tests/vllm plants the same
faults in a real vLLM.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from siri_train.config.run import RunConfig
from siri_train.model.policy import Policy
from siri_train.rollout import Completion, SamplingParams, TransformersEngine
from siri_train.train import train
from siri_train.trainer.sync_probe import SyncError, SyncProbe

PROMPTS = [[1, 12, 25, 8, 3], [1, 14, 8, 3], [1, 10, 30, 31, 32, 8, 3]]


class CopyEngine(TransformersEngine):
    """An engine with weights of its own, as vLLM has; ``fault`` is what goes wrong in it."""

    def __init__(self, policy: Policy, fault: str = "") -> None:
        super().__init__(copy.deepcopy(policy.model), policy.pad_token_id)
        self.trainer, self.fault = policy.model, fault
        if fault == "tied head":  # the copy is made when the engine starts, and never again
            self.model.lm_head.weight = torch.nn.Parameter(self.model.lm_head.weight.clone())

    @torch.no_grad()
    def sync(self) -> None:
        new = dict(self.trainer.named_parameters())
        own = [item for item in self.model.named_parameters() if item[0] in new]
        if self.fault == "stale":
            own = []
        if self.fault == "half":
            own = own[: len(own) // 2]
        for name, parameter in own:
            value = new[name]
            parameter.copy_(value.bfloat16() if self.fault == "dtype" else value)
        if self.fault == "asleep":
            for _, parameter in own:
                parameter.zero_()
        if self.fault == "nan":
            own[-1][1].fill_(float("nan"))

    def generate(self, prompts: Any, params: SamplingParams, *args: Any, **more: Any) -> Any:
        own = params.temperature
        if self.fault == "temperature twice":
            params = dataclasses.replace(params, temperature=own**2)
        groups = super().generate(prompts, params, *args, **more)
        if self.fault == "raw":  # log-probs from before the temperature
            for prompt, group in zip(prompts, groups, strict=True):
                for c in group:
                    ids = torch.tensor([[*prompt, *c.token_ids]])
                    logits = self.model(ids).logits[0, len(prompt) - 1 : -1]
                    chosen = torch.tensor(c.token_ids)[:, None]
                    c.logprobs = logits.log_softmax(-1).gather(1, chosen)[:, 0].tolist()
        return groups


@pytest.fixture
def config(tiny: Any) -> Callable[..., RunConfig]:
    # vllm: the probe treats the engine as one that has a copy of the weights.
    return lambda *more: tiny("rollout.engine=vllm", "rollout.temperature=0.7", *more)


def move(policy: Policy, by: float, seed: int) -> None:
    """Change the weights as an update does, by more."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=draw))


FAULTS = {
    "stale": "did not reach",
    "tied head": "tied lm_head",
    "half": "half written",
    "asleep": "slept",
    "temperature twice": "the sampler applies the temperature twice (0.7 is",
    "raw": "those before the temperature",
    "dtype": "trainer float32, sampler float32",
    "nan": "NaN",
}


@pytest.mark.draw(3)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_right_after_the_sync(
    policy: Policy, config: Callable[..., RunConfig], fault: str
) -> None:
    move(policy, 0.3, 0)
    engine = CopyEngine(policy, fault)
    move(policy, 0.02, 1)
    engine.sync()
    with pytest.raises(SyncError) as caught:
        SyncProbe(engine, policy, config(), PROMPTS).after_sync(5)
    assert FAULTS[fault] in str(caught.value)
    assert "rollout.probe.threshold" in str(caught.value)
    engine.fault = ""  # the same engine, mended
    if fault == "tied head":
        engine = CopyEngine(policy)
    engine.sync()
    assert SyncProbe(engine, policy, config(), PROMPTS).look(5) < 1e-5


@pytest.mark.draw(3)
@pytest.mark.parametrize("seed", range(6))
def test_a_clean_engine_never_trips(
    policy: Policy, config: Callable[..., RunConfig], seed: int
) -> None:
    probe = SyncProbe(engine := CopyEngine(policy), policy, config(), PROMPTS)
    for step in range(4):
        move(policy, 0.1, 100 * seed + step)
        engine.sync()
        difference = probe.after_sync(seed + step)
        assert difference is not None and difference < 1e-5


@pytest.mark.parametrize("temperature", [0.9, 1.2])
def test_a_temperature_twice_is_found_below_the_threshold(
    policy: Policy, config: Callable[..., RunConfig], temperature: float
) -> None:
    """In bfloat16 the noise is as large as the effect of 0.81 for 0.9; but one fits better."""
    move(policy, 0.3, 0)
    coarse = ("rollout.vllm.dtype=bfloat16", f"rollout.temperature={temperature}")
    engine = CopyEngine(policy, "dtype")
    probe = SyncProbe(engine, policy, config(*coarse), PROMPTS)
    for seed in range(5):
        engine.fault = "dtype"  # weights in bfloat16 are clean here
        move(policy, 0.05, seed)
        engine.sync()
        assert 1e-4 < probe.look(seed) < probe.threshold / 2
        engine.fault = "temperature twice"
        with pytest.raises(SyncError, match="the sampler applies the temperature twice"):
            probe.look(seed)


def test_when_it_looks(policy: Policy, config: Callable[..., RunConfig], tiny: Any) -> None:
    def looks(recipe: RunConfig) -> list[bool]:
        probe = SyncProbe(TransformersEngine(policy.model, 0), policy, recipe, PROMPTS)
        return [probe.after_sync(3) is not None for _ in range(5)]

    assert looks(config()) == [True] * 5
    assert looks(config("rollout.probe.every=3")) == [True, False, False, True, False]
    assert looks(config("rollout.probe.every=0")) == [False] * 5
    assert looks(tiny()) == [True, False, False, False, False]  # the trainer's own weights
    # Sampling ahead, the transformers engine has weights of its own too.
    assert looks(tiny("rollout.asynchronous=true")) == [True] * 5
    assert looks(tiny("rollout.probe.every=2")) == [True, False, True, False, True]


def test_thresholds_follow_the_coarser_dtype(policy: Policy, tiny: Any) -> None:
    def threshold(*overrides: str) -> float:
        probe = SyncProbe(TransformersEngine(policy.model, 0), policy, tiny(*overrides), PROMPTS)
        return probe.threshold

    assert threshold("rollout.engine=vllm") == 1e-3
    coarse = threshold("rollout.engine=vllm", "rollout.vllm.dtype=bfloat16")
    assert coarse == threshold("model.dtype=bfloat16") > 1e-3
    assert threshold("distributed.compute_dtype=bfloat16") == coarse
    assert threshold("model.dtype=bfloat16", "rollout.probe.threshold=0.5") == 0.5


def test_an_engine_that_loses_every_response_stops_the_run(
    policy: Policy, config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = CopyEngine(policy)
    lost = Completion([], [], "abort", error="out of cache")
    monkeypatch.setattr(engine, "generate", lambda prompts, params: [[lost] for _ in prompts])
    with pytest.raises(SyncError, match="no response: out of cache"):
        SyncProbe(engine, policy, config(), PROMPTS).after_sync(0)


@pytest.mark.costly
@pytest.mark.draw(1)
@pytest.mark.parametrize("seed", range(3))
def test_a_clean_run_never_trips(tiny: Any, seed: int) -> None:
    """Transformers: cached decoding against the trainer's packed batch, after every update."""
    run = train(tiny(f"seed={seed}", "rollout.probe.every=1", "rollout.temperature=0.8"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert all(0 < row["probe_logprob_diff"] < 1e-5 for row in rows)
