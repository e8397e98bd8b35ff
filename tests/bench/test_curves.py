"""``python -m bench curves``: a difference that is there is found, one that is not is not."""

from __future__ import annotations

import json
import random

import pytest

from bench.__main__ import main
from bench.curves.paired import paired
from siri_train.config.recipe import parse_config
from siri_train.config.yaml_core import write_yaml

STEPS = 200


def drawn(generator: random.Random, level: float = 0.0) -> list[float | None]:
    """A series whose neighbours are alike (0.7), now and then without a value."""
    values: list[float | None] = []
    state = 0.0
    for _ in range(STEPS):
        state = 0.7 * state + generator.gauss(0, 1)
        values.append(None if generator.random() < 0.1 else level + state)
    return values


def covered(shift: float, block: int = 10) -> float:
    """Share of 100 drawn pairs whose interval holds the difference 0."""
    generator, inside = random.Random(3), 0
    for _ in range(100):
        found = paired(
            drawn(generator), drawn(generator, shift), block=block, draws=400
        )  # fmt: skip
        assert found is not None and found.low <= found.difference <= found.high
        inside += found.low <= 0 <= found.high
    return inside / 100


def test_no_difference_is_found_where_there_is_none_and_a_real_one_is():
    assert covered(0.0) >= 0.85
    assert covered(2.0) == 0.0


def test_single_steps_would_find_differences_that_are_not_there():
    assert covered(0.0, block=1) < 0.75


def test_steps_without_a_value_are_left_out():
    found = paired([1.0, None, 3.0, 4.0], [2.0, 7.0, None, 2.0])
    assert found is not None
    assert (found.difference, found.distance, found.steps) == (-0.5, 1.5, 2)
    assert paired([None], [1.0]) is None
    exact = paired([1.0, 2.0], [1.0, 2.0])
    assert exact is not None and (exact.low, exact.high, exact.distance) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"block \(0\)"):
        paired([1.0], [1.0], block=0)


def run_of(folder, changes=(), separates=STEPS, shift=0.0, seed=0):
    """A run's folder, the same as the first's until it separates, then shifted by ``shift``."""
    alike, alone = random.Random(0), random.Random(seed)
    config = parse_config({"name": "x"}, [f"output={folder}", *changes])
    (folder / "rollouts").mkdir(parents=True)
    (folder / "config.yaml").write_text(write_yaml(config.model_dump(mode="json")))
    lines = []
    for step in range(STEPS):
        value = alike.gauss(0, 1)
        if step >= separates:
            value = alone.gauss(0, 1) + shift
        screened = 0.9 if config.train.screen else None
        record = {"step": step, "accuracy": value, "loss": value, "entropy": None}
        lines.append(json.dumps({**record, "screened_frac": screened}))
        rows = [{"prompt": "?", "response": f"{value} {row}\u2028", "tokens": 2} for row in (0, 1)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"rollouts/step_{step:06d}.jsonl").write_text(text, encoding="utf-8")
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_from_folders_to_the_result(tmp_path, capsys):
    first = run_of(tmp_path / "a")
    screened = run_of(tmp_path / "b", ["train.screen=int8"], separates=30, seed=1)
    off = run_of(tmp_path / "c", ["seed=1"], separates=0, shift=1.0, seed=2)
    command = ["curves", first, screened, off, "--out", str(tmp_path), "--note", "drawn"]
    main([*command, "--recipe", "siri-1.5b"])
    result = json.loads((tmp_path / "curves.json").read_text())
    one, two = result["runs"]
    assert one["changed"] == {"train.screen": "int8"} and two["changed"] == {"seed": 1}
    assert one["steps_with_the_same_responses"] == 30 and one["screened_frac"] == pytest.approx(0.9)
    assert two["steps_with_the_same_responses"] == 0 and two["screened_frac"] is None
    assert one["largest_difference_until_then"]["loss"] == 0.0
    assert one["windows"][0]["same_responses"] == 0.6
    assert one["windows"][1]["same_responses"] == 0.0
    assert one["metrics"]["accuracy"]["low"] < 0 < one["metrics"]["accuracy"]["high"]
    assert two["metrics"]["accuracy"]["low"] > 0.5 and one["metrics"]["entropy"] is None
    (pair,) = result["among_others"]
    assert pair["runs"] == [0, 1] and pair["metrics"]["accuracy"]["low"] > 0.5
    assert result["note"] == "drawn" and result["overrides"]["data.template"] == "plain"
    assert not any(str(tmp_path) in line for line in (tmp_path / "curves.json").open())
    table = capsys.readouterr().out
    assert "| `train.screen=int8` | 200 | 90.0% |" in table and "| `seed=1` | 0 to 49 |" in table
    assert "| `seed=1` | `train.screen=int8` | 200 | +0.9 (" in table


def test_a_folder_that_is_no_run_is_named(tmp_path):
    first = run_of(tmp_path / "a")
    with pytest.raises(SystemExit, match="bench curves: .*none is no run"):
        main(["curves", first, str(tmp_path / "none")])
    metrics = tmp_path / "a/metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 4}\n')
    with pytest.raises(SystemExit, match="has not every step once"):
        main(["curves", first, first])
    good = run_of(tmp_path / "b")
    with pytest.raises(SystemExit, match="bench curves: .*no such file"):
        main(["curves", good, good, "--recipe", "nothing.yaml"])
