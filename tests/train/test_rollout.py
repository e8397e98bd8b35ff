"""The transformers engine: the model's distribution, exact caps, ragged batches, all stop ids."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from siri_train.model.packing import Sample, micro_batches
from siri_train.model.policy import Policy
from siri_train.rollout import EngineError, SamplingParams, TransformersEngine
from siri_train.rollout.kv_cache import copy_sequences, new_cache
from siri_train.rollout.transformers_engine import draw, sample

PROMPTS = [[1, 12, 25, 8, 3], [1, 14, 8, 3], [1, 10, 30, 31, 32, 8, 3]]


def engine(policy: Policy, rows: int = 256) -> TransformersEngine:
    return TransformersEngine(policy.model, policy.pad_token_id, rows)


def params(policy: Policy, **changes: object) -> SamplingParams:
    values = {"max_tokens": 12, "n": 5, "stop_token_ids": policy.eos_ids, "seed": 3, **changes}
    return SamplingParams(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_the_trainers_own(policy: Policy, temperature: float) -> None:
    groups = engine(policy).generate(PROMPTS, params(policy, temperature=temperature))
    samples = [
        Sample(prompt, c.token_ids, c.logprobs)
        for prompt, group in zip(PROMPTS, groups, strict=True)
        for c in group
    ]
    for batch in micro_batches(samples, 64, policy.device):
        logprobs, entropy = policy.token_logprobs(batch, temperature=temperature)
        torch.testing.assert_close(logprobs, batch.old_logprobs, atol=2e-5, rtol=0)
        wanted = torch.tensor(
            [e for i in batch.order for e in groups[i // 5][i % 5].entropies or []]
        )
        torch.testing.assert_close(entropy, wanted, atol=2e-5, rtol=0)


def test_cap_is_exact_and_the_finish_reason_decides(policy: Policy) -> None:
    groups = engine(policy).generate(PROMPTS, params(policy, n=40))
    assert [len(group) for group in groups] == [40] * 3
    completions = [c for group in groups for c in group]
    reasons = {c.finish_reason for c in completions}
    assert reasons == {"stop", "length"}  # a random model does both
    for c in completions:
        ended = [token in policy.eos_ids for token in c.token_ids]
        assert len(c.token_ids) == len(c.logprobs) == len(c.entropies or []) <= 12
        assert not any(ended[:-1])
        assert ended[-1] == (c.finish_reason == "stop") == (not c.truncated)
        if c.truncated:
            assert len(c.token_ids) == 12


def test_an_answer_that_ends_exactly_at_the_cap_has_finished(policy: Policy) -> None:
    everything = frozenset(range(policy.model.config.vocab_size))
    groups = engine(policy).generate(
        PROMPTS, params(policy, max_tokens=1, stop_token_ids=everything)
    )
    assert all(c.finish_reason == "stop" for group in groups for c in group)


def test_greedy_rows_do_not_depend_on_the_batch(policy: Policy) -> None:
    together = engine(policy).generate(PROMPTS, params(policy, n=1, temperature=0, max_tokens=20))
    for prompt, group in zip(PROMPTS, together, strict=True):
        alone = engine(policy).generate([prompt], params(policy, n=1, temperature=0, max_tokens=20))
        assert alone[0][0].token_ids == group[0].token_ids


def test_seed_repeats_and_batch_rows_split(policy: Policy) -> None:
    first = engine(policy).generate(PROMPTS, params(policy))
    again = engine(policy).generate(PROMPTS, params(policy))
    other = engine(policy).generate(PROMPTS, params(policy, seed=4))
    ids = [[c.token_ids for c in g] for g in first]
    assert ids == [[c.token_ids for c in g] for g in again]
    assert ids != [[c.token_ids for c in g] for g in other]
    calls: list[tuple[int, int]] = []
    split = engine(policy, rows=4).generate(
        PROMPTS, params(policy), lambda d, t: calls.append((d, t))
    )
    assert [len(g) for g in split] == [5, 5, 5]
    assert calls == [(done, 15) for done in range(1, 16)]


def test_sampling_follows_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([[1.0, 0.0, 2.0, -1.0]]).repeat(40_000, 1)
    params_ = SamplingParams(max_tokens=1, temperature=0.8)
    token, logprob, entropy = sample(logits, params_, generator)
    want = (logits[0] / 0.8).softmax(-1)
    torch.testing.assert_close(torch.bincount(token, minlength=4) / 40_000, want, atol=0.01, rtol=0)
    torch.testing.assert_close(logprob, want.log()[token])
    torch.testing.assert_close(entropy[0], -(want * want.log()).sum())


def test_top_k_and_top_p_keep_the_right_set_and_renormalise() -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probs.log()[None].repeat(5000, 1)
    token, logprob, _ = sample(logits, SamplingParams(max_tokens=1, top_k=2), generator)
    assert set(token.tolist()) == {0, 1}
    torch.testing.assert_close(logprob.exp()[token == 0][0], torch.tensor(0.625))
    # 0.5 + 0.3 does not reach 0.85, so the third is needed; the fourth is not.
    token, _, entropy = sample(logits, SamplingParams(max_tokens=1, top_p=0.85), generator)
    assert set(token.tolist()) == {0, 1, 2}
    kept = probs[:3] / probs[:3].sum()
    torch.testing.assert_close(entropy[0], -(kept * kept.log()).sum())


def test_what_has_no_probability_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    probs = torch.tensor([0.0, 0.25, 0.0, 0.0, 0.75, 0.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    drawn = draw(probs.repeat(20_000, 1), generator)[:, 0]
    share = torch.bincount(drawn, minlength=7) / 20_000
    torch.testing.assert_close(share, probs, atol=0.015, rtol=0)
    assert share.count_nonzero() == 2
    for uniform, token in ((0.0, 1), (1 - 2**-53, 4), (1.0, 4)):
        monkeypatch.setattr(torch, "rand", lambda *a, u=uniform, **k: torch.tensor([[u]]).double())
        assert draw(probs[None], generator).tolist() == [[token]]
    assert draw(torch.full((1, 7), torch.nan), generator).shape == (1, 1)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n must"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
    ],
)
def test_bad_sampling_parameters_are_named(changes: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SamplingParams(**{"max_tokens": 4, **changes})  # type: ignore[arg-type]


def test_empty_prompt_is_named_and_dropout_mode_survives(policy: Policy) -> None:
    policy.model.train()
    with pytest.raises(ValueError, match=r"prompts\[1\]"):
        engine(policy).generate([[1], []], params(policy))
    engine(policy).generate([[1, 3]], params(policy))
    assert policy.model.training


def test_refilling_leaves_every_row_its_own(policy: Policy) -> None:
    """Greedy responses depend neither on the rest of the batch nor on how often it was refilled."""
    prompts = [[1, *range(5, 5 + k), 3] for k in (1, 9, 2, 14, 4, 4, 30, 1, 7)]
    wanted = params(policy, n=1, temperature=0, max_tokens=17, stop_token_ids=frozenset({7, 11}))
    whole = engine(policy, rows=64).generate(prompts, wanted)
    for rows in (1, 2, 3, 5):
        split = engine(policy, rows=rows).generate(prompts, wanted)
        assert [g[0].token_ids for g in split] == [g[0].token_ids for g in whole]
    # Sampled rows: log-probs are those of the model that reads prompt and response afresh.
    groups = engine(policy, rows=3).generate(prompts, params(policy, n=4, max_tokens=25))
    for prompt, group in zip(prompts, groups, strict=True):
        for c in group:
            ids = torch.tensor([[*prompt, *c.token_ids]])
            logits = policy.model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            want = logits.gather(1, torch.tensor(c.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(c.logprobs), want, atol=2e-5, rtol=0)


def test_a_row_is_replaced_at_once_and_in_place(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, steps = policy.model.forward, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        if kwargs["input_ids"].shape[1] == 1:
            keys = kwargs["past_key_values"].layers[0].keys
            steps.append((len(keys), keys.data_ptr()))
        return out

    monkeypatch.setattr(policy.model, "forward", watched)
    groups = engine(policy, rows=4).generate(PROMPTS[:1], params(policy, n=40, max_tokens=30))
    tokens = sum(len(c.token_ids) - 1 for c in groups[0])  # the first comes with the prompt
    full = [step for step in steps if step[0] == 4]
    spare = sum(rows for rows, _ in steps) - tokens
    assert spare <= 2 * 30  # none while responses wait; a few before the last rows leave
    assert len({pointer for _, pointer in full}) <= 1 + len(full) / 20  # a copy in 32 steps


def test_a_broken_row_does_not_break_the_one_that_takes_its_place() -> None:
    ours = new_cache()
    ours.update(torch.full((2, 1, 6, 4), torch.nan), torch.full((2, 1, 6, 4), torch.nan), 0)
    keys, values = torch.randn(2, 1, 1, 3, 4)
    ours.layers[0].put(torch.tensor([1]), keys, values)
    for held, put in ((ours.layers[0].keys, keys), (ours.layers[0].values, values)):
        assert held[0].isnan().all()
        assert torch.equal(held[1], torch.cat([torch.zeros(1, 3, 4), put[0]], 1))


def test_rows_that_have_ended_stay_within_learned_positions() -> None:
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=37, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(shape)
    for seed in range(4):  # rows that ended early stand beside others that began late
        wanted = SamplingParams(max_tokens=20, stop_token_ids=frozenset({3}), seed=seed)
        groups = TransformersEngine(model, 0, 10).generate([list(range(5, 17))] * 30, wanted)
        assert {g[0].finish_reason for g in groups} == {"stop", "length"}


def test_responses_stream_and_can_be_cancelled(policy: Policy) -> None:
    seen: list[tuple[int, int]] = []
    groups = engine(policy, rows=4).generate(
        PROMPTS,
        params(policy, n=6),
        on_finish=lambda index, c: seen.append((index, len(c.token_ids))),
        cancelled=lambda: len(seen) >= 7,
    )
    done = [(i, c) for i, group in enumerate(groups) for c in group if c.finish_reason != "abort"]
    lost = [c for group in groups for c in group if c.finish_reason == "abort"]
    assert 7 <= len(done) < 18 and len(done) + len(lost) == 18
    assert sorted(seen) == sorted((i, len(c.token_ids)) for i, c in done)
    assert all(c.cancelled and not c.truncated for c in lost)


def test_out_of_memory_says_what_to_lower(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    monkeypatch.setattr(policy.model, "forward", full)
    with pytest.raises(EngineError, match="rollout.batch_rows"):
        engine(policy).generate(PROMPTS, params(policy))


def test_a_prompt_is_read_once_for_all_its_responses(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt is read once although its responses join the batch at different times."""
    read: list[tuple[int, ...]] = []
    forward = policy.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        read.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(policy.model, "forward", counted)
    for rows in (3, 4, 64):
        read.clear()
        engine(policy, rows).generate(PROMPTS, params(policy, n=7))
        prompts = [shape for shape in read if shape[1] > 1]
        assert sum(shape[0] for shape in prompts) == len(PROMPTS), rows
        assert max(shape[0] for shape in read) <= rows


def test_prompts_over_the_models_positions_fail_alone(policy: Policy) -> None:
    policy.model.config.max_position_embeddings = 17
    told: list[tuple[int, str]] = []
    shown: list[int] = []
    groups = engine(policy, rows=2).generate(
        PROMPTS, params(policy, n=3), lambda done, _: shown.append(done),
        on_finish=lambda index, c: told.append((index, c.finish_reason)),
    )  # fmt: skip
    assert [{c.finish_reason == "abort" for c in group} for group in groups] == [
        {False}, {False}, {True},
    ]  # fmt: skip
    error = "the prompt has 7 tokens, with max_tokens 12 more than the model's 17 positions"
    assert {c.error for c in groups[2]} == {error}
    assert told.count((2, "abort")) == 3 and len(told) == 9 and shown == list(range(1, 10))


def test_own_weights_change_with_sync_alone(policy: Policy) -> None:
    def ids(sampler: TransformersEngine) -> list[list[int]]:
        groups = sampler.generate(PROMPTS, params(policy))
        return [c.token_ids + c.logprobs for group in groups for c in group]

    copied = TransformersEngine(policy.model, policy.pad_token_id, own_weights=True)
    before = ids(copied)
    assert before == ids(engine(policy))
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    assert ids(copied) == before != ids(engine(policy))
    copied.sync()
    assert ids(copied) == ids(engine(policy))
    head, embedding = (m.weight for m in (copied.model.lm_head, copied.model.model.embed_tokens))
    tied = policy.model.lm_head.weight is policy.model.model.embed_tokens.weight
    assert (head is embedding) == tied


def test_the_cache_grows_in_place_and_holds_what_transformers_own_does() -> None:
    torch.manual_seed(0)
    ours, theirs = new_cache(), DynamicCache()
    copies = 0
    for step in range(90):
        n = 5 if step == 0 else 1
        k, v = torch.randn(2, 6, 2, n, 4)
        was = ours.layers[0].keys.data_ptr() if step else 0
        for cache in (ours, theirs):
            got = cache.update(k, v, 0)
        copies += ours.layers[0].keys.data_ptr() != was
        assert torch.equal(ours.layers[0].keys, got[0])
        assert torch.equal(ours.layers[0].values, got[1])
        if step == 40:
            keep = torch.tensor([4, 0, 0])
            part = copy_sequences(ours, keep)
            assert torch.equal(part.layers[0].keys, theirs.layers[0].keys[keep])
            part.update(torch.full((3, 2, 1, 4), 7.0), torch.zeros(3, 2, 1, 4), 0)
            assert torch.equal(ours.layers[0].keys, theirs.layers[0].keys)  # its own memory
    assert copies == 1 + 2  # at the start and every 32 tokens
