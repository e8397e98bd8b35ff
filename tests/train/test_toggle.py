"""The reward toggle, what it knows of questions, and runs with it that are killed."""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from siri_train.checkpoint.save_load import load_memory
from siri_train.config.base import ConfigError
from siri_train.config.method import RewardConfig
from siri_train.config.recipe import load_config
from siri_train.data.sources import EncodedQuestion
from siri_train.rewards import (
    ExactVerifier,
    Grade,
    JudgedResponse,
    Response,
    RewardGroup,
    grade_responses,
    require_single,
    reward_options,
)
from siri_train.rewards.functions import rewards_of
from siri_train.rewards.toggle import quantile_of_right
from siri_train.rollout import Completion
from siri_train.rollout.batch import Group, RolloutBatch
from siri_train.schedule import LengthSchedule
from siri_train.train import train
from siri_train.trainer.question_memory import QuestionMemory
from tests.torchrun import torchrun
from tests.train.conftest import TINY
from tests.train.killer import killed_and_finished
from tests.train.test_checkpoint import rows


def group(lengths: Any, rights: Any, phase: str = "compression", **options: Any) -> RewardGroup:
    known, shortest = options.pop("known", None), options.pop("shortest", 20)
    responses = [
        JudgedResponse("", tokens, False, right)
        for tokens, right in zip(lengths, rights, strict=True)
    ]
    chosen = reward_options("toggle", options)
    return RewardGroup(responses, "", "", 99, 0, chosen, phase, shortest, known)


def test_by_hand() -> None:
    lengths, rights = [10, 20, 21, 30], [True, True, True, False]  # accuracy 3/4
    assert rewards_of("toggle", group(lengths, rights, accuracy=0.75)) == [1, 1, 0, 0]
    assert rewards_of("toggle", group(lengths, rights, accuracy=0.76)) == [1, 1, 1, 0]
    assert rewards_of("toggle", group(lengths, rights, "expansion", accuracy=0.0)) == [1, 1, 1, 0]
    assert rewards_of("toggle", group(lengths, rights, known=21, quantile=0.1)) == [1, 1, 1, 0]
    assert rewards_of("toggle", group(lengths, rights, quantile=0.5)) == [1, 1, 0, 0]
    assert rewards_of("toggle", group(lengths, rights, quantile=0.1)) == [1, 0, 0, 0]
    assert rewards_of("toggle", group([9, 9], [False, False], quantile=0.5)) == [0, 0]
    unscored = rewards_of("toggle", group(lengths, [True, None, True, None], accuracy=1.0))
    assert unscored[0] == 1 and unscored[2] == 0 and math.isnan(unscored[1] + unscored[3])
    assert all(map(math.isnan, rewards_of("toggle", group([5], [None]))))


def test_drawn_groups_have_the_formulas_rewards() -> None:
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    for _ in range(300):
        size, share = draw.randint(2, 12), draw.choice([None, 0.1, 0.3, 0.5, 0.9, 1.0])
        lengths = [draw.randint(1, 40) for _ in range(size)]
        rights = [draw.choice([True, True, False, None]) for _ in range(size)]
        accuracy, phase = draw.choice([0.0, 0.25, 0.5, 1.0]), draw.choice(["compression", "x"])
        phase = "expansion" if phase == "x" else phase
        known = draw.choice([None, draw.randint(1, 40)])
        given = group(lengths, rights, phase, accuracy=accuracy, quantile=share, known=known)
        right_lengths = [n for n, right in zip(lengths, rights, strict=True) if right]
        budget: float | None = 20
        if share is not None:
            # the least length that a share of at least `quantile` does not exceed
            fits = [
                n for n in sorted(right_lengths)
                if Fraction(sum(m <= n for m in right_lengths), len(right_lengths))
                >= Fraction(str(share))
            ]  # fmt: skip
            budget = known if known is not None else (fits[0] if fits else math.inf)
            assert quantile_of_right(given) == (fits[0] if fits else None), seed
        scored = [float(right) for right in rights if right is not None]
        mean = math.fsum(scored) / len(scored) if scored else 0.0
        want = [
            math.nan if right is None
            else float(right) * (phase == "expansion" or mean < accuracy or tokens <= budget)
            for tokens, right in zip(lengths, rights, strict=True)
        ]  # fmt: skip
        got = rewards_of("toggle", given)
        assert str(got) == str([float(x) for x in want]), (seed, given)


def test_quantiles_are_exact() -> None:
    # 0.1 * 30 is 3.0000000000000004 in float64, whose ceiling would be 4
    given = group(range(1, 31), [True] * 30, quantile=0.1)
    assert quantile_of_right(given) == 3
    assert quantile_of_right(group(range(1, 31), [True] * 30, quantile=1)) == 30


@pytest.mark.parametrize(
    "options, words",
    [
        ({"accuracy": 1.5}, "options.accuracy: got 1.5; takes a number from 0 to 1"),
        ({"quantile": 0}, "options.quantile: got 0; takes null .* or a number above 0"),
        ({"quantile": "half"}, "options.quantile: got 'half'"),
        ({"quantile": True}, "options.quantile: got True"),
        ({"quantile": math.nan}, "options.quantile: got nan"),
        ({"budget": 5}, "options.budget: unknown option"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        reward_options("toggle", options)


def test_shape_and_reward_come_together(tiny: Any) -> None:
    tiny("schedule.shape=toggle", "reward.function=toggle")
    with pytest.raises(ConfigError, match="toggle leaves the cap .* set reward.function=toggle"):
        tiny("schedule.shape=toggle")
    with pytest.raises(ConfigError, match="got schedule.shape=cosine; set schedule.shape=toggle"):
        tiny("reward.function=toggle")


def test_who_cannot_give_the_phase_refuses_it() -> None:
    for trainer in ("verl", "OpenRLHF", "TRL"):
        with pytest.raises(ValueError, match=f"got 'toggle', which compares .* {trainer} grades"):
            require_single("toggle", "reward.function", trainer)
        with pytest.raises(ValueError, match=f"got 'toggle', whose phases .* which {trainer} can"):
            LengthSchedule("toggle").require_stateless(trainer)
    responses = [Response("", "stop", tokens=n) for n in (5, 3)]
    with pytest.raises(ValueError, match="phase, shortest: missing; the reward 'toggle' acts in"):
        grade_responses(
            responses, ["1"] * 2, verifier=ExactVerifier(), function="toggle", group_size=2
        )


def batch(step: int, *groups: tuple[str, list[int], list[bool]]) -> RolloutBatch:
    """Groups of (question, lengths, which are right)."""
    made = [
        Group(
            number,
            EncodedQuestion(id=name, prompt_ids=(1, 2), answer="1", prompt=name),
            [Completion([7] * n, [0.0] * n, "stop") for n in lengths],
            [""] * len(lengths),
            [Grade(float(right), right, None, False, right) for right in rights],
        )
        for number, (name, lengths, rights) in enumerate(groups)
    ]
    return RolloutBatch(step, 56, wanted=len(made), groups=made)


def memory(**options: Any) -> QuestionMemory:
    config = RewardConfig(function="toggle", options=options)
    return QuestionMemory(config, LengthSchedule("toggle", 56, 24, 4))


def of(known: QuestionMemory, name: str, prompt: tuple[int, ...] = (1, 2)) -> Any:
    return known.of(EncodedQuestion(id=name, prompt_ids=prompt, answer="1", prompt=name))


def test_the_first_right_responses_of_a_question_decide(capsys: Any) -> None:
    known = memory(quantile=0.5)
    assert known.state() is None
    first = batch(
        0, ("a", [9, 8, 7], [False, False, False]), ("b", [30, 20, 10], [True, True, False]),
        ("b", [1, 2, 3], [True, True, True]),
    )  # fmt: skip
    for _ in range(2):  # a batch sampled ahead is added where it is sampled and where it is graded
        known.add(first)
    assert (of(known, "a"), of(known, "b")) == (None, 20)
    assert of(known, "b", (1, 2, 3)) is None  # another source's question of the same name
    known.add(batch(1, ("a", [4, 6], [True, True]), ("b", [2, 2], [True, True])))
    assert (of(known, "a"), of(known, "b")) == (4, 20)
    state = json.loads(json.dumps(known.state()))
    again = memory(quantile=0.5)
    again.restore(state, 2, "run")
    assert (of(again, "a"), of(again, "b")) == (4, 20) and again.state() == known.state()
    again.restore(state, 1, "run")  # step 1 is sampled anew
    assert (of(again, "a"), of(again, "b")) == (None, 20)
    assert capsys.readouterr().out == ""
    other = memory(quantile=0.9)
    other.restore(state, 2, "run")
    assert other.state() is None
    assert "run: the checkpoint knows 2 questions by the reward toggle" in capsys.readouterr().out
    silent = memory()
    silent.add(first)
    assert silent.state() is None  # min_len is the budget: nothing is to be known


TOGGLE = (
    "schedule.shape=toggle", "schedule.max_len=32", "schedule.min_len=16", "train.steps=8",
    "reward.function=toggle", "reward.options={accuracy: 0.0, quantile: 0.3}",
    "data.train.0.size=8",
)  # fmt: skip
PLATEAU = (
    "schedule.shape=plateau", "schedule.max_len=32", "schedule.min_len=16", "train.steps=10",
    "schedule.options={fall: 1, window: 1, patience: 1, least: 2, most: 5}",
    "schedule.cycle=8",
)  # fmt: skip
AHEAD = (
    "rollout.asynchronous=true", "rollout.oversample=2", "rollout.max_rounds=1",
    "rollout.keep=first_done", "checkpoint.every=2",
)  # fmt: skip


@pytest.mark.draw(1)
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("shape", ["toggle", "plateau"])
def test_killed_and_resumed_is_the_same_run(
    tiny: Any, tmp_path: Path, shape: str, ahead: bool
) -> None:
    options = (*(TOGGLE if shape == "toggle" else PLATEAU), *(AHEAD if ahead else ()))
    whole, cut = (tiny(*options, f"output={tmp_path / name}") for name in ("whole", "cut"))
    train(whole)
    killed_and_finished(copy.deepcopy(cut), 4)
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert rows(tmp_path / "whole" / name) == rows(tmp_path / "cut" / name)
    steps = whole.train.steps
    metrics = rows(tmp_path / "whole" / "metrics.jsonl")
    name = {"toggle": "reward_memory.json", "plateau": "schedule.json"}[shape]
    one, two = (
        (tmp_path / run / f"checkpoints/step_{steps:06d}" / name).read_text()
        for run in ("whole", "cut")
    )
    assert one == two
    manifest = json.loads((whole.run_dir / "checkpoints" / "manifest.json").read_text())
    ends = [(end["which"], end["step"]) for end in manifest["cycles"]]
    if shape == "toggle":
        assert {row["cap"] for row in metrics} == {32}
        if not ahead:  # every group is in the row: rewards are lower in compression alone
            paid = [(row["phase"], row["reward_mean"] < row["accuracy"]) for row in metrics]
            assert ("compression", True) in paid and ("expansion", True) not in paid
        assert load_memory(whole.run_dir / "checkpoints" / f"step_{steps:06d}")["known"]
        assert ends == [("siri-low", 2), ("siri-high", 4), ("siri-low", 6), ("siri-high", 8)]
    else:
        turns = json.loads(one)["state"]["turns"]
        assert ends == [
            (("siri-low", "siri-high")[number % 2], turn)
            for number, turn in enumerate(turns) if turn <= steps
        ] and ends  # fmt: skip
        schedule = whole.schedule.build()
        for row in metrics:  # the rows alone give the same caps
            assert (row["cap"], row["phase"]) == (
                schedule(row["step"]), schedule.phase(row["step"])
            )  # fmt: skip
            schedule.observe(row)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="without torch.distributed")
def test_two_ranks_know_what_one_process_knows(tmp_path: Path) -> None:
    """The first step is compared: after an update the weights differ by rounding."""
    recipe = copy.deepcopy(TINY)
    recipe["rollout"]["shards"] = 2  # one process draws what two ranks draw
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(recipe))
    options = [*TOGGLE, "train.steps=2", "device=cpu"]
    train(load_config(tmp_path / "config.yaml", [*options, f"output={tmp_path / 'one'}"]))
    arguments = ("-m", "siri_train", "train", str(tmp_path / "config.yaml"))
    done = torchrun(*arguments, *options, f"output={tmp_path / 'two'}", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (load_memory(tmp_path / run / "checkpoints/step_000001") for run in ("one", "two"))
    assert one == two and one["known"]
    first = [rows(tmp_path / run / "metrics.jsonl")[0] for run in ("one", "two")]
    assert first[0]["reward_mean"] == first[1]["reward_mean"]


def test_a_batch_sampled_ahead_in_another_phase_is_sampled_again(tiny: Any, capsys: Any) -> None:
    ahead = (*TOGGLE, "schedule.max_len=56", "rollout.asynchronous=true", "train.steps=3")
    train(tiny(*ahead, "data.train.0.size=16", "checkpoint.keep_last=9"))
    known = load_memory(tiny().run_dir / "checkpoints" / "step_000002")
    assert known and max(step for step, _ in known["known"].values()) == 2  # from the batch ahead
    shutil.rmtree(tiny().run_dir / "checkpoints" / "step_000003")
    capsys.readouterr()
    train(tiny(*ahead, "data.train.0.size=16", "schedule.cycle=8"))  # step 2 is now compression
    assert "the batch of step 2 that" in capsys.readouterr().out
    row = rows(tiny().run_dir / "metrics.jsonl")[2]
    assert row["phase"] == "compression"
    again = load_memory(tiny().run_dir / "checkpoints" / "step_000003")
    assert again is not None
    for key, (step, value) in known["known"].items():
        assert step == 2 or again["known"][key] == [step, value]
