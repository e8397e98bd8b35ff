"""A real vLLM server with NaN in it, and `siri-train eval` on it; started once for this file."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from siri_train.cli import main
from siri_train.config.rollout import RolloutConfig
from siri_train.data.sources import EncodedQuestion
from siri_train.model.policy import Policy
from siri_train.rewards import Grade
from siri_train.rollout.batch import RolloutBatch
from siri_train.rollout.collect import Collector
from siri_train.rollout.engine import NonFiniteLogprobs
from siri_train.rollout.vllm.server import VllmServerEngine
from tests.vllm.checks import largest_difference
from tests.vllm.conftest import PROMPTS
from tests.vllm.test_server import RECIPE
from tests.vllm.test_server import engine as engine  # a server of this file's own
from tests.vllm.test_server import policy as policy


def test_eval_samples_on_the_server_once_it_may(
    engine: VllmServerEngine,
    policy: Policy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    policy.save(tmp_path / "checkpoint")
    raw = copy.deepcopy(RECIPE)
    raw["rollout"]["server"] = {"url": engine.client.url}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw))
    command = ["eval", str(tmp_path / "checkpoint"), "--recipe", str(path)]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert f"holds the weights {engine.version} of a run" in said
    assert engine.client.get("/weight_info", 5)["weight_version"] == engine.version

    asked: list[VllmServerEngine] = []
    real = VllmServerEngine.generate
    with monkeypatch.context() as patch:
        patch.setattr(
            VllmServerEngine,
            "generate",
            lambda self, *a, **k: asked.append(self) or real(self, *a, **k),
        )
        assert main([*command[:2], f"rollout.server.url={engine.client.url}", *command[2:]]) == 0
    assert len(asked) == 2 and engine not in asked  # the sync probe, the evaluation
    row = json.loads((tmp_path / "checkpoint" / "eval.json").read_text())
    assert row["questions"] == 16 and row["budgets"] == [104]
    assert engine.client.get("/weight_info", 5)["weight_version"] == "siri-released"
    engine.sync()


def collected(engine: VllmServerEngine, policy: Policy) -> RolloutBatch:
    config = RolloutConfig(prompts=3, group_size=4)
    questions = [EncodedQuestion(f"q{k}", tuple(ids), "", "") for k, ids in enumerate(PROMPTS)]
    collect = Collector(
        engine,
        config,
        policy.eos_ids,
        policy.decode,
        lambda part, step, cap: [Grade(0.0, False, None, False, False) for _ in part],
    )
    batch = collect(0, 40, questions, 3, cancelled=lambda: False)
    assert batch is not None
    return batch


def spoilt(engine: VllmServerEngine, weight: Any) -> None:
    """The server has NaN in place of a weight; the next sync sends what it should have been."""
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    engine.sync()
    with torch.no_grad():
        weight.copy_(kept)


def test_nan_log_probs_are_sampled_again(engine: VllmServerEngine, policy: Policy) -> None:
    spoilt(engine, policy.model.model.norm.weight)
    batch = collected(engine, policy)
    assert batch.retries == 1
    groups = [group.completions for group in batch.groups]
    assert largest_difference(policy, groups, 1.0, PROMPTS) < 1e-4


def test_nan_in_vllms_cache_ends_it(engine: VllmServerEngine, policy: Policy) -> None:
    """Keys and values of NaN stay after new weights and a reset prefix cache: the last test."""
    spoilt(engine, policy.model.model.layers[0].input_layernorm.weight)
    with pytest.raises(NonFiniteLogprobs, match="step 0, also after.*with a restarted server"):
        collected(engine, policy)
