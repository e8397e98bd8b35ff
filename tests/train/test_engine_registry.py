"""The table of engines: everybody asks it, and the how-to of CONTRIBUTING.md adds one."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from siri_train.commands import doctor
from siri_train.config import engines
from siri_train.config.base import ConfigError
from siri_train.config.engines import EngineSpec
from siri_train.config.reference import reference
from siri_train.train import train
from siri_train.trainer.preflight import check_rollout
from tests.snippets import snippets

SOURCE = Path(engines.__file__).parents[1]


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(engines, "ENGINES", dict(engines.ENGINES))


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that CONTRIBUTING.md shows, as a file on the path, imported as a plug-in is."""
    (code,) = [s.code for s in snippets() if "class PlainEngine" in s.code]
    (tmp_path / "my_engine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("my_engine")
    sys.modules.pop("my_engine")


def compared(path: Path) -> list[str]:
    """Lines of a module that compare something with the name of an engine."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            parts = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        else:
            continue
        names = {part.value for part in parts if isinstance(part, ast.Constant)}
        if names & {*engines.names()}:
            found.append(f"{path.name}:{getattr(node, 'lineno', 0)}")
    return found


def test_no_module_compares_with_an_engines_name(tmp_path: Path) -> None:
    """What an engine can do is asked of the table; a comparison would miss the next engine."""
    verl = SOURCE / "integrations"  # other trainers have engines of the same names
    modules = [p for p in sorted(SOURCE.rglob("*.py")) if verl not in p.parents]
    assert len(modules) > 100 and [line for p in modules for line in compared(p)] == []
    planted = tmp_path / "planted.py"
    planted.write_text(
        "if a == 'vllm':\n    pass\nb = 'vllm-server' not in c\nif d in ('x', 'transformers'):\n"
        "    pass\nmatch a:\n    case 'vllm':\n        pass\n"
    )
    assert compared(planted) == [f"planted.py:{n}" for n in (1, 3, 4, 7)]


@pytest.mark.costly
def test_an_engine_of_ones_own_trains(tiny: Any, plain: Any) -> None:
    config = tiny(
        "rollout.engine=plain", "train.steps=2", "rollout.prompts=2", "rollout.shards=2",
        "schedule.max_len=20", "schedule.min_len=12", "data.eval.0.size=4", "rollout.probe.every=1",
    )  # fmt: skip
    run = train(config)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["groups"] == 2 and row["tokens"] for row in rows)
    assert all(row["probe_logprob_diff"] < 1e-5 for row in rows)
    assert "engine: plain" in (run / "config.yaml").read_text()


def test_pages_and_doctor_name_it(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_backends", list)
    assert "  ok  plain" in doctor.doctor().splitlines()
    assert "plain" in engines.names()
    assert f"one of {', '.join(engines.names())}" in reference()


def test_what_it_cannot_do_is_refused(tiny: Any, plain: Any) -> None:
    with pytest.raises(ConfigError, match="the engine plain cannot .*=transformers or vllm-server"):
        check_rollout(tiny("rollout.engine=plain", "rollout.asynchronous=true"))
    with pytest.raises(ConfigError, match="did you mean plain"):
        tiny("rollout.engine=plane")


def test_a_name_is_taken_once_and_functions_are_named_whole(tiny: Any) -> None:
    for name in engines.names():
        with pytest.raises(ValueError, match=f"engine '{name}' already"):
            engines.register(name, EngineSpec(build="a:b"))
    with pytest.raises(ValueError, match="check of 'x' is 'a.b'; takes package.module:function"):
        engines.register("x", EngineSpec(build="a:b", check="a.b"))
    with pytest.raises(ConfigError, match=f"one of {', '.join(engines.names())}"):
        tiny("rollout.engine=x")


def test_the_page_has_a_row_for_each() -> None:
    page = (SOURCE.parent / "docs" / "rollouts.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `([\w-]+)`(?: \(default\))? \|", page.split("## Engines")[1], re.MULTILINE
    )
    assert rows[: len(engines.names())] == [*engines.names()]


@pytest.mark.parametrize("name", engines.names())
def test_functions_of_the_table_exist(name: str) -> None:
    spec = engines.ENGINES[name]
    for text in (spec.build, spec.check, spec.diagnose):
        assert text is None or callable(engines.function(text))
