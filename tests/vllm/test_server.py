"""A real vLLM server over loopback: the trainer's distribution, exact caps, new weights, a killed
and restarted server, a whole run. It is started once for this file and killed once."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from siri_train.config.base import ConfigError
from siri_train.config.recipe import parse_config
from siri_train.config.run import RunConfig
from siri_train.model.policy import Policy
from siri_train.rollout import EngineError
from siri_train.rollout.vllm.connect import build_server_engine, check_server
from siri_train.rollout.vllm.server import VllmServerEngine
from siri_train.train import train
from tests.vllm.checks import (
    a_seed_repeats,
    cancelled_after,
    caps_are_exact,
    largest_difference,
    new_weights_are_seen,
    params,
    samples_the_policy,
    wrong_prompts_fail_alone,
)
from tests.vllm.conftest import PROMPTS, tiny_policy

# Three processes import vLLM at a start, one after the other: two minutes and more on a loaded
# machine. A limit here is against hanging alone.
pytestmark = pytest.mark.timeout(3600)

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
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_API_KEY", made.process.key)  # for those who give its address
        yield made
    tree += psutil.Process(made.process._supervisor.pid).children(recursive=True)
    made.close()
    _, left = psutil.wait_procs(tree, timeout=60)
    assert not [p for p in left if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_the_trainers(
    engine: VllmServerEngine, policy: Policy, temperature: float
) -> None:
    samples_the_policy(engine, policy, temperature)


def test_caps_and_stop_ids_are_exact(engine: VllmServerEngine, policy: Policy) -> None:
    caps_are_exact(engine, policy)
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
    a_seed_repeats(engine, policy)


def test_new_weights_are_seen(engine: VllmServerEngine, policy: Policy) -> None:
    new_weights_are_seen(engine, policy, syncs=2, by=0.02)


def test_responses_stream_and_can_be_cancelled(engine: VllmServerEngine, policy: Policy) -> None:
    """What is being decoded when the call is cancelled comes back with the tokens it has.

    The process that decodes is stopped before the call is cancelled, so that the load does not
    decide what is left then: of 256 requests in flight it decodes 64 at a time.
    """
    assert engine.process is not None
    tree = psutil.Process(engine.process._supervisor.pid).children(recursive=True)
    (decoder,) = [p for p in tree if "EngineCore" in "".join(p.cmdline())]
    try:
        groups, _ = cancelled_after(engine, policy, 5, decoder.suspend, n=200, max_tokens=100)
    finally:
        decoder.resume()
    begun = [[c for c in g if c.finish_reason == "abort" and c.token_ids] for g in groups]
    assert any(begun), "no cancelled response has kept its tokens"
    assert all(len(c.token_ids) < 100 for group in begun for c in group)
    assert largest_difference(policy, begun) < 1e-4
    samples_the_policy(engine, policy)  # the engine is as good as before


def test_a_prompt_that_fails_does_not_take_the_others_with_it(
    engine: VllmServerEngine, policy: Policy
) -> None:
    wrong_prompts_fail_alone(engine, policy, [[5] * 200, [1, 99_999]])


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
    respond, killed = VllmServerEngine._respond, []
    calls = itertools.count(1)  # of many threads: each takes another number

    def count(self: VllmServerEngine, *job: Any) -> Any:
        if next(calls) == 4 + 64 + 4 + 20:  # in the second step
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
