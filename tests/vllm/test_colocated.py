"""The colocated vLLM engine: the trainer's distribution, exact caps, every stop id, new weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from siri_train.config import ConfigError, ModelConfig
from siri_train.model import Policy, load_policy
from siri_train.packing import Sample
from siri_train.rollout import Completion, EngineError, SamplingParams, vllm_engine
from siri_train.rollout.vllm_engine import VllmEngine, check_model
from siri_train.step import score
from tests.vllm.conftest import PROMPTS, tiny_policy


def params(policy: Policy, **changes: object) -> SamplingParams:
    values = {"max_tokens": 24, "n": 8, "stop_token_ids": policy.eos_ids, "seed": 3, **changes}
    return SamplingParams(**values)  # type: ignore[arg-type]


def largest_difference(
    policy: Policy, groups: list[list[Completion]], temperature: float, prompts: list[list[int]]
) -> float:
    """Sampler against trainer, the largest |difference| of a log-prob."""
    pairs = [(p, c) for p, group in zip(prompts, groups, strict=True) for c in group]
    samples = [Sample(prompt, c.token_ids) for prompt, c in pairs]
    score(policy, samples, 4096, temperature)
    return max(
        abs(a - b)
        for sample, (_, c) in zip(samples, pairs, strict=True)
        for a, b in zip(sample.old_logprobs, c.logprobs, strict=True)
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_the_trainers(
    engine: VllmEngine, policy: Policy, temperature: float
) -> None:
    groups = engine.generate(PROMPTS, params(policy, temperature=temperature))
    assert [len(group) for group in groups] == [8, 8, 8]
    assert largest_difference(policy, groups, temperature, PROMPTS) < 1e-4


def test_caps_are_exact_and_the_finish_reason_decides(engine: VllmEngine, policy: Policy) -> None:
    seen = set()
    for cap in (1, 7, 40):
        for c in sum(engine.generate(PROMPTS, params(policy, n=20, max_tokens=cap)), []):
            ended = [token in policy.eos_ids for token in c.token_ids]
            assert len(c.token_ids) == len(c.logprobs) <= cap and not any(ended[:-1])
            assert ended[-1] == (c.finish_reason == "stop") == (not c.truncated)
            assert not c.truncated or len(c.token_ids) == cap
            seen.add(c.finish_reason)
    assert seen == {"stop", "length"}


def test_every_stop_id_ends_a_response_even_at_the_cap(engine: VllmEngine, policy: Policy) -> None:
    stops = frozenset(range(5, policy.model.config.vocab_size))
    groups = engine.generate(PROMPTS, params(policy, max_tokens=1, stop_token_ids=stops, n=16))
    for c in sum(groups, []):
        assert (c.finish_reason == "stop") == (c.token_ids[0] in stops)
    assert len({c.token_ids[0] for c in sum(groups, []) if not c.truncated}) > 1


def test_a_seed_repeats_and_responses_of_a_group_differ(engine: VllmEngine, policy: Policy) -> None:
    def ids(seed: int) -> list[list[list[int]]]:
        groups = engine.generate(PROMPTS, params(policy, seed=seed))
        return [[c.token_ids for c in group] for group in groups]

    first = ids(3)
    assert first == ids(3) != ids(4)
    assert all(len({tuple(r) for r in group}) > 1 for group in first)


def test_new_weights_are_seen(engine: VllmEngine, policy: Policy) -> None:
    """Of a tied model in float32 on a CPU, where vLLM's own reload keeps a stale head."""
    kept = copy.deepcopy(policy.model.state_dict())
    try:
        for _ in range(3):
            with torch.no_grad():
                for parameter in policy.model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
            stale = engine.generate(PROMPTS, params(policy))
            assert largest_difference(policy, stale, 1.0, PROMPTS) > 0.05
            engine.sync()
            fresh = engine.generate(PROMPTS, params(policy))
            assert largest_difference(policy, fresh, 1.0, PROMPTS) < 1e-4
    finally:
        policy.model.load_state_dict(kept)
        engine.sync()


def test_sleep_and_the_order_of_waking(
    engine: VllmEngine, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights before the cache, so that both never peak with what the trainer holds. A CPU's vLLM
    has no sleep; its calls are what can be seen here."""
    calls: list[object] = []
    push = vllm_engine.push_in_process
    engine.sleep()
    with monkeypatch.context() as patch:
        patch.setattr(engine.llm, "sleep", lambda level: calls.append(level))
        patch.setattr(engine.llm, "wake_up", lambda tags: calls.append(tags))
        patch.setattr(vllm_engine, "push_in_process", lambda *a: calls.append("push") or push(*a))
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
    assert largest_difference(policy, engine.generate(PROMPTS, params(policy)), 1.0, PROMPTS) < 1e-4


def test_responses_stream_and_can_be_cancelled(engine: VllmEngine, policy: Policy) -> None:
    seen: list[int] = []
    counts: list[tuple[int, int]] = []
    groups = engine.generate(
        PROMPTS,
        params(policy, n=12, max_tokens=60),
        lambda done, total: counts.append((done, total)),
        on_finish=lambda index, c: seen.append(index),
        cancelled=lambda: len(seen) >= 5,
    )
    done = [c for group in groups for c in group if c.finish_reason != "abort"]
    assert 5 <= len(done) == len(seen) < 36
    assert counts == [(k + 1, 36) for k in range(len(seen))]
    assert all(c.error == "cancelled" for g in groups for c in g if c.finish_reason == "abort")
    after = engine.generate(PROMPTS, params(policy))  # the engine is as good as before
    assert largest_difference(policy, after, 1.0, PROMPTS) < 1e-4


def test_a_prompt_that_fails_does_not_take_the_others_with_it(
    engine: VllmEngine, policy: Policy
) -> None:
    groups = engine.generate([PROMPTS[0], [5] * 200, PROMPTS[1]], params(policy, n=2))
    assert [[c.finish_reason == "abort" for c in g] for g in groups] == [
        [False] * 2, [True] * 2, [False] * 2,
    ]  # fmt: skip
    assert "128" in str(groups[1][0].error)  # vLLM's own words name its limit
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
    after = engine.generate(PROMPTS, params(policy))  # nothing of the lost call is left over
    assert largest_difference(policy, after, 1.0, PROMPTS) < 1e-4


def test_out_of_memory_names_the_keys(
    engine: VllmEngine, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(engine.llm.llm_engine, "step", full)
        with pytest.raises(EngineError, match="2.00 GiB; lower rollout.vllm.max_num_seqs .64"):
            engine.generate(PROMPTS, params(policy))
    after = engine.generate(PROMPTS, params(policy))
    assert largest_difference(policy, after, 1.0, PROMPTS) < 1e-4


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
