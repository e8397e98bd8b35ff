"""What a phase does to accuracy, from the records of runs whose figures are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.workloads import phases
from bench.workloads.phases import as_json, contrasts, page, read_phases
from siri_train.config.recipe import load_config
from siri_train.monitor.question_records import FILE, QuestionRecord

QUESTIONS = 200


def record(step: int, right: int) -> QuestionRecord:
    """The first ``right`` questions are answered; a response has 10 tokens and one more a step."""
    counts = tuple(int(place < right) for place in range(QUESTIONS))
    ids = tuple(f"q{place}" for place in range(QUESTIONS))
    return QuestionRecord(
        step, "test", (20, 52), 1, ids, "same", ((0,) * QUESTIONS, counts),
        (10.0 + step,) * QUESTIONS,
    )  # fmt: skip


def ablation(folder: Path, arms: dict[str, dict[int, int]]) -> Path:
    """An ablation over shapes with two seeds; the second has one answer more everywhere."""
    plan = {"set": "test", "arms": [], "runs": []}
    for shape, right in arms.items():
        name = f"schedule.shape={shape}"
        plan["arms"].append(
            {"name": name, "method": None, "members": [{"name": "", "overrides": [name]}]}
        )
        for seed in (0, 1):
            run = folder / shape / f"seed-{seed}"
            run.mkdir(parents=True)
            config = load_config("demo", [name, "schedule.cycle=40", "train.steps=80"])
            (run / "config.yaml").write_text(config.to_yaml())
            rows = [record(step, count + seed).row() for step, count in right.items()]
            (run / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
            plan["runs"].append(
                {"run": f"{name} seed {seed}", "folder": run.relative_to(folder).as_posix()}
            )
    (folder / "ablate.json").write_text(json.dumps(plan))
    return folder


COSINE = {0: 40, 10: 80, 20: 120, 30: 140, 40: 160, 50: 158, 60: 150, 70: 160, 80: 180}
STAIR = {0: 40, 10: 60, 20: 90, 30: 130, 40: 160, 50: 100, 60: 110, 70: 150, 80: 180}


def test_every_phase_has_its_change_and_its_steepest_fall(tmp_path: Path) -> None:
    found = read_phases(ablation(tmp_path, {"cosine": COSINE, "stair": STAIR}))
    assert [(one.kind, one.number, one.begin, one.end) for one in found[:4]] == [
        ("compression", 1, 0, 20),
        ("expansion", 1, 20, 40),
        ("compression", 2, 40, 60),
        ("expansion", 2, 60, 80),
    ]
    changes = [one.changes.mean() * QUESTIONS for one in found]
    assert np.allclose(changes, [80, 40, -10, 30, 50, 70, -50, 70])
    assert [one.steepest[1] for one in found] == [0, 20, 60, 60, 0, 20, 50, 60]
    assert np.allclose([one.steepest[0] * QUESTIONS for one in found], [0, 0, 8, 0, 0, 0, 60, 0])
    assert found[2].tokens == (50.0, 70.0)


def test_arms_are_compared_in_every_figure(tmp_path: Path) -> None:
    found = read_phases(ablation(tmp_path, {"cosine": COSINE, "stair": STAIR}))
    compared = {one.figure: one for one in contrasts(found)}
    expected = {
        "accuracy at the last compressed end": (40, "higher"),
        "accuracy at the last expanded end": (0, "no difference shown"),
        "change in the last compression, from the second on": (40, "higher"),
        "gain in the last expansion": (-40, "lower"),
    }
    assert {
        figure: (round(one.paired.difference * QUESTIONS), one.verdict)
        for figure, one in compared.items()
    } == expected
    told = page(found, list(compared.values()))
    assert "| shape stair | compression 2 | 40 - 60 | 80.2 -> 55.2 | -25.0 (" in told
    assert "-30.0 until 50" in told
    assert json.loads(json.dumps(as_json(found, list(compared.values()))))["contrasts"]


def test_arms_without_such_a_phase_are_left_out(tmp_path: Path) -> None:
    """One cycle has no second compression; a constant cap has no phase."""
    folder = ablation(tmp_path, {"cosine": COSINE, "constant": COSINE})
    assert {one.arm for one in read_phases(folder)} == {"schedule.shape=cosine"}
    assert contrasts(read_phases(folder)) == []


def test_a_method_is_one_value_of_its_name(tmp_path: Path) -> None:
    """The settings of methods are of different number, and none of them is what is compared."""
    folder = ablation(tmp_path, {"cosine": COSINE, "stair": STAIR, "constant": COSINE})
    plan = json.loads((folder / "ablate.json").read_text())
    names = ("siri", "stair", "constant-max")
    for arm, name in zip(plan["arms"], names, strict=True):
        for run in plan["runs"]:
            run["run"] = run["run"].replace(arm["name"] + " seed", name + " seed")
        arm["name"] = arm["method"] = name
        arm["members"][0]["overrides"] += [f"schedule.max_len={50 + len(name)}"]
    (folder / "ablate.json").write_text(json.dumps(plan))
    found = read_phases(folder)
    compared = contrasts(found)
    told = page(found, compared)
    assert "| method siri | compression 2 | 40 - 60 |" in told
    assert "| method siri less method stair |" in told and "constant-max" not in told
    assert {len(one.first) for one in compared} == {1} and len(compared) == 4
    plan["arms"][0]["name"] = "siri+cycle=40"
    plan["runs"][0]["run"], plan["runs"][1]["run"] = (f"siri+cycle=40 seed {i}" for i in (0, 1))
    (folder / "ablate.json").write_text(json.dumps(plan))
    assert "| method siri, cycle 40 | compression 2 |" in page(read_phases(folder), [])
    alone = [one for one in found if one.arm == "siri"]
    assert page(alone, contrasts(alone)).count("\n") == 2 + len(alone)


def test_a_phase_that_the_end_of_the_run_cuts_is_no_phase(tmp_path: Path) -> None:
    folder = ablation(tmp_path, {"cosine": {s: n for s, n in COSINE.items() if s <= 70}})
    for path in folder.glob("cosine/*/config.yaml"):
        path.write_text(path.read_text().replace("steps: 80", "steps: 70"))
    assert [(one.kind, one.end) for one in read_phases(folder)] == [
        ("compression", 20), ("expansion", 40), ("compression", 60),
    ]  # fmt: skip


def test_an_end_without_evaluation_is_named(tmp_path: Path) -> None:
    folder = ablation(tmp_path, {"cosine": {s: n for s, n in COSINE.items() if s != 60}})
    with pytest.raises(ValueError, match="no evaluation after 60 steps"):
        read_phases(folder)


def test_keys_are_told_apart() -> None:
    short = {"schedule.shape": "stair", "schedule.cycle": "60"}
    assert phases._values(short) == "shape stair, cycle 60"
    alike = {"loss.compression.entropy_coef": "0.1", "loss.expansion.entropy_coef": "0.2"}
    assert phases._values(alike) == "compression.entropy_coef 0.1, expansion.entropy_coef 0.2"
