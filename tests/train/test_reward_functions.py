"""Reward functions: the group that they see, and what right and reward are."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from siri_train.data.sources import EncodedQuestion
from siri_train.monitor import alarms
from siri_train.registry import names as registry
from siri_train.rewards import (
    REWARDS,
    ExactVerifier,
    Grade,
    Response,
    Reward,
    RewardGroup,
    grade_responses,
)
from siri_train.rollout import Completion
from siri_train.rollout.batch import Group, RolloutBatch, from_state, to_state
from siri_train.schedule import LengthSchedule
from siri_train.trainer.metrics import step_metrics
from siri_train.trainer.update import UpdateStats


@pytest.fixture(autouse=True)
def same_rewards_afterwards() -> Iterator[None]:
    before = dict(REWARDS.data)
    yield
    REWARDS.data = before


class Odd:
    """Cannot judge the answer 0."""

    def verdicts(self, pairs: Any) -> list[bool | None]:
        return [None if answer == "0" else answer == gold for answer, gold in pairs]

    def close(self) -> None: ...


def drawn(rng: random.Random, count: int) -> list[Response]:
    return [
        Response(
            rng.choice(["no box", *(f"so \\boxed{{{n}}}" for n in range(3))]),
            rng.choice(["stop", "stop", "length", "abort"]),
            tokens=rng.randrange(1, 60),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("truncated", ["grade", "zero"])
@pytest.mark.parametrize("seed", range(3))
def test_the_default_is_the_rule_of_the_paper(seed: int, truncated: Any) -> None:
    """Bit for bit what was paid before there were reward functions, in groups or not."""
    responses = drawn(random.Random(seed), 60)
    options: dict[str, Any] = {"verifier": Odd(), "think": "none", "truncated": truncated}
    grades = grade_responses(responses, ["1"] * 60, **options)
    assert repr(grades) == repr(grade_responses(responses, ["1"] * 60, group_size=6, **options))
    for response, grade in zip(responses, grades, strict=True):
        verdict = None if grade.answer == "0" else grade.answer == "1"
        if response.finish_reason == "abort":
            want = math.nan
        elif response.finish_reason == "length" and truncated == "zero":
            want = 0.0
        else:
            want = math.nan if verdict is None else float(verdict)
        assert repr(grade.reward) == repr(want) and grade.correct == (verdict is True)
        assert grade.right == (None if math.isnan(want) else want == 1)
        assert grade.truncated == (response.finish_reason == "length")


def test_a_function_sees_the_whole_group() -> None:
    seen: list[RewardGroup] = []

    def spy(group: RewardGroup) -> list[float]:
        seen.append(group)
        return [float(10 * len(seen) + place) for place in range(len(group.responses))]

    REWARDS["spy"] = Reward(spy, options={"a": 1.0, "b": "x"}, compares=True)
    responses = drawn(random.Random(5), 12)
    golds = ["1"] * 4 + ["2"] * 4 + ["0"] * 4
    grades = grade_responses(
        responses, golds, verifier=Odd(), think="none", function="spy", options={"a": 3},
        group_size=4, questions=[f"q{i // 4}" for i in range(12)], cap=60, step=7,
    )  # fmt: skip
    assert [g.reward for g in grades] == [float(10 * i + k) for i in (1, 2, 3) for k in range(4)]
    for index, group in enumerate(seen):
        own = responses[4 * index : 4 * index + 4]
        assert (group.question, group.gold) == (f"q{index}", golds[4 * index])
        assert (group.cap, group.step, dict(group.options)) == (60, 7, {"a": 3, "b": "x"})
        assert [r.tokens for r in group.responses] == [r.tokens for r in own]
        assert [r.text for r in group.responses] == [r.text for r in own]
        assert [r.truncated for r in group.responses] == [r.finish_reason == "length" for r in own]
        found = grades[4 * index : 4 * index + 4]
        assert [r.right for r in group.responses] == [g.right for g in found]
        assert [r.answer for r in group.responses] == [g.answer for g in found]


# What later shapes of the reward need, each from its paper's formula, with nothing but the group.
FORMULAS: dict[str, Any] = {
    "truncation to a limit": lambda g: [
        float(bool(r.right) and r.tokens <= g.options["limit"]) for r in g.responses
    ],
    "linear penalty": lambda g: [
        float(bool(r.right)) - g.options["alpha"] * r.tokens / g.cap for r in g.responses
    ],
    "L1-max": lambda g: [
        float(bool(r.right)) * min(max(3e-4 * (g.cap - r.tokens) + 0.5, 0.0), 1.0)
        for r in g.responses
    ],
    "overlong ramp": lambda g: [
        float(bool(r.right)) + min(0.0, (g.cap - 20 - r.tokens) / 20) for r in g.responses
    ],
}


def _kimi(group: RewardGroup) -> list[float]:
    lengths = [r.tokens for r in group.responses]
    low, high = min(lengths), max(lengths)
    share = [0.5 - (n - low) / max(high - low, 1) for n in lengths]
    return [s if r.right else min(0.0, s) for s, r in zip(share, group.responses, strict=True)]


@pytest.mark.parametrize("name", [*FORMULAS, "kimi k1.5"])
def test_the_signature_carries_the_known_rewards(name: str) -> None:
    options = {"limit": 30, "alpha": 0.5}
    function = FORMULAS.get(name, _kimi)
    REWARDS["known"] = Reward(function, options=options, compares=function is _kimi)
    responses = drawn(random.Random(1), 40)
    grades = grade_responses(
        responses, ["1"] * 40, verifier=ExactVerifier(), think="none", function="known",
        group_size=8, cap=60,
    )  # fmt: skip
    assert len({grade.reward for grade in grades}) > 1
    assert {g.right for g in grades} == {True, False, None}


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda group: [1.0], "the reward 'bad' gives 1 numbers for 3 responses; takes one a resp"),
        (lambda group: [1.0, math.inf, 0.0], "takes finite numbers, and NaN for a response"),
    ],
)
def test_a_wrong_function_is_named(function: Any, said: str) -> None:
    REWARDS["bad"] = Reward(function)
    responses = drawn(random.Random(0), 3)
    with pytest.raises(ValueError, match=said):
        grade_responses(
            responses, ["1"] * 3, verifier=ExactVerifier(), function="bad", group_size=3
        )


def test_bad_input_is_named() -> None:
    two, verifier = [Response("", "stop"), Response("", "stop")], ExactVerifier()
    REWARDS["other"] = Reward(lambda group: [0.0 for _ in group.responses])
    with pytest.raises(ValueError, match="function: got 'lenght-cap'; .* did you mean length-cap"):
        grade_responses(two, ["1"] * 2, verifier=verifier, function="lenght-cap")
    with pytest.raises(ValueError, match="group_size: got 3 for 2 responses; takes a divisor"):
        grade_responses(two, ["1"] * 2, verifier=verifier, group_size=3)
    with pytest.raises(ValueError, match=r"responses\[0\].tokens: missing; the reward 'other'"):
        grade_responses(two, ["1"] * 2, verifier=verifier, function="other")
    with pytest.raises(ValueError, match="questions: got 1 for 2 responses"):
        grade_responses(two, ["1"] * 2, verifier=verifier, questions=["q"])
    with pytest.raises(registry.NameTaken, match="the reward 'other' exists already"):
        REWARDS["other"] = REWARDS["length-cap"]


def batch_of(rights: list[list[bool | None]], rewards: list[list[float]]) -> RolloutBatch:
    groups = []
    for index, (group, paid) in enumerate(zip(rights, rewards, strict=True)):
        grades = [
            Grade(reward, right is True, None, False, right)
            for right, reward in zip(group, paid, strict=True)
        ]
        completions = [Completion([1, 2], [-0.5, -0.25], "stop") for _ in group]
        question = EncodedQuestion(f"q{index}", (1,), "1", "")
        groups.append(Group(index, question, completions, [""] * len(group), grades))
    return RolloutBatch(3, 16, wanted=len(groups), groups=groups)


def test_accuracy_counts_what_is_right_and_not_what_is_paid() -> None:
    rights: list[list[bool | None]] = [[True] * 3, [False] * 3, [True, False, None]]
    rewards = [[0.25, 0.5, -1.0], [1.0, 1.0, 1.0], [0.0, 1.0, math.nan]]
    batch = batch_of(rights, rewards)
    stats = UpdateStats(loss=0.0, grad_norm=0.0)
    row = step_metrics(
        step=3, schedule=LengthSchedule("cosine", 16, 8, 4), batch=batch, stats=stats, lr=0.0,
        backtrack_per_1k=0.0, time_train=1.0,
    )  # fmt: skip
    assert row["accuracy"] == pytest.approx(4 / 9)
    assert row["groups_all_zero"] == row["groups_all_one"] == pytest.approx(1 / 3)
    assert row["unjudged"] == 1
    assert row["reward_mean"] == pytest.approx(3.75 / 8)
    assert [group.informative for group in batch.groups] == [True, False, True]  # by the rewards
    found = alarms.check(row | {"groups_all_zero": 1.0}, [])
    assert [alarm["alarm"] for alarm in found] == ["all-zero-rewards"]


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_saved_before_there_was_right_is_read(seed: int) -> None:
    rng = random.Random(seed)
    rights = [[rng.choice([True, False, None]) for _ in range(4)] for _ in range(3)]
    rewards = [[math.nan if r is None else float(r) for r in group] for group in rights]
    batch = batch_of(rights, rewards)
    state = to_state(batch)
    questions = [group.question for group in batch.groups]
    again = from_state(state, questions, lambda responses: [""] * len(responses))
    assert repr(again.groups) == repr(batch.groups)
    for group in state["groups"]:
        group["grades"] = [grade[:4] for grade in group["grades"]]
    old = from_state(state, questions, lambda responses: [""] * len(responses))
    assert [[g.right for g in group.grades] for group in old.groups] == rights
    torch.testing.assert_close(old.rewards, batch.rewards, equal_nan=True)
