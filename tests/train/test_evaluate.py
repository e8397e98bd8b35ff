"""Evaluation: every budget from one pass equals a pass at that budget; sets; question records."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from siri_train.config.recipe import parse_config
from siri_train.data.sources import EncodedQuestion
from siri_train.monitor.token_groups import TokenGroups
from siri_train.report.eval_table import evaluation_table
from siri_train.rewards import make_verifier
from siri_train.rollout import Completion, SamplingParams
from siri_train.statistics.pass_at_k import doubled
from siri_train.trainer.evaluate import Evaluated, Evaluation


class Scripted:
    """An engine whose answers are known: (tokens, right or wrong) for every question."""

    def __init__(self, script: list[list[tuple[int, bool]]]) -> None:
        self.script = script
        self.left = [list(answers) for answers in script]

    def generate(
        self,
        prompts: object,
        params: SamplingParams,
        progress: object = None,
        cancelled: object = None,
    ) -> list[list[Completion]]:
        """Prompt ``(1, place)``: the next answers in line to the question at this place."""
        found = []
        for _, place in prompts:  # type: ignore[attr-defined]
            answers, self.left[place] = (
                self.left[place][: params.n],
                self.left[place][params.n :],
            )
            assert len(answers) == params.n
            found.append(
                [
                    Completion([int(right)] * (length - 1) + [2], [0.0] * length, "stop")
                    if length <= params.max_tokens
                    else Completion([int(right)] * params.max_tokens, [0.0] * length, "length")
                    for length, right in answers
                ]
            )
        assert not any(self.left), "every answer is asked for once"
        return found

    def sync(self) -> None: ...


Script = list[list[tuple[int, bool]]]


def evaluated(
    script: Script,
    budgets: list[int],
    truncated: str = "grade",
    sets: Sequence[str] = (),
    select: str | None = None,
) -> Evaluated:
    """The evaluation of scripted answers; ``sets`` names the set of each question.

    The first question's number of answers is ``eval.samples``; a set with another has its own.
    """
    questions = [
        EncodedQuestion(f"q{i}", (1, i), "7", f"question {i}", set=sets[i] if sets else "")
        for i in range(len(script))
    ]
    counts = {name: len(answers) for name, answers in zip(sets, script, strict=False)}
    sources: list[dict[str, Any]] = [
        {"kind": "embedded", "name": name}
        | ({"samples": counts[name]} if counts[name] != len(script[0]) else {})
        for name in dict.fromkeys(sets)
    ]
    config = parse_config(
        {"data": {"eval": sources}, "eval": {"select": select}} if sets else {},
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
    words = TokenGroups(SimpleNamespace(decode=lambda ids, **_: "wait" if ids[0] else ""))
    found = Evaluation(config, questions, engine, policy, verifier, words)()  # type: ignore[arg-type]
    assert found is not None
    return found


def run(script: Script, budgets: list[int], truncated: str = "grade") -> dict[str, Any]:
    return evaluated(script, budgets, truncated).row


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
    wait = row["token_groups"]["wait"]  # the last is cut at 20, and wrong only with "zero"
    assert wait == pytest.approx({"all": 1000 * 3 / 37, "right": 1000 * 3 / 33, "wrong": 0.0})
    assert strict["token_groups"]["wait"]["wrong"] == pytest.approx(1000 / 24)


def random_script(rng: random.Random, questions: int, samples: int) -> Script:
    return [
        [(rng.randrange(1, 40), rng.random() < 0.6) for _ in range(samples)]
        for _ in range(questions)
    ]


def test_pass_at_every_k_and_intervals() -> None:
    seed = random.SystemRandom().randrange(2**32)
    row = run(random_script(random.Random(seed), 40, 6), [5, 40])
    assert list(row["pass_at"]) == ["1", "2", "4", "6"]
    assert row["pass_at"]["1"] == pytest.approx(row["accuracy"]), seed
    assert row["pass_at"]["6"] == pytest.approx(row["pass_at_k"]), seed
    for values in zip(*row["pass_at"].values(), strict=True):
        assert list(values) == sorted(values), seed
    for accuracy, (low, high) in zip(row["accuracy"], row["accuracy_interval"], strict=True):
        assert 0 <= low < accuracy < high <= 1, seed
    low, high = row["tokens_interval"]
    assert low < row["tokens"] == row["tokens_at"][-1] < high, seed
    assert row == json.loads(json.dumps(row)), "plain numbers that JSON keeps"


def test_named_sets_have_the_figures_of_evaluations_of_their_own() -> None:
    """One pass over all questions, in any order of the sets."""
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    script = random_script(rng, 60, 3)
    sets = [rng.choice(["easy", "hard"]) for _ in script]
    sets[:2] = ["easy", "hard"]
    found = evaluated(script, [5, 30], sets=sets)
    assert list(found.row["sets"]) == ["easy", "hard"] and found.row["set"] == "easy"
    for name in ("easy", "hard"):
        mine = [answers for answers, of in zip(script, sets, strict=True) if of == name]
        alone = run(mine, [5, 30])
        del alone["seconds"]
        sampled = alone.pop("tokens_sampled")
        assert sampled == pytest.approx(len(mine) * 3 * alone["tokens"]), (name, seed)
        assert {"budgets": [5, 30], **found.row["sets"][name]} == alone, (name, seed)
    easy = found.row["sets"]["easy"]
    assert {key: found.row[key] for key in easy} == easy
    other = evaluated(script, [5, 30], sets=sets, select="hard").row
    assert other["set"] == "hard" and other["sets"] == found.row["sets"]
    assert {key: other[key] for key in easy} == other["sets"]["hard"]


def test_sets_with_other_numbers_of_samples() -> None:
    """1 to 5 sets of unequal sizes: each as if it were evaluated alone, from one call."""
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    names = [f"set{i}" for i in range(rng.randrange(1, 6))]
    samples = {name: rng.choice([1, 2, 3, 4, 6, 8]) for name in names}
    chance = {name: rng.random() for name in names}
    sets = [*names, *(rng.choice(names) for _ in range(40))]
    script = [
        [(rng.randrange(1, 40), rng.random() < chance[name]) for _ in range(samples[name])]
        for name in sets
    ]
    found = evaluated(script, [5, 30], sets=sets)
    for record in found.records:
        name = record.set
        assert name is not None and record.samples == samples[name], seed
        mine = [answers for answers, of in zip(script, sets, strict=True) if of == name]
        alone = run(mine, [5, 30])
        del alone["seconds"], alone["tokens_sampled"]
        assert {"budgets": [5, 30], **found.row["sets"][name]} == alone, (name, seed)
    sampled = sum(min(length, 30) for answers in script for length, _ in answers)
    assert found.row["tokens_sampled"] == sampled, seed
    text = evaluation_table(found.row)
    for name in names:
        (line, _) = (line for line in text.splitlines() if line.startswith(f"| {name} "))
        assert f"{sets.count(name)} x {samples[name]} |" in line, (text, seed)
        lacking = {*_columns(text)} - {*doubled(samples[name])}
        assert line.count(" - |") == len(lacking), (text, seed)


def _columns(text: str) -> list[int]:
    """The k of the columns pass@k."""
    return [int(k) for k in re.findall(r"pass@(\d+)", text.splitlines()[0])]


def test_records_give_the_figures_again() -> None:
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    script = random_script(rng, 30, 4)
    row, records = evaluated(script, [5, 12, 30], sets=["a", "b"] * 15)
    assert [record.set for record in records] == ["a", "b"]
    for record in records:
        figures = row["sets"][record.set]
        assert record.ids == tuple(f"q{i}" for i in range(30) if "ab"[i % 2] == record.set)
        for place, accuracy in enumerate(figures["accuracy"]):
            shares = record.shares(place)
            assert sum(shares) / len(shares) == pytest.approx(accuracy), seed
        means = sum(record.tokens) / len(record.tokens)
        assert means == pytest.approx(figures["tokens"], abs=5e-4), seed
    (whole,) = evaluated(script, [5]).records
    assert whole.set is None and len(whole.ids) == 30
    # Within 5 tokens every box is closed; a response of 1 token is right in this script.
    right = [sum(good or n == 1 for n, good in answers) for answers in script]
    assert list(whole.right[0]) == right, seed
    assert len({record.fingerprint for record in (*records, whole)}) == 3


def test_many_budgets_are_quick() -> None:
    """20 budgets, 512 questions, 4 samples: a second or two beside minutes of generation."""
    script = random_script(random.Random(0), 512, 4)
    budgets = list(range(2, 42, 2))
    run(script[:8], budgets)
    before = time.process_time()
    row = run(script, budgets)
    assert time.process_time() - before < 20  # measured: 1 s
    assert len(row["accuracy"]) == 20 and row["accuracy"] == sorted(row["accuracy"])
