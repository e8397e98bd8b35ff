"""A real vLLM server over loopback: the trainer's distribution, exact caps, new weights, a killed
and restarted server, a whole run. It is started once for this file and killed once."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from siri_train.config import ConfigError, RunConfig
from siri_train.loop import train
from siri_train.model import Policy
from siri_train.recipe import parse_config
from siri_train.rollout import EngineError
from siri_train.rollout.server_build import build_server_engine, check_server
from siri_train.rollout.vllm_server import VllmServerEngine
from tests.vllm.conftest import PROMPTS, tiny_policy
from tests.vllm.test_colocated import largest_difference, params

RECIPE: dict[str, Any] = {
    "name": "server",
    "threads": 1,
    "device": "cpu",
    "model": {
        "path": "scratch",
        "scratch": {"hidden_size": 128, "intermediate_size": 128, "layers": 3, "heads": 4},
    },
    "data": {
        "train": [{"kind": "embedded", "size": 64}],
        "eval": [{"kind": "embedded", "size": 16, "seed": 1}],
        "max_prompt_len": 24,
    },
    "schedule": {"max_len": 56, "min_len": 24, "cycle": 4},
    "rollout": {"prompts": 8, "group_size": 8, "engine": "vllm-server"},
    "train": {"steps": 3, "lr": 1e-3, "token_budget": 1024},
    "eval": {"every": 0, "at_start": False, "budgets": [104]},
    "checkpoint": {"every": 1},
    "loss": {"entropy_coef": 0.01},
}


def recipe(output: Path, *overrides: str) -> RunConfig:
    return parse_config(copy.deepcopy(RECIPE), [f"output={output}", *overrides])


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


@pytest.fixture(scope="module")
def engine(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServerEngine]:
    run = tmp_path_factory.mktemp("server")
    args = "rollout.server.args=[--enforce-eager, --max-num-seqs, 64]"
    made = build_server_engine(recipe(run, args), policy)
    assert made.process is not None
    tree = psutil.Process(made.process._supervisor.pid).children(recursive=True)
    yield made
    tree += psutil.Process(made.process._supervisor.pid).children(recursive=True)
    made.close()
    _, left = psutil.wait_procs(tree, timeout=10)
    assert not [p for p in left if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_the_trainers(
    engine: VllmServerEngine, policy: Policy, temperature: float
) -> None:
    groups = engine.generate(PROMPTS, params(policy, temperature=temperature))
    assert [len(group) for group in groups] == [8, 8, 8]
    assert largest_difference(policy, groups, temperature, PROMPTS) < 1e-4


def test_caps_and_stop_ids_are_exact(engine: VllmServerEngine, policy: Policy) -> None:
    seen = set()
    for cap in (1, 7, 40):
        for c in sum(engine.generate(PROMPTS, params(policy, n=20, max_tokens=cap)), []):
            ended = [token in policy.eos_ids for token in c.token_ids]
            assert len(c.token_ids) == len(c.logprobs) <= cap and not any(ended[:-1])
            assert ended[-1] == (c.finish_reason == "stop") == (not c.truncated)
            assert not c.truncated or len(c.token_ids) == cap
            seen.add(c.finish_reason)
    assert seen == {"stop", "length"}
    stops = frozenset({3, 7})  # without the model's own end of sequence, which then ends nothing
    wanted = params(policy, stop_token_ids=stops, n=20, max_tokens=40)
    responses = sum(engine.generate(PROMPTS, wanted), [])
    for c in responses:
        assert not stops & set(c.token_ids[:-1])
        assert (c.token_ids[-1] in stops) == (c.finish_reason == "stop")
    assert any(policy.eos_ids & set(c.token_ids[:-1]) for c in responses)


def test_a_seed_repeats_and_responses_of_a_group_differ(
    engine: VllmServerEngine, policy: Policy
) -> None:
    def ids(seed: int) -> list[list[list[int]]]:
        groups = engine.generate(PROMPTS, params(policy, seed=seed))
        return [[c.token_ids for c in group] for group in groups]

    first = ids(3)
    assert first == ids(3) != ids(4)
    assert all(len({tuple(r) for r in group}) > 1 for group in first)


def test_new_weights_are_seen(engine: VllmServerEngine, policy: Policy) -> None:
    """Of a tied model in float32 on a CPU, where vLLM's own reload keeps a stale head."""
    for _ in range(2):
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        stale = engine.generate(PROMPTS, params(policy))
        assert largest_difference(policy, stale, 1.0, PROMPTS) > 0.05
        engine.sync()
        fresh = engine.generate(PROMPTS, params(policy))
        assert largest_difference(policy, fresh, 1.0, PROMPTS) < 1e-4


def test_responses_stream_and_can_be_cancelled(engine: VllmServerEngine, policy: Policy) -> None:
    seen: list[int] = []
    began = time.monotonic()
    groups = engine.generate(
        PROMPTS,
        params(policy, n=12, max_tokens=90),
        on_finish=lambda index, c: seen.append(index),
        cancelled=lambda: len(seen) >= 5,
    )
    assert time.monotonic() - began < 15
    flat = [c for group in groups for c in group]
    done = [c for c in flat if c.finish_reason != "abort"]
    assert 5 <= len(done) == len(seen) < 36
    assert all(c.error == "cancelled" for c in flat if c.finish_reason == "abort")
    assert any(c.token_ids for c in flat if c.finish_reason == "abort")
    after = engine.generate(PROMPTS, params(policy))  # the engine is as good as before
    assert largest_difference(policy, after, 1.0, PROMPTS) < 1e-4


def test_a_prompt_that_fails_does_not_take_the_others_with_it(
    engine: VllmServerEngine, policy: Policy
) -> None:
    groups = engine.generate([PROMPTS[0], [5] * 200, [1, 99_999], PROMPTS[1]], params(policy, n=2))
    assert [[c.finish_reason == "abort" for c in g] for g in groups] == [
        [False] * 2, [True] * 2, [True] * 2, [False] * 2,
    ]  # fmt: skip
    assert "128" in str(groups[1][0].error)  # vLLM's own words name its limit


def test_a_run_that_does_not_fit_is_refused(
    engine: VllmServerEngine, policy: Policy, tmp_path: Path
) -> None:
    url = f"rollout.server.url={engine.client.url}"

    def check(*overrides: str) -> None:
        check_server(recipe(tmp_path, url, *overrides), policy.model.config, policy.device)

    check()
    with pytest.raises(ConfigError, match="--max-model-len 129"):
        check("eval.budgets=[105]")
    with pytest.raises(ConfigError, match="torch.float32, expected is bfloat16"):
        check("model.dtype=bfloat16")
    shape = tiny_policy().model.config
    shape.num_hidden_layers = 4
    with pytest.raises(ConfigError, match="num_hidden_layers is 3 there and 4 here"):
        check_server(recipe(tmp_path, url), shape, policy.device)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_whose_server_is_killed_ends_as_one_whose_server_is_not(
    engine: VllmServerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"rollout.server.url={engine.client.url}"
    calm = rows(train(recipe(tmp_path / "calm", url)))
    assert engine.process is not None
    supervisor = psutil.Process(engine.process._supervisor.pid)
    respond, calls, killed = VllmServerEngine._respond, [], []

    def count(self: VllmServerEngine, *job: Any) -> Any:
        calls.append(job)
        if len(calls) == 4 + 64 + 4 + 20:  # in the second step
            (server,) = supervisor.children()
            server.kill()
            killed.append(server.pid)
        return respond(self, *job)

    monkeypatch.setattr(VllmServerEngine, "_respond", count)
    run = train(recipe(tmp_path / "killed", url))
    assert killed and [child.pid for child in supervisor.children()] != killed
    got = rows(run)
    assert [row["step"] for row in got] == [0, 1, 2]
    for a, b in zip(got, calm, strict=True):
        assert a["probe_logprob_diff"] < 1e-4
        assert (a["tokens"], a["reward_mean"]) == (b["tokens"], b["reward_mean"])
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-2) and a["grad_norm"] > 0
    monkeypatch.undo()
    with pytest.raises(EngineError, match="sampled with the weights"):
        # The server has that run's weights now: this one's are not what it would sample with.
        engine.retries = 0
        engine.generate(PROMPTS, params(tiny_policy()))
