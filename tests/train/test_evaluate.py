"""Evaluation: every budget from one pass equals a pass at that budget; intervals that cover."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from siri_train.config.recipe import parse_config
from siri_train.data.sources import EncodedQuestion
from siri_train.rewards import make_verifier
from siri_train.rollout import Completion, SamplingParams
from siri_train.trainer.evaluate import Evaluation, interval


class Scripted:
    """An engine whose answers are known: (tokens, right or wrong) for every question."""

    def __init__(self, script: list[list[tuple[int, bool]]]) -> None:
        self.script = script

    def generate(
        self,
        prompts: object,
        params: SamplingParams,
        progress: object = None,
        cancelled: object = None,
    ) -> list[list[Completion]]:
        return [
            [
                Completion([int(right)] * (length - 1) + [2], [0.0] * length, "stop")
                if length <= params.max_tokens
                else Completion([int(right)] * params.max_tokens, [0.0] * length, "length")
                for length, right in answers
            ]
            for answers in self.script
        ]  # fmt: skip

    def sync(self) -> None: ...


def run(
    script: list[list[tuple[int, bool]]], budgets: list[int], truncated: str = "grade"
) -> dict[str, list[float]]:
    questions = [EncodedQuestion(str(i), (1,), "7", "") for i in range(len(script))]
    config = parse_config(
        {},
        [
            f"eval.samples={len(script[0])}",
            f"eval.budgets={budgets}",
            "reward.think=required",
            f"reward.truncated={truncated}",
        ],
    )
    policy = SimpleNamespace(
        eos_ids=frozenset({2}),
        tokenizer=SimpleNamespace(decode=lambda ids: "<think>"),
        decode=lambda responses: [
            # The box is closed with the fifth token; what comes then says nothing new.
            ("wait </think> \\boxed{7" if ids[0] else "</think> \\boxed{3")
            + "}" * (len(ids) >= 5 or ids[-1] == 2)
            for ids in responses
        ],
    )
    engine, verifier = Scripted(script), make_verifier("exact")
    return Evaluation(config, questions, engine, policy, verifier)()  # type: ignore[arg-type]


@pytest.mark.parametrize("truncated", ["grade", "zero"])
def test_budgets_from_one_pass_equal_separate_passes(truncated: str) -> None:
    rng = random.Random(0)
    script = [[(rng.randrange(1, 40), rng.random() < 0.6) for _ in range(3)] for _ in range(50)]
    budgets = [3, 5, 12, 20, 30]
    together = run(script, budgets, truncated)
    keys = ("accuracy", "pass_at_k", "tokens_at", "truncated_frac", "truncated_correct_frac",
            "accuracy_interval")  # fmt: skip
    for i, budget in enumerate(budgets):
        alone = run(script, [budget], truncated)
        for key in keys:
            assert together[key][i] == pytest.approx(alone[key][0]), key
    # At 3 tokens no box is closed; at 5 a truncated response is paid, unless the recipe says zero.
    paid = 0.5 if truncated == "grade" else 0.0
    assert together["accuracy"][0] < 0.1 and together["accuracy"][1] > paid
    assert together["accuracy"][1] < 0.2 or truncated == "grade"
    assert together["truncated_correct_frac"][0] == 0.0
    assert together["truncated_correct_frac"][1] > 0.5


def test_counts_by_hand() -> None:
    script = [[(4, True), (9, True)], [(4, False), (30, True)]]
    strict = run(script, [8, 20], "zero")
    assert strict["accuracy"] == [0.25, 0.5]
    assert strict["pass_at_k"] == [0.5, 0.5]
    row = run(script, [8, 20])
    assert row["accuracy"] == [0.75, 0.75] and row["pass_at_k"] == [1.0, 1.0]
    assert row["truncated_correct_frac"] == strict["truncated_correct_frac"] == [1.0, 1.0]
    assert row["unjudged"] == 0
    assert row["tokens"] == (4 + 9 + 4 + 20) / 4
    assert row["truncated_frac"] == [0.5, 0.25]
    assert row["backtrack_per_1k"] == pytest.approx(1000 * 3 / 37)


def test_interval_covers_the_true_accuracy() -> None:
    rng = random.Random(1)
    for p in (0.05, 0.5, 0.97):
        hits = 0
        for _ in range(400):
            low, high = interval([float(rng.random() < p) for _ in range(120)])
            hits += low <= p <= high
        assert 0.92 <= hits / 400 <= 0.99


def test_interval_at_the_ends_and_with_several_samples() -> None:
    low, high = interval([1.0] * 50)
    assert 0.9 < low < 1 and high == 1
    low, high = interval([0.0] * 50)
    assert low == 0 and 0 < high < 0.1
    single = interval([1.0, 0.0] * 50)
    averaged = interval([0.6, 0.4] * 50)  # less spread between questions, a narrower interval
    assert averaged[1] - averaged[0] < single[1] - single[0]
