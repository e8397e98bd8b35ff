"""The colocated vLLM engine: the trainer's distribution, exact caps, every stop id, new weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from siri_train.config.base import ConfigError
from siri_train.config.model import ModelConfig
from siri_train.model.policy import Policy, load_policy
from siri_train.rollout import EngineError
from siri_train.rollout.vllm import versions
from siri_train.rollout.vllm.engine import VllmEngine, check_model
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

pytestmark = pytest.mark.timeout(1800)  # against hanging alone


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_the_trainers(
    engine: VllmEngine, policy: Policy, temperature: float
) -> None:
    samples_the_policy(engine, policy, temperature)


def test_caps_are_exact_and_the_finish_reason_decides(engine: VllmEngine, policy: Policy) -> None:
    caps_are_exact(engine, policy)


def test_every_stop_id_ends_a_response_even_at_the_cap(engine: VllmEngine, policy: Policy) -> None:
    stops = frozenset(range(5, policy.model.config.vocab_size))
    groups = engine.generate(PROMPTS, params(policy, max_tokens=1, stop_token_ids=stops, n=16))
    for c in sum(groups, []):
        assert (c.finish_reason == "stop") == (c.token_ids[0] in stops)
    assert len({c.token_ids[0] for c in sum(groups, []) if not c.truncated}) > 1


def test_a_seed_repeats_and_responses_of_a_group_differ(engine: VllmEngine, policy: Policy) -> None:
    a_seed_repeats(engine, policy)


def test_new_weights_are_seen(engine: VllmEngine, policy: Policy) -> None:
    kept = copy.deepcopy(policy.model.state_dict())
    try:
        new_weights_are_seen(engine, policy, syncs=3, by=0.05)
    finally:
        policy.model.load_state_dict(kept)
        engine.sync()


def test_sleep_and_the_order_of_waking(
    engine: VllmEngine, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights before the cache, so that both never peak with what the trainer holds. A CPU's vLLM
    has no sleep; its calls are what can be seen here."""
    calls: list[object] = []
    push = versions.reload_in_process
    engine.sleep()
    with monkeypatch.context() as patch:
        patch.setattr(engine.llm, "sleep", lambda level: calls.append(level))
        patch.setattr(engine.llm, "wake_up", lambda tags: calls.append(tags))
        patch.setattr(versions, "reload_in_process", lambda *a: calls.append("push") or push(*a))
        engine.sleep()
        assert calls == []  # on a CPU
        patch.setattr(engine, "sleep_level", 2)
        engine.sleep()
        engine.sleep()
        with pytest.raises(EngineError, match="sleeps and its weights are stale"):
            engine.generate(PROMPTS, params(policy))
        engine.sync()
        engine.sync()
        assert calls == [2, ["weights"], "push", ["kv_cache"], "push"]
    samples_the_policy(engine, policy)


def test_responses_stream_and_can_be_cancelled(engine: VllmEngine, policy: Policy) -> None:
    groups, counts = cancelled_after(engine, policy, 5, n=12, max_tokens=60)
    assert len(counts) < 36 == sum(map(len, groups))
    samples_the_policy(engine, policy)  # the engine is as good as before


def test_a_prompt_that_fails_does_not_take_the_others_with_it(
    engine: VllmEngine, policy: Policy
) -> None:
    wrong_prompts_fail_alone(engine, policy, [[5] * 200])
    with pytest.raises(ValueError, match=r"prompts\[1\]"):
        engine.generate([[1], []], params(policy))


def test_a_crash_is_an_engine_error(
    engine: VllmEngine, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine.llm.llm_engine.step
    calls = []

    def crash() -> object:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("worker died")
        return real()

    with monkeypatch.context() as patch:
        patch.setattr(engine.llm.llm_engine, "step", crash)
        with pytest.raises(EngineError, match="worker died.*continue from the newest checkpoint"):
            engine.generate(PROMPTS, params(policy))
    samples_the_policy(engine, policy)  # nothing of the lost call is left over


def test_out_of_memory_names_the_keys(
    engine: VllmEngine, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(engine.llm.llm_engine, "step", full)
        with pytest.raises(EngineError, match="2.00 GiB; lower rollout.vllm.max_num_seqs .64"):
            engine.generate(PROMPTS, params(policy))
    samples_the_policy(engine, policy)


def test_a_head_size_without_a_kernel_is_refused_before_anything_starts() -> None:
    config = tiny_policy().model.config
    config.hidden_size = 64  # 4 heads of 16
    config.head_dim = None
    with pytest.raises(ConfigError, match="head size of 16"):
        check_model(config, torch.device("cpu"))
    check_model(config, torch.device("cuda"))


@pytest.mark.slow
def test_smollm2(smollm2: Path) -> None:
    policy = load_policy(ModelConfig(path=str(smollm2)), torch.device("cpu"))
    engine = VllmEngine(policy.model, 256, max_num_seqs=16)
    try:
        text = policy.tokenizer.apply_chat_template(
            [{"role": "user", "content": "What is 17 + 25?"}],
            add_generation_prompt=True,
            tokenize=False,
        )
        prompt = policy.tokenizer.encode(text, add_special_tokens=False)
        groups = engine.generate([prompt], params(policy, n=6, max_tokens=48))
        assert largest_difference(policy, groups, 1.0, [prompt]) < 1e-4
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        engine.sync()
        groups = engine.generate([prompt], params(policy, n=6, max_tokens=48))
        assert largest_difference(policy, groups, 1.0, [prompt]) < 1e-4
    finally:
        engine.close()
