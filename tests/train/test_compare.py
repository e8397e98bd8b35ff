"""``siri-train compare``: runs side by side on the same questions."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from siri_train.cli import main
from siri_train.commands.compare import as_json, compare, covered
from siri_train.commands.compare_text import comparison_text
from siri_train.config.base import ConfigError
from siri_train.monitor.question_records import FILE, QuestionRecord, fingerprint
from siri_train.statistics.paired import paired_test

QUESTIONS = 60
ASKED = [(f"question {q}", str(q)) for q in range(QUESTIONS)]


def record(
    rng: np.random.Generator, step: int | None, accuracy: float, tokens: float, name: str | None
) -> QuestionRecord:
    """Four samples a question; the right ones within 8 tokens are some of those within 64."""
    right = rng.binomial(4, accuracy, size=QUESTIONS)
    return QuestionRecord(
        step, name, (8, 64), 4, tuple(f"q{q}" for q in range(QUESTIONS)),
        fingerprint([(name or "", ""), *ASKED]),
        (tuple(rng.binomial(right, 0.5).tolist()), tuple(right.tolist())),
        tuple(np.round(rng.uniform(tokens - 2, tokens + 2, QUESTIONS), 3).tolist()),
    )  # fmt: skip


def figures(one: QuestionRecord) -> dict[str, Any]:
    accuracy = [float(np.mean(one.shares(place))) for place in (0, 1)]
    return {
        "accuracy": accuracy, "accuracy_interval": [[0, 1]] * 2, "pass_at_k": accuracy,
        "tokens": float(np.mean(one.tokens)), "backtrack_per_1k": 0.0,
    }  # fmt: skip


def write(
    folder: Path,
    rng: np.random.Generator,
    plan: list[tuple[int, str | None, float, float]],
    sets: tuple[str, ...] = (),
    select: str | None = None,
) -> list[QuestionRecord]:
    """A run's folder with its evaluations: (step, name, accuracy, tokens) each."""
    folder.mkdir(parents=True)
    written = []
    with (folder / FILE).open("w") as file, (folder / "eval.jsonl").open("w") as evals:
        for step, name, accuracy, tokens in plan:
            records = [record(rng, step, accuracy, tokens, of) for of in sets or (None,)]
            written += records
            file.writelines(json.dumps(one.row()) + "\n" for one in records)
            by_set = {one.set: figures(one) for one in records}
            row = {"step": step, "name": name, "budgets": [8, 64]}
            row |= by_set[select or records[0].set]
            row |= {"set": select or sets[0], "sets": by_set} if sets else {}
            evals.write(json.dumps(row) + "\n")
    return written


@pytest.fixture
def rng() -> np.random.Generator:
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    return np.random.default_rng(seed)


SIRI = [
    (0, "start", 0.4, 40.0), (10, None, 0.3, 39.0), (20, "siri-low", 0.4, 20.0),
    (40, "siri-high", 0.7, 36.0), (60, "siri-low", 0.68, 22.0), (80, "siri-high", 0.75, 34.0),
]  # fmt: skip
CONTROL = [(0, "start", 0.4, 40.0), (40, None, 0.5, 40.0), (80, None, 0.7, 38.0)]


def test_points_front_and_tests_by_hand(tmp_path: Path, rng: np.random.Generator) -> None:
    siri = write(tmp_path / "siri", rng, SIRI)
    control = write(tmp_path / "constant", rng, CONTROL)
    found = compare([tmp_path])
    assert list(found.runs) == ["siri", "constant"]  # the run with cycles first
    assert [point.record for point in found.points] == siri + control
    means = [(float(np.mean(r.tokens)), float(np.mean(r.shares()))) for r in siri + control]
    beaten = [
        any(t <= x and a >= y and (t, a) != (x, y) for t, a in means) for x, y in means
    ]  # fmt: skip
    assert found.dominated == beaten
    pairs = [
        ((t.first.run, t.first.name, t.first.step), (t.second.run, t.second.step))
        for t in found.tests
    ]
    assert pairs == [
        (("siri", "siri-low", 60), ("siri", 0)),
        (("siri", "siri-high", 80), ("siri", 0)),
        (("constant", None, 80), ("constant", 0)),
        (("siri", "siri-low", 60), ("constant", 80)),
        (("siri", "siri-high", 80), ("constant", 80)),
    ]
    low = found.tests[3]
    assert low.accuracy == paired_test(siri[4].shares(), control[2].shares())
    assert low.tokens.difference == pytest.approx(means[4][0] - means[8][0])
    assert found.verdicts[0] == ("higher", "lower")  # 28 points and half the tokens
    for test, (_, p_value) in zip(found.tests, found.corrected, strict=True):
        assert p_value >= test.tokens.p_value


def test_json_and_text_say_the_same(
    tmp_path: Path,
    rng: np.random.Generator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # tables in one piece
    siri = write(tmp_path / "siri", rng, SIRI)
    write(tmp_path / "constant", rng, CONTROL)
    runs = [str(tmp_path / "siri"), str(tmp_path / "constant")]
    assert main(["compare", *runs]) == 0
    text = capsys.readouterr().out
    assert main(["compare", *runs, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values == json.loads(json.dumps(as_json(compare([Path(run) for run in runs]))))
    assert (values["questions"], values["budget"], values["set"]) == (QUESTIONS, 64, None)
    low = values["runs"][0]["checkpoints"][4]
    assert low["name"] == "siri-low" and low["step"] == 60
    assert low["accuracy"] == pytest.approx(np.mean(siri[4].shares()))
    start = values["runs"][0]["checkpoints"][0]
    ratio = (low["accuracy"] / start["accuracy"] - 1) / (low["tokens"] / start["tokens"])
    assert low["gain_per_length"] == pytest.approx(ratio) and start["gain_per_length"] == 0
    line = next(line for line in text.splitlines() if re.search(r"siri-low +\| +60 ", line))
    assert f"{100 * low['accuracy']:.1f} % (" in line and f"{ratio:.3f}" in line
    assert line.rstrip(" |").endswith("on it")
    for test in values["tests"]:
        assert test["accuracy"]["verdict"] in text and test["first"]["run"] in text
    assert "corrected for 5 tests (Holm)" in text and "another training seed" in text


def test_the_hypervolume_is_a_mean_of_best_accuracies(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    write(tmp_path / "siri", rng, SIRI)
    points = compare([tmp_path / "siri"]).runs["siri"]
    lengths = np.linspace(0, 64, 200_001)[1:]
    best = np.zeros_like(lengths)
    for point in points:
        best = np.maximum(best, np.where(lengths >= point.tokens, point.accuracy, 0))
    area, (low, high) = covered(points)
    assert area == pytest.approx(best.mean(), abs=1e-4) and low < area < high


def test_sets_and_the_one_that_selects(tmp_path: Path, rng: np.random.Generator) -> None:
    sets = ("aime", "math", "validation")
    written = write(tmp_path / "siri", rng, SIRI, sets, "validation")
    for name in (None, "aime", "math"):
        found = compare([tmp_path / "siri"], name)
        assert found.record.set == (name or "aime")
    by = {(one.step, one.set): one for one in written}
    values = as_json(compare([tmp_path / "siri"]))
    (low,) = [c for c in values["runs"][0]["checkpoints"] if c["step"] == 60]
    gains = [
        max(np.mean(by[60, s].shares()) / np.mean(by[0, s].shares()) - 1, 0)
        for s in ("aime", "math")
    ]
    rates = [np.mean(by[60, s].tokens) / np.mean(by[0, s].tokens) for s in ("aime", "math")]
    assert low["gain_per_length"] == pytest.approx(sum(gains) / sum(rates))
    alone = next(c for c in as_json(found)["runs"][0]["checkpoints"] if c["step"] == 60)
    assert alone["gain_per_length"] == pytest.approx(gains[1] / rates[1]), "--set: of it alone"
    assert "table" not in as_json(found) and values["table"]["selecting"] == ["validation"]
    with pytest.raises(ConfigError, match="--set gsm: siri has no such set; it has aime, math, v"):
        compare([tmp_path / "siri"], "gsm")


def test_checkpoints_that_eval_has_graded(tmp_path: Path, rng: np.random.Generator) -> None:
    folders = []
    for step in (40, 80):
        folder = tmp_path / "siri" / "checkpoints" / f"step_{step:06d}"
        folder.mkdir(parents=True)
        one = record(rng, step, step / 100, 30.0, None)
        (folder / FILE).write_text(json.dumps(one.row()) + "\n")
        folders.append(folder)
    model = tmp_path / "my-model"
    model.mkdir()
    (model / FILE).write_text(json.dumps(record(rng, None, 0.5, 30.0, None).row()) + "\n")
    found = compare([*folders, model])
    assert list(found.runs) == ["siri/step_000040", "siri/step_000080", "my-model"]
    assert [(t.first.run, t.second.run) for t in found.tests] == [
        ("siri/step_000040", "siri/step_000080"), ("siri/step_000040", "my-model"),
        ("siri/step_000080", "my-model"),
    ]  # fmt: skip
    assert found.verdicts[0][0] == "lower"
    text = comparison_text(found)
    assert "| my-model " in text and "dAcc/CR" in text
    assert len(compare([model, model]).runs) == 1 and compare([model]).tests == []


def test_a_start_without_a_right_answer_has_no_ratio(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    write(tmp_path / "siri", rng, [(0, "start", 0.0, 40.0), (9, "siri-low", 0.5, 30.0)])
    found = compare([tmp_path / "siri"])
    assert [c["gain_per_length"] for c in as_json(found)["runs"][0]["checkpoints"]] == [None] * 2
    assert "| - " in comparison_text(found).replace("|       - ", "| - ")


def test_what_cannot_be_compared_is_refused_in_one_line(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(tmp_path / "one", rng, CONTROL)
    other = replace(one[0], fingerprint=fingerprint(ASKED[1:]))
    longer = replace(one[0], budgets=(8, 128))
    for name, changed in (("other", other), ("longer", longer)):
        (tmp_path / name).mkdir()
        (tmp_path / name / FILE).write_text(json.dumps(changed.row()) + "\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "ablate.json").write_text("{}")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / FILE).write_text("{]\n")
    for name, said in (
        ("other", "other (step 0) and one start (step 0) answered other questions"),
        ("longer", "was evaluated within 128 tokens, one start (step 0) within 64"),
        ("empty", "holds no evaluation question by question"),
        ("ablation", "is the folder of an ablation, whose table is in ablate.md"),
        ("damaged", "holds no whole record"),
        ("nowhere", "is not a folder"),
    ):
        assert main(["compare", str(tmp_path / "one"), str(tmp_path / name)]) == 1, name
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
