"""What every engine on a real vLLM must do, colocated or a server: the bodies of their tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from siri_train.model.packing import Sample
from siri_train.model.policy import Policy
from siri_train.rollout import Completion, SamplingParams
from siri_train.trainer.update import score
from tests.vllm.conftest import PROMPTS

Groups = list[list[Completion]]


def params(policy: Policy, **changes: object) -> SamplingParams:
    values = {"max_tokens": 24, "n": 8, "stop_token_ids": policy.eos_ids, "seed": 3, **changes}
    return SamplingParams(**values)  # type: ignore[arg-type]


def largest_difference(
    policy: Policy, groups: Groups, temperature: float = 1.0, prompts: list[list[int]] = PROMPTS
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


def samples_the_policy(engine: Any, policy: Policy, temperature: float = 1.0) -> None:
    """The log-probs are the trainer's own: its weights, its distribution, a working engine."""
    groups = engine.generate(PROMPTS, params(policy, temperature=temperature))
    assert [len(group) for group in groups] == [8, 8, 8]
    assert largest_difference(policy, groups, temperature) < 1e-4


def caps_are_exact(engine: Any, policy: Policy) -> None:
    """No response is longer than its cap, and the finish reason says whether it was truncated."""
    seen = set()
    for cap in (1, 7, 40):
        for c in sum(engine.generate(PROMPTS, params(policy, n=20, max_tokens=cap)), []):
            ended = [token in policy.eos_ids for token in c.token_ids]
            assert len(c.token_ids) == len(c.logprobs) <= cap and not any(ended[:-1])
            assert ended[-1] == (c.finish_reason == "stop") == (not c.truncated)
            assert not c.truncated or len(c.token_ids) == cap
            seen.add(c.finish_reason)
    assert seen == {"stop", "length"}


def a_seed_repeats(engine: Any, policy: Policy) -> None:
    """The same ids for the same seed, others for another, and within a group."""

    def ids(seed: int) -> list[list[list[int]]]:
        groups = engine.generate(PROMPTS, params(policy, seed=seed))
        return [[c.token_ids for c in group] for group in groups]

    first = ids(3)
    assert first == ids(3) != ids(4)
    assert all(len({tuple(r) for r in group}) > 1 for group in first)


def new_weights_are_seen(engine: Any, policy: Policy, syncs: int, by: float) -> None:
    """The weights change with every sync and not before.

    The model is tied, in float32 on a CPU, where vLLM's own reload keeps a stale head.
    """
    for _ in range(syncs):
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.add_(by * torch.randn_like(parameter))
        stale = engine.generate(PROMPTS, params(policy))
        assert largest_difference(policy, stale) > 0.05
        engine.sync()
        samples_the_policy(engine, policy)


def cancelled_after(
    engine: Any,
    policy: Policy,
    count: int,
    hold: Callable[[], None] = lambda: None,
    **changes: object,
) -> tuple[Groups, list[tuple[int, int]]]:
    """Cancel a call once ``count`` responses have finished; what came back, the progress told.

    ``hold`` is called right before ``cancelled`` says so.
    """
    seen: list[int] = []
    counts: list[tuple[int, int]] = []

    def cancelled() -> bool:
        if len(seen) < count:
            return False
        hold()
        return True

    groups = engine.generate(
        PROMPTS,
        params(policy, **changes),
        lambda done, total: counts.append((done, total)),
        on_finish=lambda index, c: seen.append(index),
        cancelled=cancelled,
    )
    flat = [c for group in groups for c in group]
    done = [c for c in flat if c.finish_reason != "abort"]
    assert count <= len(done) == len(seen)
    assert counts == [(k + 1, len(flat)) for k in range(len(seen))]
    assert all(c.cancelled for c in flat if c.finish_reason == "abort")
    assert all(len(c.token_ids) == len(c.logprobs) for c in flat)
    return groups, counts


def wrong_prompts_fail_alone(engine: Any, policy: Policy, wrong: list[list[int]]) -> None:
    """``wrong``: the first of them is too long, which vLLM says in its own words."""
    groups = engine.generate([PROMPTS[0], *wrong, PROMPTS[1]], params(policy, n=2))
    aborted = [[c.finish_reason == "abort" for c in group] for group in groups]
    assert aborted == [[False] * 2, *([True] * 2 for _ in wrong), [False] * 2]
    assert "128" in str(groups[1][0].error)
