"""Rewards that compare the lengths of a group, each against its formula in float64 and by hand."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from siri_kernels import group_advantages
from siri_train.config.base import ConfigError
from siri_train.config.recipe import parse_config
from siri_train.config.rollout import RolloutConfig
from siri_train.data.sources import EncodedQuestion
from siri_train.rewards import REWARDS, Grade, require_single
from siri_train.rollout.collect import Collector
from siri_train.schedule import LengthSchedule
from siri_train.trainer.metrics import step_metrics
from siri_train.trainer.update import UpdateStats
from tests.train.conftest import TINY
from tests.train.reward_groups import drawn, paid
from tests.train.test_collect import Scripted

NAN = math.nan
NAMES = ("kimi", "arora", "gr3")


def formula(name: str, right: Any, judged: Any, n: Any, weight: float) -> Any:
    """The paper's reward of each judged response, [G] float64."""
    if name == "kimi":
        span = np.ptp(n[judged]) if judged.any() else 0.0
        share = np.zeros(len(n)) if span == 0 else 0.5 - (n - n[judged].min()) / span
        return right + weight * np.where(right, share, np.minimum(share, 0))
    if name == "arora":
        own = n[right]
        z = np.zeros(len(n))
        if len(own) and own.std() > 0:
            z = (n - own.mean()) / own.std()
        return np.where(right, 1 - weight / (1 + np.exp(-z)), 0)
    mean = n[judged].mean() if judged.any() else 0.0
    return np.where(right, 1 / (1 + weight * (n / mean if mean else 0 * n)), 0)


@pytest.mark.parametrize("name", NAMES)
def test_rewards_are_the_formulas(name: str) -> None:
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    for _ in range(200):
        rights, lengths, _ = drawn(rng)
        weight = rng.uniform(0.01, 1)
        judged = np.array([right is not None for right in rights])
        want = formula(
            name, np.array([right is True for right in rights]), judged,
            np.array(lengths, dtype=np.float64), weight,
        ).astype(np.float64)  # fmt: skip
        want[~judged] = NAN
        got = paid(name, rights, lengths, weight=weight)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12, err_msg=f"seed {seed}")


BY_HAND: list[tuple[str, dict[str, Any], list[float]]] = [
    ("kimi", {}, [1.5, 1, 0.5, 0, -0.5, NAN]),
    ("kimi", {"weight": 0.5}, [1.25, 1, 0.75, 0, -0.25, NAN]),
    # The right answers have 10, 30 and 50 tokens: mean 30, deviation sqrt(800 / 3).
    (
        "arora",
        {"weight": 0.5},
        [
            1 - 0.5 / (1 + math.exp(math.sqrt(1.5))),
            0.75,
            1 - 0.5 / (1 + math.exp(-math.sqrt(1.5))),
            0,
            0,
            NAN,
        ],
    ),
    ("gr3", {"weight": 0.3}, [1 / 1.1, 1 / 1.3, 1 / 1.5, 0, 0, NAN]),
]


@pytest.mark.parametrize(("name", "options", "want"), BY_HAND)
def test_rewards_by_hand(name: str, options: dict[str, Any], want: list[float]) -> None:
    """The length of a response that could not be judged has no part in it."""
    rights = [True, True, True, False, False, None]
    got = paid(name, rights, [10, 30, 50, 10, 50, 999], **options)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [0, 1, 60])
@pytest.mark.parametrize("rights", [[True], [True] * 4, [False] * 4, [None] * 4])
@pytest.mark.parametrize("name", NAMES)
def test_groups_of_equal_lengths_learn_nothing(
    name: str, rights: list[bool | None], length: int
) -> None:
    """All right, all wrong, of one response: the rewards are exactly equal, so dynamic sampling
    drops the group."""
    got = paid(name, rights, [length] * len(rights))
    assert len(set(got[~np.isnan(got)])) == (rights[0] is not None)
    assert np.isnan(got).tolist() == [right is None for right in rights]


@pytest.mark.parametrize("seed", range(3))
def test_a_right_answer_never_earns_less_than_a_wrong_one(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(100):
        rights, lengths, _ = drawn(rng)
        for name, most in (("kimi", 2), ("arora", 1), ("gr3", 100)):
            got = paid(name, rights, lengths, weight=most)
            right = [value for value, r in zip(got, rights, strict=True) if r]
            wrong = [value for value, r in zip(got, rights, strict=True) if r is False]
            assert not right or not wrong or min(right) >= max(wrong)


def test_the_first_steps_of_kimi_are_without_lengths() -> None:
    rights, lengths = [True, True, False], [10, 50, 50]
    for step in (0, 9):
        assert paid("kimi", rights, lengths, warm_up=10, step=step).tolist() == [1, 1, 0]
    for step in (10, 500):
        got = paid("kimi", rights, lengths, warm_up=10, step=step)
        assert got.tolist() == [1.5, 0.5, -0.5]
    assert paid("kimi", rights, lengths, step=None).tolist() == [1.5, 0.5, -0.5]
    with pytest.raises(ValueError, match="options.warm_up: got 10, but this trainer does not say"):
        paid("kimi", rights, lengths, warm_up=10, step=None)


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_does_not_count_in_a_group_that_is_all_right_unless_the_scale_keeps_it(
    name: str,
) -> None:
    """The first weakness of docs/rewards.md: the group's deviation divides the weight out."""
    lengths = [10, 20, 40, 50]

    def advantages(weight: float, scale: str) -> torch.Tensor:
        rewards = torch.tensor(paid(name, [True] * 4, lengths, weight=weight))
        mixed = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
        both = torch.cat([rewards, mixed])
        return group_advantages(both, 4, scale=scale, eps=0.0).advantages[:4]

    small, large = advantages(1e-4, "group_std"), advantages(0.2, "group_std")
    torch.testing.assert_close(small, large, rtol=0.1, atol=0.01)
    assert small.abs().max() > 1
    for scale in ("batch_std", "none"):
        assert (advantages(1e-4, scale).abs() < 2e-3 * advantages(0.2, scale).abs()).all()


@pytest.mark.parametrize("name", NAMES)
def test_trainers_that_grade_one_response_at_a_time_refuse_them(name: str) -> None:
    assert REWARDS[name].compares
    with pytest.raises(ValueError, match=f"reward.function: got '{name}', which compares the resp"):
        require_single(name, "reward.function", "verl")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("kimi", "{weight: 0}", "options.weight: got 0; takes a number above 0, at most 2"),
        ("kimi", "{weight: 2.5}", "options.weight: got 2.5; takes a number above 0, at most 2"),
        ("kimi", "{warm_up: -1}", "options.warm_up: got -1; takes a whole number of steps"),
        ("kimi", "{warm_up: 1.5}", "options.warm_up: got 1.5"),
        ("arora", "{weight: 1.1}", "options.weight: got 1.1; takes a number above 0, at most 1"),
        ("gr3", "{weight: -0.33}", "options.weight: got -0.33; takes a number above 0"),
    ],
)
def test_options_that_cannot_be_are_one_line(name: str, options: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        given = [f"reward.function={name}", f"reward.options={options}"]
        parse_config(copy.deepcopy(TINY), given)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_dynamic_sampling_keeps_a_group_that_is_all_right() -> None:
    """Its rewards differ by length, so it has advantages. Metrics still count right answers, and
    groups that are all right."""
    lengths = [[3, 4, 5, 6], [5, 5, 5, 5], [4, 6, 8, 9]]
    rights = [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]

    def grade(part: Any, step: int, cap: int) -> list[Grade]:
        grades = []
        for first in range(0, len(part), 4):
            own = [text.split() for text, _ in part[first : first + 4]]
            verdicts = [words[0] == "1" for words in own]
            rewards = paid("kimi", verdicts, [len(words) for words in own])
            grades += [
                Grade(reward, right, None, False, right)
                for reward, right in zip(rewards.tolist(), verdicts, strict=True)
            ]
        return grades

    config = RolloutConfig(group_size=4, prompts=3, oversample=1.0, max_rounds=2)
    collect = Collector(
        Scripted(lengths * 2, rights * 2), config, frozenset({3}),
        lambda responses: [" ".join(map(str, ids)) for ids in responses], grade,
    )  # fmt: skip
    questions = [EncodedQuestion(f"q{i}", (i,), "", f"question {i}") for i in range(6)]
    batch = collect(0, 60, questions, 1, cancelled=lambda: False)
    assert batch is not None and batch.dynamic
    kept = [group.question.id for group in batch.groups]
    assert kept == ["q0", "q2", "q3"] and "q1" in [g.question.id for g in batch.dropped]
    row = step_metrics(
        step=0, schedule=LengthSchedule("cosine", 60, 20, 4), batch=batch,
        stats=UpdateStats(loss=0.0, grad_norm=0.0), lr=0.0, backtrack_per_1k=0.0, time_train=1.0,
    )  # fmt: skip
    right = [grade.right for group in batch.seen for grade in group.grades]
    assert row["accuracy"] == sum(right) / len(right)
    all_right = [group for group in batch.seen if all(g.right for g in group.grades)]
    assert row["groups_all_one"] == len(all_right) / len(batch.seen)
    advantages = group_advantages(batch.rewards, 4).advantages.view(-1, 4)
    assert (advantages.abs().amax(1) > 0.1).all()
    torch.testing.assert_close(advantages[0].argsort(descending=True), torch.arange(4))
