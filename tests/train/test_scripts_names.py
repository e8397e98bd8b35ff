"""Names and folders by which scripts outside the project use it stay where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import siri_train
from siri_train.config import ConfigError
from siri_train.recipe import load_config, parse_config
from siri_train.rewards import make_verifier
from tests.train.conftest import TINY


def test_recipes_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(TINY))
    assert load_config(tmp_path / "a.yaml", ["train.steps=7"]).train.steps == 7
    with pytest.raises(ConfigError, match=r"train\.steps"):
        parse_config(TINY, ["train.steps=x"])


@pytest.mark.parametrize("kind", ["exact", "math_verify"])
def test_answers_are_graded(kind: str) -> None:
    managed: Any = make_verifier(kind)
    with managed as verifier:
        pairs = [("42.0", "42"), ("41", "42"), (None, "42")]
        assert verifier.grade_many(pairs) == [True, False, False]


def test_the_embedded_start_is_a_model_folder() -> None:
    (folder,) = Path(siri_train.__file__).parent.rglob("embedded_start")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }
