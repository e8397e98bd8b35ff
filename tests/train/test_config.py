"""Configuration: recipes, overrides, and errors that name the key and the nearest valid one."""

from __future__ import annotations

from pathlib import Path

import pytest

from siri_train.config.base import ConfigError
from siri_train.config.recipe import RECIPES, load_config, parse_config


@pytest.mark.parametrize("recipe", sorted(p.name for p in RECIPES.glob("*.yaml")))
def test_packaged_recipes_are_valid_and_round_trip(recipe: str, tmp_path: Path) -> None:
    config = load_config(recipe)
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config


def test_recipe_is_found_by_path_and_by_packaged_name(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("schedule: {max_len: 32, min_len: 16, cycle: 8}\n")
    assert load_config(own).name == "mine"
    by_name = load_config("siri-1.5b")
    assert by_name == load_config("recipes/siri-1.5b.yaml")
    assert by_name.schedule.cycle == 640


def test_overrides_reach_sections_lists_and_missing_sections() -> None:
    config = parse_config(
        {"data": {"train": [{"kind": "embedded"}]}},
        [
            "train.steps=3",
            "train.lr=1e-5",
            "data.train.0.seed=4",
            "sft.steps=7",
            "eval.budgets=[4, 8]",
        ],
    )
    assert config.train.steps == 3
    assert config.train.lr == 1e-5
    assert config.data.train[0].seed == 4
    assert config.sft is not None and config.sft.steps == 7
    assert config.budgets == [4, 8]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.stps=3"], ["train.stps", "unknown key", "train.steps"]),
        (["schedul.cycle=3"], ["schedul", "unknown key", "schedule"]),
        (["data.train=[{kind: embedded, pth: x}]"], ["data.train.0.pth", "data.train.0.path"]),
        (["schedule.cycle=0"], ["schedule.cycle", "got 0", "from 1 to 1000000"]),
        (["schedule.cycle=5"], ["schedule", "cycle", "5", "even"]),
        (["schedule.min_len=64", "schedule.max_len=32"], ["min_len", "64", "32"]),
        (["schedule.shape=cosin"], ["schedule.shape", "'cosin'", "cosine"]),
        (["train.lr=.nan"], ["train.lr", "got .nan", "a number above 0"]),
        (["train.lr=-1"], ["train.lr", "got -1", "above 0 up to 10"]),
        (["train.steps=three"], ["train.steps", "'three'", "whole number"]),
        (["rollout.group_size=1"], ["rollout.group_size", "got 1", "from 2 to"]),
        (["train.mini_batches=99999"], ["train.mini_batches", "99999", "2048"]),
        (["train.token_budget=10"], ["train.token_budget", "10", "schedule.max_len"]),
        (["eval.budgets=[0]"], ["eval.budgets.0", "got 0", "from 1 to"]),
        (["data.train=[{kind: file}]"], ["data.train.0", "path"]),
        (["data.train=[]"], ["data.train", "at least 1"]),
        (["train.steps"], ["'train.steps'", "KEY.SUBKEY=VALUE"]),
        (["train.steps.x=1"], ["train.steps"]),
        (["data.train.7.seed=1"], ["'7'"]),
        (["train.steps=[1"], ["train.steps", "'[1'", "does not end with ]"]),
        (["model.scratch.heads=5"], ["model.scratch", "heads (5)"]),
    ],
)
def test_wrong_input_names_the_key_and_what_is_accepted(
    overrides: list[str], expected: list[str]
) -> None:
    raw = {"train": {"steps": 5}, "data": {"train": [{"kind": "embedded"}]}}
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, overrides)
    for part in expected:
        assert part in str(caught.value)


def test_every_problem_is_named_in_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"train": {"steps": 0, "lr": 0}, "nam": 1})
    assert str(caught.value) == (
        "config: train.steps: got 0; takes a whole number from 1 to 1000000 "
        "(and 2 more: train.lr, nam)"
    )


def test_missing_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean smollm2-135m\.yaml"):
        load_config("smolm2-135m.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load_config(broken)
    broken.write_text("- 1\n")
    with pytest.raises(ConfigError, match="mapping of sections"):
        load_config(broken)
