"""Rewards from the length of one response, each against its formula in float64 and by hand."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from siri_train.config.base import ConfigError
from siri_train.config.recipe import parse_config
from siri_train.rewards import REWARDS, Response, grade_responses, require_no_cap, reward_options
from siri_train.rewards.length import sigmoid
from siri_train.train import train
from tests.train.conftest import TINY
from tests.train.reward_groups import CAP, drawn, names, paid

NAN = math.nan


def _options(rng: random.Random) -> dict[str, dict[str, Any]]:
    tokens = rng.randint(1, CAP)
    return {
        "truncation": {"limit": tokens},
        "length-penalty": {
            "weight": rng.uniform(0.01, 1),
            "per": rng.choice([None, rng.randint(1, 200)]),
            "on": rng.choice(["right", "all"]),
        },
        "l1-exact": {"target": tokens, "weight": rng.uniform(1e-4, 0.1)},
        "l1-max": {
            "target": tokens,
            "weight": rng.uniform(1e-3, 0.1),
            "offset": rng.uniform(0, 1),
            "combine": rng.choice(["add", "multiply"]),
        },
        "laser": {
            "target": tokens,
            "bonus": rng.uniform(0.01, 0.9),
            "explore": rng.random() < 0.5,
            "wrong": rng.uniform(-1, 0),
            "unanswered": rng.uniform(-2, -1),
        },
        "overlong": {
            "buffer": tokens,
            "penalty": rng.uniform(0.1, 2),
            "wrong": rng.choice([-1, 0, 0.5]),
        },
    }


def _length_penalty(right: Any, n: Any, boxed: Any, o: dict[str, Any]) -> Any:
    cost = o["weight"] * n / (CAP if o["per"] is None else o["per"])
    return np.where(right, 1 - cost, -cost if o["on"] == "all" else 0)


def _l1_max(right: Any, n: Any, boxed: Any, o: dict[str, Any]) -> Any:
    if o["curve"] == "sigmoid":
        score = 1 / (1 + np.exp(-o["weight"] * (o["target"] - n)))
        score = np.minimum(score + np.where(n <= o["target"], 0.1, 0), 1)
    else:
        score = np.clip(o["weight"] * (o["target"] - n) + o["offset"], 0, 1)
    return np.where(right, score, 0) if o["combine"] == "multiply" else right + score


def _laser(right: Any, n: Any, boxed: Any, o: dict[str, Any]) -> Any:
    base = np.where(right, 1.0, np.where(boxed, o["wrong"], o["unanswered"]))
    short = n <= o["target"]
    return base + o["bonus"] * np.where(right, short, o["explore"] & ~short)


def _overlong(right: Any, n: Any, boxed: Any, o: dict[str, Any]) -> Any:
    """The paper's three cases, with verl's ramp in the middle."""
    start = CAP - o["buffer"]
    ramp = np.where(n <= start, 0.0, np.where(n <= CAP, (start - n) / o["buffer"], -1.0))
    return np.where(right, 1.0, o["wrong"]) + o["penalty"] * ramp


FORMULAS: dict[str, Callable[[Any, Any, Any, dict[str, Any]], Any]] = {
    "truncation": lambda right, n, boxed, o: np.where(right & (n <= o["limit"]), 1.0, 0.0),
    "length-penalty": _length_penalty,
    "l1-exact": lambda right, n, boxed, o: right - o["weight"] * np.abs(n - o["target"]),
    "l1-max": _l1_max,
    "laser": _laser,
    "overlong": _overlong,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_rewards_are_the_formulas(name: str) -> None:
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    for _ in range(200):
        given = _options(rng)[name]
        if name == "l1-max" and rng.random() < 0.5:
            given = {**given, "curve": "sigmoid", "offset": 0.5}
        rights, lengths, boxes = drawn(rng)
        got = paid(name, rights, lengths, answers=boxes, **given)
        want = FORMULAS[name](
            np.array([right is True for right in rights]), np.array(lengths, dtype=np.float64),
            np.array([box is not None for box in boxes]), reward_options(name, given),
        ).astype(np.float64)  # fmt: skip
        want[[right is None for right in rights]] = NAN
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12, err_msg=f"seed {seed}")


BY_HAND: list[tuple[str, dict[str, Any], list[float]]] = [
    ("truncation", {"limit": 30}, [1, 1, 0, 0, 0, NAN]),
    ("length-penalty", {}, [1, 0.75, 0.5, 0, 0, NAN]),
    ("length-penalty", {"weight": 0.1, "per": 10, "on": "all"}, [1, 0.7, 0.4, 0, -0.6, NAN]),
    ("l1-exact", {"target": 30, "weight": 0.01}, [0.7, 1, 0.7, -0.3, -0.3, NAN]),
    ("l1-max", {"target": 30, "weight": 0.01}, [0.8, 0.5, 0.2, 0, 0, NAN]),
    ("l1-max", {"target": 30, "weight": 0.1}, [1, 0.5, 0, 0, 0, NAN]),
    (
        "l1-max",
        {"target": 30, "weight": math.log(3) / 30, "curve": "sigmoid"},
        [0.85, 0.6, 0.25, 0, 0, NAN],
    ),
    (
        "l1-max",
        {"target": 30, "weight": 0.01, "combine": "add"},
        [1.8, 1.5, 1.2, 0.8, 0.2, NAN],
    ),
    ("laser", {"target": 30}, [1.5, 1.5, 1, -0.5, -1, NAN]),
    ("laser", {"target": 30, "explore": True}, [1.5, 1.5, 1, -0.5, -0.5, NAN]),
    ("overlong", {"buffer": 40}, [1, 0.75, 0, -1, -2, NAN]),
    ("overlong", {"buffer": 60, "penalty": 0.5, "wrong": 0}, [1, 0.75, 0.5, 0, -0.5, NAN]),
]


@pytest.mark.parametrize(("name", "options", "want"), BY_HAND)
def test_rewards_by_hand(name: str, options: dict[str, Any], want: list[float]) -> None:
    """Right and of 0, 30 and 60 tokens (at the cap); wrong and of 0 and 60, the latter without a
    box; not judged."""
    got = paid(
        name, [True, True, True, False, False, None], [0, 30, 60, 0, 60, 30],
        answers=["x", "x", "x", "x", None, "x"], **options,
    )  # fmt: skip
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_reward_depends_on_its_own_response_alone(name: str) -> None:
    """So each works one response at a time, as verl and OpenRLHF grade."""
    rng = random.Random(name)
    assert not REWARDS[name].compares
    options = _options(rng)[name]
    rights, lengths, boxes = [True, False, None, True], [5, 60, 7, 60], ["x", None, "x", "x"]
    together = paid(name, rights, lengths, answers=boxes, **options)
    alone = [
        paid(name, [right], [n], answers=[box], **options)[0]
        for right, n, box in zip(rights, lengths, boxes, strict=True)
    ]
    np.testing.assert_array_equal(together, alone)


class Never:
    def verdicts(self, pairs: Any) -> list[bool | None]:
        return [answer == gold for answer, gold in pairs]

    def close(self) -> None: ...


def test_truncated_and_lost_responses_through_the_grader() -> None:
    """A truncated response earns by what it holds; with ``truncated: zero`` it is not right."""
    responses = [
        Response(r"\boxed{1}", "stop", tokens=20),
        Response(r"\boxed{1}", "length", tokens=CAP),
        Response(r"\boxed{1}", "abort", tokens=3),
    ]
    options: dict[str, Any] = {
        "verifier": Never(), "think": "none", "function": "overlong", "options": {"buffer": 30},
        "group_size": 3, "cap": CAP,
    }  # fmt: skip
    graded = [g.reward for g in grade_responses(responses, ["1"] * 3, **options)]
    np.testing.assert_array_equal(graded, [1, 0, NAN])
    zero = grade_responses(responses, ["1"] * 3, truncated="zero", **options)
    np.testing.assert_array_equal([g.reward for g in zero], [1, -2, NAN])
    assert [g.right for g in zero] == [True, False, None]


def test_the_cap_is_asked_for_where_it_is_read() -> None:
    for name, options in (("overlong", {"buffer": 8}), ("length-penalty", {})):
        with pytest.raises(ValueError, match="cap: missing"):
            paid(name, [True], [5], cap=None, **options)
        with pytest.raises(ValueError, match=f"length: missing; the reward '{name}' takes the st"):
            require_no_cap(name, reward_options(name, options), "length")
    assert paid("length-penalty", [True], [5], cap=None, per=10)[0] == 0.75
    require_no_cap("length-penalty", reward_options("length-penalty", {"per": 10}), "length")
    require_no_cap("length-cap", {}, "length")
    with pytest.raises(ValueError, match=r"options.buffer: got 61; takes at most the step's cap"):
        paid("overlong", [True], [5], buffer=61)


def test_the_logistic_function_has_no_limits() -> None:
    assert (sigmoid(-1e9), sigmoid(0.0), sigmoid(1e9)) == (0.0, 0.5, 1.0)
    assert sigmoid(-2.0) == pytest.approx(1 - sigmoid(2.0), abs=1e-15)


# TINY's caps go from 24 to 56.
REFUSED: list[tuple[str, str, str]] = [
    ("truncation", "{}", "options.limit: missing; takes a whole number of tokens from 1 to"),
    ("truncation", "{limit: 0}", "options.limit: got 0; takes a whole number of tokens from 1"),
    ("truncation", "{limit: true}", "options.limit: got True; takes a whole number of tokens"),
    ("truncation", "{limit: 20.5}", "options.limit: got 20.5; takes a whole number of tokens"),
    ("truncation", "{limit: 57}", "options.limit: got 57; takes at most 56, the longest cap"),
    ("truncation", "{limit: 20, x: 1}", "options.x: unknown option"),
    ("length-penalty", "{weight: 0}", "options.weight: got 0; takes a number above 0, at most 1"),
    ("length-penalty", "{weight: 1.5}", "options.weight: got 1.5; takes a number above 0"),
    ("length-penalty", "{on: wrong}", "options.on: got 'wrong'; takes one of right, all"),
    ("length-penalty", "{per: -1}", "options.per: got -1; takes a whole number of tokens"),
    ("length-penalty", "{per: 27}", "options.per: got 27; takes at least 28"),
    ("l1-exact", "{target: 57}", "options.target: got 57; takes at most 56"),
    ("l1-exact", "{target: 5, weight: -1}", "options.weight: got -1; takes a number above 0"),
    ("l1-max", "{target: 57}", "options.target: got 57; takes at most 56"),
    ("l1-max", "{target: 5, offset: 2}", "options.offset: got 2; takes a number from 0 to 1"),
    ("l1-max", "{target: 5, curve: sigmod}", "takes one of linear, sigmoid; did you mean sigmoid"),
    ("l1-max", "{target: 5, combine: sum}", "options.combine: got 'sum'; takes one of multiply"),
    (
        "l1-max",
        "{target: 5, curve: sigmoid, offset: 0.4}",
        "options.offset: got 0.4, which has no effect with curve: sigmoid",
    ),
    ("laser", "{target: 57}", "options.target: got 57; takes at most 56"),
    ("laser", "{target: 5, bonus: 0}", "options.bonus: got 0; takes a number above 0"),
    ("laser", "{target: 5, wrong: 1}", "options.wrong: got 1; takes a number below options.right"),
    (
        "laser",
        "{target: 5, explore: true, bonus: 1.5}",
        "options.wrong: got -0.5; takes a number below options.right - options.bonus = -0.5",
    ),
    ("overlong", "{}", "options.buffer: got 4096; takes at most 24, the shortest cap"),
    ("overlong", "{buffer: 0}", "options.buffer: got 0; takes a whole number of tokens"),
    ("overlong", "{buffer: 8, penalty: 0}", "options.penalty: got 0; takes a number above 0"),
    ("overlong", "{buffer: 8, wrong: 1}", "options.wrong: got 1; takes a number below 1"),
]


@pytest.mark.parametrize(("name", "options", "said"), REFUSED)
def test_options_that_cannot_be_are_one_line(name: str, options: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        given = [f"reward.function={name}", f"reward.options={options}"]
        parse_config(copy.deepcopy(TINY), given)
    text = str(refusal.value)
    assert said in text and "reward.options" in text and "\n" not in text


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("truncation", "{limit: 56}"),
        ("length-penalty", "{per: 28}"),
        ("l1-exact", "{target: 56}"),
        ("laser", "{target: 56}"),
        ("overlong", "{buffer: 24}"),
    ],
)
def test_the_bounds_themselves_are_taken(name: str, options: str) -> None:
    parse_config(copy.deepcopy(TINY), [f"reward.function={name}", f"reward.options={options}"])


def test_a_constant_schedule_has_one_cap() -> None:
    """``min_len`` does not count there: the shortest cap is ``max_len``."""
    given = ["schedule.shape=constant", "reward.function=overlong", "reward.options={buffer: 56}"]
    parse_config(copy.deepcopy(TINY), given)


IN_A_RUN: dict[str, dict[str, Any]] = {
    "truncation": {"limit": 30},
    "length-penalty": {"on": "all"},
    "l1-exact": {"target": 30, "weight": 0.01},
    "l1-max": {"target": 30, "weight": 0.01},
    "laser": {"target": 30, "explore": True},
    "overlong": {"buffer": 16, "wrong": 0},
    "kimi": {"warm_up": 1},
    "arora": {},
    "gr3": {},
}


@pytest.mark.costly
@pytest.mark.parametrize("name", IN_A_RUN)
def test_a_run_trains_with_every_one(name: str, tmp_path: Path) -> None:
    """The rewards that its steps report are those of the responses that it kept."""
    raw = copy.deepcopy(TINY) | {"reward": {"function": name, "options": IN_A_RUN[name]}}
    more = ["train.steps=2", "eval.at_start=false", "monitor.rollouts_every=1"]
    config = parse_config(raw, [f"output={tmp_path / 'run'}", "checkpoint.every=0", *more])
    train(config)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 2 and all(row["grad_norm"] is not None for row in rows)
    schedule = config.schedule.build()
    for row in rows:
        file = tmp_path / "run" / "rollouts" / f"step_{row['step']:06d}.jsonl"
        kept = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert len(kept) == 16
        means = []
        for first in range(0, 16, 4):
            own = kept[first : first + 4]
            options: dict[str, Any] = {
                "cap": schedule(row["step"]), "step": row["step"],
                "answers": [one["answer"] for one in own], **IN_A_RUN[name],
            }  # fmt: skip
            rights = [one["answer"] == one["gold"] for one in own]
            got = paid(name, rights, [one["tokens"] for one in own], **options)
            np.testing.assert_allclose(got, [one["reward"] for one in own], rtol=1e-9)
            means.append(got.mean())
        assert row["reward_mean"] == pytest.approx(np.mean(means), rel=1e-9)


def test_every_reward_is_tried_in_a_run() -> None:
    assert set(IN_A_RUN) == set(names())
