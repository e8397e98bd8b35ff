"""Rows without padding: nothing is lost, nothing overflows, and every row costs about the same."""

from __future__ import annotations

import random

import pytest
import torch

from siri_train.model.packing import Sample, micro_batches, plan


def random_lengths(count: int, longest: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [max(1, int(longest * rng.random() ** 2)) for _ in range(count)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("at_least", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_a_plan_holds_every_sequence_once_within_the_budget(
    ranks: int, at_least: int, seed: int
) -> None:
    lengths = random_lengths(random.Random(seed).randrange(1, 90), 1000, seed)
    rounds = plan(lengths, 1400, ranks=ranks, at_least=at_least)
    assert len(rounds) >= at_least and all(len(r) == ranks for r in rounds)
    assert sorted(i for r in rounds for row in r for i in row) == list(range(len(lengths)))
    tokens = [sum(lengths[i] for i in row) for r in rounds for row in r]
    assert max(tokens) <= 1400


def test_rows_are_full_and_alike() -> None:
    lengths = random_lengths(512, 16_384, seed=1)
    rounds = plan(lengths, 32_768, ranks=4)
    tokens = [sum(lengths[i] for i in row) for r in rounds for row in r]
    fewest = -(-sum(lengths) // 32_768)
    assert len(tokens) <= fewest + 4  # rows come in rounds of four
    costs = [[sum(lengths[i] + lengths[i] ** 2 / 18_432 for i in row) for row in r] for r in rounds]
    for round_ in costs:  # the ranks of a round wait for one another
        assert max(round_) < 1.1 * min(round_)
    assert max(costs[0]) == max(c for round_ in costs for c in round_)
    ranks = [sum(round_[rank] for round_ in costs) for rank in range(4)]
    assert max(ranks) < 1.02 * min(ranks)


def test_more_ranks_than_sequences_gives_the_others_dummy_micro_batches() -> None:
    samples = [Sample([1, 2], [3, 4, 5], [0.0] * 3), Sample([1], [2], [0.0])]
    rows = [
        row
        for rank in range(4)
        for row in micro_batches(samples, 16, torch.device("cpu"), rank=rank, ranks=4)
    ]
    assert len(rows) == 4
    assert sorted(i for row in rows if not row.dummy for i in row.order) == [0, 1]
    assert [row.order for row in rows if row.dummy] == [[1], [1]]


def test_rows_point_at_the_token_before_each_response_token() -> None:
    rng = random.Random(4)
    samples = [
        Sample(
            [rng.randrange(100) for _ in range(rng.randrange(1, 9))],
            [rng.randrange(100) for _ in range(n)],
            [rng.random() for _ in range(n)],
            advantage=rng.random(),
        )
        for n in random_lengths(50, 20, seed=4)
    ]
    rows = list(micro_batches(samples, 64, torch.device("cpu")))
    assert sorted(i for row in rows for i in row.order) == list(range(50))
    assert sum(row.input_ids.numel() for row in rows) == sum(s.length for s in samples)
    for row in rows:
        assert row.input_ids.numel() <= 64 and row.input_ids.shape[0] == 1
        assert row.cu_seqlens.dtype == torch.int32 and row.cu_seqlens[-1] == row.tokens
        assert torch.equal(row.input_ids[0][row.predictors + 1], row.targets)
        starts = row.layout.cu_seqlens.tolist()
        for number, index in enumerate(row.order):
            sample = samples[index]
            ids = row.input_ids[0][starts[number] : starts[number + 1]].tolist()
            assert ids == [*sample.prompt_ids, *sample.response_ids]
            first, last = row.cu_seqlens[number], row.cu_seqlens[number + 1]
            assert row.old_logprobs[first:last].tolist() == pytest.approx(sample.old_logprobs)
            assert float(row.advantages[number]) == pytest.approx(sample.advantage)


def test_what_cannot_be_packed_is_refused_by_number() -> None:
    device = torch.device("cpu")
    assert list(micro_batches([], 8, device)) == []
    with pytest.raises(ValueError, match=r"samples\[1\] has 6 tokens, token_budget is 5"):
        micro_batches([Sample([1], [2]), Sample([1] * 3, [2] * 3)], 5, device)
    with pytest.raises(ValueError, match=r"samples\[0\] has no response"):
        micro_batches([Sample([1], [])], 64, device)
    with pytest.raises(ValueError, match=r"samples\[0\] has no prompt"):
        micro_batches([Sample([], [1])], 64, device)
