"""How responses are dealt to parts: whole numbers, the same on any number of ranks."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from siri_train import distributed
from siri_train.model.policy import Policy
from siri_train.rollout import SamplingParams, SharedEngine, TransformersEngine
from siri_train.rollout.dealing import deal, response_order, to_admit

PROMPTS = [[1, 12, 25, 8, 3], [1, 14, 8, 3], [1, 10, 30, 31, 32, 8, 3]]


@pytest.mark.parametrize("by", ["questions", "responses"])
def test_every_response_is_dealt_once(by: Any) -> None:
    seed = time.time_ns()
    rng = np.random.default_rng(seed)
    for _ in range(200):
        questions, group, shards = (int(rng.integers(1, high)) for high in (70, 20, 70))
        parts = deal(questions, group, shards, by)
        assert len(parts) == shards, seed
        dealt: Counter[int] = Counter()
        for part in parts:
            for index in range(part.first, part.last):
                dealt[index] += part.responses
        assert dealt == {index: group for index in range(questions)}, (seed, questions, group)


def test_groups_are_divided_as_far_as_the_numbers_allow() -> None:
    assert {(p.first, p.last, p.responses) for p in deal(128, 16, 8, "responses")} == {(0, 128, 2)}
    blocks = deal(128, 16, 64, "responses")
    assert Counter((p.first, p.last) for p in blocks) == {
        (0, 32): 16, (32, 64): 16, (64, 96): 16, (96, 128): 16,
    }  # fmt: skip
    # Nothing in common: whole groups, as without the key.
    assert deal(12, 4, 3, "responses") == deal(12, 4, 3, "questions")


def test_the_transformers_engines_queue() -> None:
    assert response_order([3, 9, 3], 2) == [1, 1, 0, 0, 2, 2]
    assert [to_admit(3, 9, 8), to_admit(8, 9, 8), to_admit(0, 2, 8), to_admit(9, 1, 8)] == [
        5, 0, 2, 0,
    ]  # fmt: skip


def test_divided_groups_are_the_same_on_any_number_of_ranks(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks that sample one after the other give what one process does with two shards."""
    params = SamplingParams(max_tokens=12, n=4, stop_token_ids=policy.eos_ids, seed=5)

    def sample() -> list[list[list[int]]]:
        engine = TransformersEngine(policy.model, policy.pad_token_id)
        shared = SharedEngine(engine, 2, by="responses")
        return [[c.token_ids for c in group] for group in shared.generate(PROMPTS, params)]

    alone = sample()
    assert alone == sample()
    assert [len(group) for group in alone] == [4, 4, 4]
    assert len({tuple(ids) for ids in alone[0]}) > 1  # the parts have seeds of their own
    own, slots, barrier = threading.local(), [None, None], threading.Barrier(2, timeout=60)

    def gather(value: Any) -> list[Any]:
        slots[own.rank] = value
        barrier.wait()
        return list(slots)

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: own.rank)
    monkeypatch.setattr(distributed, "gather", gather)

    def rank(number: int) -> list[list[list[int]]]:
        own.rank = number
        return sample()

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(rank, range(2))) == [alone, alone]
