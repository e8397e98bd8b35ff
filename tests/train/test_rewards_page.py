"""docs/rewards.md: every reward function and option that there is, with its default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from siri_train.config.loss import SasConfig
from siri_train.rewards import REWARDS

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([\w-]+)`(?: \(default\))? \|(.*)\|(.*)\|([^|]*)\|$", re.MULTILINE)


def default(words: str) -> Any:
    """The default as the page writes it; what has none must be given."""
    words = re.sub(r"\(.*\)", "", words).strip()
    return yaml.safe_load(words) if words else None


def test_the_table_has_every_reward_with_its_options() -> None:
    rows = {name: (options, source) for name, _, options, source in ROW.findall(PAGE)}
    assert list(rows) == list(dict.fromkeys(rows)) and set(rows) == set(REWARDS)
    for name, (options, source) in rows.items():
        listed = re.findall(r"`(\w+)`([^`]*?)(?:,(?= `)|$)", options.strip())
        assert {key: default(words) for key, words in listed} == REWARDS[name].options, name
        assert source.strip()


def test_the_page_describes_every_key_of_sas() -> None:
    (section,) = re.findall(r"^## Step-level advantage selection\n(.*)", PAGE, re.M | re.S)
    assert all(f"`{key}" in section for key in SasConfig.model_fields)
