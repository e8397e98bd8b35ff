"""The plan of an ablation: the grid, its arms and runs, the methods, and what is refused."""

from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from siri_train.ablate import figures, grid
from siri_train.ablate.plan import Asked, Plan, build_plan, require_start, settings
from siri_train.ablate.presets import METHODS
from siri_train.commands import arguments
from siri_train.config.base import ConfigError
from siri_train.config.recipe import load_config
from siri_train.config.yaml_core import write_yaml
from siri_train.rewards import REWARDS
from siri_train.schedule import SHAPES
from tests.train.conftest import TINY

RECIPES = ("demo", "smollm2-135m", "siri-1.5b")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(write_yaml(copy.deepcopy(TINY)))
    return path


@pytest.fixture
def plan(recipe: Path, tmp_path: Path) -> Any:
    def make(**asked: Any) -> Plan:
        return build_plan(Asked(str(recipe), tmp_path / "out", **asked))

    return make


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2", ["1", "2"]),
        (" 1 , 2 ", ["1", "2"]),
        ("[0.9,0.95],[0.9,0.99]", ["[0.9,0.95]", "[0.9,0.99]"]),
        ("{a: 1, b: [2,3]},null", ["{a: 1, b: [2,3]}", "null"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("it's,so", ["it's", "so"]),
        ('{a: "x,y]"},z', ['{a: "x,y]"}', "z"]),
    ],
)
def test_values_are_split_at_commas_outside_of_brackets(text: str, values: list[str]) -> None:
    assert grid.split_values(text) == values


def test_drawn_values_are_split_as_they_were_joined() -> None:
    seed = random.randrange(2**32)
    draw = random.Random(seed)

    def value(depth: int) -> str:
        kind = draw.randrange(4 if depth < 3 else 2)
        if kind == 0:
            return str(draw.randint(-9, 99))
        if kind == 1:
            return draw.choice(["'a,b'", '"]"', "x", "'{'"])
        inner = [value(depth + 1) for _ in range(draw.randint(0, 3))]
        if kind == 2:
            return f"[{draw.choice([',', ', ']).join(inner)}]"
        return "{" + ", ".join(f"k{i}: {v}" for i, v in enumerate(inner)) + "}"

    for _ in range(300):
        values = [value(0) for _ in range(draw.randint(1, 5))]
        assert grid.split_values(draw.choice([",", " , "]).join(values)) == values, seed


@pytest.mark.parametrize("text", ["", "1,,2", "1,", "[1,2", "1]", "{a: 1", "'a", "[1}"])
def test_values_that_cannot_be_split_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--vary train\.lr: got"):
        grid.read_vary([f"train.lr={text}"])


def test_seeds_are_a_number_or_a_list() -> None:
    assert grid.read_seeds("3", 5) == [5, 6, 7]
    assert grid.read_seeds("3,", 5) == [3]
    assert grid.read_seeds("0, 7,2", 5) == [0, 7, 2]
    for text in ("", "0", "-1", "x", "1,1", ",", "1,,2", "4294967296,", "2000", "1.5"):
        with pytest.raises(ConfigError, match="--seeds: got"):
            grid.read_seeds(text, 0)


def test_drawn_grids_have_every_combination_once(plan: Any) -> None:
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    pool: dict[str, list[Any]] = {
        "train.lr": [1e-3, 2e-3, 5e-4],
        "schedule.cycle": [4, 8, 12],
        "train.betas": [[0.9, 0.95], [0.8, 0.9]],
        "eval.every": [0, 2],
    }
    for _ in range(4):
        chosen = {
            key: draw.sample(pool[key], draw.randint(1, len(pool[key])))
            for key in draw.sample(list(pool), draw.randint(1, 3))
        }
        seeds = draw.sample(range(50), draw.randint(1, 3))
        methods = draw.sample(["siri", "stair", "constant-min"], draw.randint(0, 2))
        made = plan(
            vary=[f"{k}={','.join(map(json.dumps, v))}" for k, v in chosen.items()],
            methods=methods,
            seeds=",".join(map(str, seeds)) + ",",
        )
        cells = math.prod(map(len, chosen.values()))
        assert len(made.arms) == cells * max(1, len(methods)), seed
        assert len({arm.name for arm in made.arms}) == len(made.arms), seed
        wanted = {
            (method, *cell)
            for method in methods or [None]
            for cell in _product([list(map(json.dumps, v)) for v in chosen.values()])
        }
        got = set()
        for arm in made.arms:
            (member,) = arm.members
            assert list(member.runs) == seeds, seed
            for number, run in member.runs.items():
                dumped = run.config.model_dump(mode="json")
                assert run.config.seed == number, seed
                values = tuple(json.dumps(_at(dumped, key)) for key in chosen)
                got.add((arm.method, *values))
        assert got == wanted, seed
        # Constant caps have no cycle, but its number still differs; so no two runs are equal.
        assert len(made.runs) == len(made.arms) * len(seeds), seed


def _product(columns: list[list[str]]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]
    for column in columns:
        found = [(*one, value) for one in found for value in column]
    return found


def _at(section: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        section = section[part]
    return section


def test_runs_lie_in_folders_of_their_own(plan: Any, tmp_path: Path) -> None:
    made = plan(methods=["siri"], vary=["train.lr=0.001,0.002"], seeds="2")
    assert [str(run.folder.relative_to(tmp_path / "out")) for run in made.runs] == [
        "siri+lr=0.001/seed-0", "siri+lr=0.002/seed-0",
        "siri+lr=0.001/seed-1", "siri+lr=0.002/seed-1",
    ]  # fmt: skip
    assert all(run.config.run_dir == run.folder for run in made.runs)
    odd = plan(vary=["data.instruction=a/b,a:b,'x, y'"])
    assert len({arm.name for arm in odd.arms}) == 3
    assert not any("/" in arm.name for arm in odd.arms)


def test_equal_settings_are_trained_once(plan: Any) -> None:
    made = plan(
        methods=["constant-max", "constant-best", "constant-min"], caps=(24, 40, 56), seeds="2"
    )
    longest, best, shortest = made.arms
    assert [member.cap for member in best.members] == [24, 40, 56]
    assert best.members[2].runs == longest.members[0].runs
    assert shortest.members[0].runs == best.members[0].runs
    assert len(made.runs) == 3 * 2
    assert best.same_as is None
    again = plan(methods=["siri", "stair"], vary=["schedule.shape=cosine"])
    assert again.arms[1].same_as == again.arms[0].name and len(again.runs) == 1


def test_all_arms_are_evaluated_at_the_same_budgets(plan: Any) -> None:
    made = plan(methods=["siri", "constant-min"], vary=["schedule.max_len=48,64"])
    assert {tuple(run.config.budgets) for run in made.runs} == {(24, 48, 56, 64)}
    given = plan(methods=["siri", "constant-min"], overrides=["eval.budgets=[10, 30]"])
    assert {tuple(run.config.budgets) for run in given.runs} == {(10, 30)}
    once = plan(vary=["eval.budgets=[10, 20]", "train.lr=0.001,0.002"])
    assert {tuple(run.config.budgets) for run in once.runs} == {(10, 20)}


def test_the_command_line_takes_every_name_of_a_row() -> None:
    assert sorted(arguments.CHECKPOINTS) == sorted(figures.CHECKPOINTS)


def test_a_method_starts_from_varied_caps(plan: Any) -> None:
    """A short cap stays short where the long one is varied, and the other way round."""
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    low, high = sorted(draw.sample(range(20, 60), 2))
    caps = [f"schedule.max_len={high}", f"schedule.min_len={low}"]
    methods = ["constant-max", "constant-mean", "constant-min", "dler", "truncation", "siri"]
    mean = load_config("demo", [*caps, "train.steps=120"]).schedule.build().mean(120)
    for extra in ([], ["reward.options={limit: 7}"]):  # which only some methods take
        names = methods if not extra else ["dler", "truncation"]
        asked = Asked("demo", Path("x"), ["train.steps=120"], [*caps, *extra], names)
        ends = {}
        for arm in build_plan(asked).arms:
            schedule = arm.members[0].runs[0].config.schedule.build()
            ends[arm.method] = (schedule.lowest, max(schedule(t) for t in range(120)))
        wanted = {
            "constant-max": (high, high),
            "constant-mean": (math.floor(mean + 0.5),) * 2,
            "constant-min": (low, low),
            "dler": (low, low),
            "truncation": (high, high),
            "siri": (low, high),
        }
        assert ends == {name: wanted[name] for name in names}, seed


def test_varied_values_count_over_the_methods_own(plan: Any) -> None:
    made = plan(methods=["dler"], vary=["loss.clip_high=0.3,0.4"])
    assert [run.config.loss.clip_high for run in made.runs] == [0.3, 0.4]
    # Values that only the method's own reward takes.
    made = plan(methods=["l1-max"], vary=["reward.options={target: 30},{target: 40}"])
    assert [run.config.reward.options["target"] for run in made.runs] == [30, 40]


def test_a_budget_of_tokens_gives_steps_enough(plan: Any) -> None:
    made = plan(methods=["siri", "dler"], match="tokens", tokens=1600)
    for run in made.runs:
        # 16 responses a step, of a token at least.
        assert (run.config.train.max_tokens, run.config.train.steps) == (1600, 100)
    made = plan(methods=["siri", "constant-max"], match="tokens", seeds="2")
    assert [run.waits for run in made.runs] == [False, False, True, True]
    assert [run.seed for run in made.runs] == [0, 1, 0, 1]
    one = made.runs[2]
    one.limit(33)
    assert (one.config.train.max_tokens, one.config.train.steps, one.waits) == (33, 4, False)


def test_all_arms_start_from_the_supervised_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = Asked("smollm2-135m", tmp_path / "out", methods=["siri", "constant-max"])
    with pytest.raises(ConfigError, match=r"run `siri-train sft smollm2-135m` first"):
        require_start(build_plan(asked))
    start = Path("runs/smollm2-135m/sft")
    start.mkdir(parents=True)
    (start / "config.json").touch()
    made = build_plan(asked)
    require_start(made)
    assert {(run.config.model.path, run.config.sft) for run in made.runs} == {(str(start), None)}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"methods": ["sirri"]}, r"--method: got 'sirri'; .*did you mean siri\?"),
    "twice": ({"methods": ["siri", "siri"]}, "--method: got siri,siri; takes each name once"),
    "seed": ({"vary": ["seed=1,2"]}, "--vary seed: --seeds gives"),
    "output": ({"vary": ["output=a,b"]}, "--vary output: --out gives"),
    "folder": ({"overrides": ["output=x"]}, "output: --out gives"),
    "sign": ({"vary": ["train.lr"]}, "--vary: got 'train.lr'; takes KEY=VALUE"),
    "same key": ({"vary": ["train.lr=1", "train.lr=2"]}, "--vary: got train.lr twice"),
    "same value": ({"vary": ["train.lr=1.0,1.0"]}, "--vary train.lr: .* twice"),
    "key": ({"vary": ["train.learn=1,2"]}, "2 of 2 arms cannot run: learn=1: .*train.learn"),
    "budgets": (
        {"vary": ["eval.budgets=[24],[30]"]}, "--vary: eval.budgets of budgets=30 seed 0 is not"
    ),
    "questions": ({"vary": ["data.eval.0.seed=1,2"]}, "--vary: data.eval of .* is not that of"),
    "tokens": ({"tokens": 5}, "--tokens: is the budget of --match tokens"),
    "caps": ({"caps": (30,)}, "--caps: are those of --method constant-best"),
    "far cap": ({"methods": ["constant-best"], "caps": (99,)}, "--caps: got 99; .* 24 to 56"),
    "sweep": ({"methods": ["constant-best"], "match": "tokens"}, "put another method first"),
    "own budget": (
        {"match": "tokens", "overrides": ["train.max_tokens=9"]}, "train.max_tokens: got 9"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_planned_is_refused(plan: Any, case: str) -> None:
    asked, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        plan(**asked)
    assert "\n" not in str(caught.value)


def test_every_arm_that_cannot_run_is_named(plan: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(vary=["schedule.cycle=3,4,5", "train.lr=0.1,99.0"])
    told = str(caught.value)
    assert told.startswith("5 of 6 arms cannot run: ")
    for name in ("cycle=3+lr=0.1", "cycle=3+lr=99.0", "cycle=4+lr=99.0", "cycle=5+lr=0.1"):
        assert f"{name}: " in told
    assert "cycle=4+lr=0.1: " not in told


@pytest.mark.parametrize("recipe_name", RECIPES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_fits_the_packaged_recipes(
    name: str, recipe_name: str, tmp_path: Path
) -> None:
    made = build_plan(Asked(recipe_name, tmp_path, methods=[name]))
    base = load_config(recipe_name)
    for run in made.runs:
        config = run.config
        assert config.reward.function in REWARDS and config.schedule.shape in SHAPES
        assert config.schedule.max_len <= base.schedule.max_len
        assert config.budgets == base.budgets
        # Nothing but the method changes.
        before, now = settings(base), settings(config)
        assert [k for k in now if now[k] != before[k] and k in ("data", "model", "sft")] == []


def test_methods_are_what_their_papers_say(plan: Any) -> None:
    def of(name: str) -> Any:
        return plan(methods=[name]).runs[0].config

    mean = sum(load_config("demo").schedule.build()(t) for t in range(240)) / 240
    demo = build_plan(Asked("demo", Path("x"), methods=["constant-mean"])).runs[0].config
    assert demo.schedule.max_len == demo.schedule.min_len == math.floor(mean + 0.5)
    dler = of("dler")
    assert dler.schedule.build()(3) == 24 and dler.schedule.build().constant
    assert dler.reward.function == "truncation" and dler.reward.options == {"limit": 24}
    assert dler.advantage.scale == "batch_std" and dler.rollout.dynamic
    assert (dler.loss.clip_low, dler.loss.clip_high) == (0.2, 0.28)
    dapo = of("dapo")
    assert dapo.schedule.build()(2) == 56 and dapo.schedule.build().constant
    assert dapo.reward.options == {"buffer": 11, "penalty": 1.0, "wrong": -1.0}
    assert dapo.loss.aggregation == "token-mean" and dapo.rollout.dynamic
    exact = of("l1-exact")
    assert exact.reward.function == "l1-exact" and exact.reward.options["target"] == 24
    assert exact.reward.options["weight"] * 56 == pytest.approx(3e-4 * 4096, rel=1e-3)
    large = build_plan(Asked("siri-1.5b", Path("x"), methods=["l1-max"])).runs[0].config
    assert large.reward.options == {"target": 8192, "weight": 3e-4}
    cut = of("truncation")
    assert cut.reward.options == {"limit": 24} and cut.schedule.build()(0) == 56
