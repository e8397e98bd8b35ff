"""docs/configuration.md: every key, current, and the rules between keys that it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from siri_train.config import reference
from siri_train.config.base import ConfigError, Section
from siri_train.config.recipe import parse_config

from .fields import FIELDS

PAGE = reference.PAGE.read_text(encoding="utf-8")
ROW = re.compile(r"^\| (`.+?`) \| (.+?) \| (.+?) \| (.*?) \|$", re.MULTILINE)
ROWS = {
    key: row[1:]
    for row in ROW.findall(PAGE[PAGE.index(reference.BEGIN) :])
    for key in re.findall(r"`(.+?)`", row[0])
}


def test_page_is_current() -> None:
    assert reference.filled(PAGE) == PAGE, "run python -m siri_train.config.reference"


def test_page_has_every_key_and_no_other() -> None:
    assert set(ROWS) == {key.replace(".0.", ".N.") for key in FIELDS}


@pytest.mark.parametrize("key", sorted(ROWS))
def test_every_key_says_what_it_takes_its_default_and_what_it_is(key: str) -> None:
    takes, default, about = ROWS[key]
    assert takes and default
    assert about, f"{key}: give it a docstring in siri_train/config"
    assert "``" not in about


def test_defaults_on_the_page_are_those_of_an_empty_recipe() -> None:
    """Read back from the page as a recipe has them, they change nothing."""
    empty = parse_config({})
    plain = [k for k in ROWS if ".N." not in k and not k.startswith(("sft.", "model.scratch."))]
    optional = ("model.lora.", "loss.rollout_correction.", "advantage.sas.",
                "loss.compression.", "loss.expansion.")  # fmt: skip
    plain = [k for k in plain if not k.startswith(optional)]
    given = [f"{k}={ROWS[k][1].strip('`')}" for k in plain if ROWS[k][1][0] == "`"]
    assert len(given) > 70
    assert parse_config({}, given) == empty


class Inner(Section):
    """What is inside."""

    word: str = "a|b"
    """Has a ``mark`` | in it."""


class Outer(Section):
    """A page of its own."""

    count: int = Field(ge=2, le=10**6)
    """How many."""
    shape: Literal["x", "y"] | None = None
    """Which."""
    inner: Inner | None = None
    many: list[Inner] = []


def test_tables_of_sections_of_ones_own() -> None:
    text = reference.reference(Outer)
    assert "| `count` | a whole number from 2 to 1000000 | must be given | How many. |" in text
    assert "| `shape` | one of x, y, or null | `null` | Which. |" in text
    assert "| `inner` | a section, below, or null | `null` | What is inside. |" in text
    assert "| `many` | a list of sections, below | `[]` | What is inside. |" in text
    assert "| `inner.word`, `many.N.word` | text | `a\\|b` | Has a `mark` \\| in it. |" in text


RULES = [
    ["schedule.min_len=64", "schedule.max_len=32"],
    ["schedule.cycle=7"],
    ["train.token_budget=100"],
    ["train.mini_batches=5", "rollout.prompts=2", "rollout.group_size=2"],
    ["schedule.shape=toggle"],
    ["loss.rollout_correction=tis"],
    ["distributed.offload=true", "distributed.vocabulary_parallel_head=true"],
    ["train.screen=int8", "distributed.vocabulary_parallel_head=true"],
    ["rollout.server.url=http://h:1", "rollout.server.gpus=1"],
    ["data.train=[{kind: file}]"],
    ["data.train=[{kind: reasoning_gym}]"],
    ["model.scratch={heads: 5}"],
    ["model.scratch={kv_heads: 3}"],
    ["model.scratch={hidden_size: 12, heads: 4}"],
]


@pytest.mark.parametrize("overrides", RULES, ids=[" ".join(r) for r in RULES])
def test_rules_between_keys_are_those_of_the_page(overrides: list[str]) -> None:
    with pytest.raises(ConfigError):
        parse_config({}, overrides)
    for override in overrides:
        last = override.partition("=")[0].rpartition(".")[2]
        assert re.search(rf"\b{last}\b", PAGE.split("## Keys")[0]) or last in ("train", "scratch")


def test_the_command_writes_a_page_and_refuses_one_without_marks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{reference.BEGIN}\nold\n{reference.END}\nafter\n")
    assert reference.main([str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "\nold\n" not in text
    assert "`train.lr`" in text and reference.filled(text) == text
    page.write_text("no marks")
    assert reference.main([str(page)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(page) in error and reference.BEGIN in error
    assert page.read_text() == "no marks"
