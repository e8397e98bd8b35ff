"""Named evaluation sets in a recipe, and the records of evaluations question by question."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from siri_train.config.base import ConfigError
from siri_train.config.recipe import parse_config
from siri_train.data.gate import check_data
from siri_train.data.questions import Question
from siri_train.data.sources import read_evaluation, responses_in_all
from siri_train.monitor.question_records import (
    FILE,
    QuestionRecord,
    fingerprint,
    of_questions,
    read_question_records,
)
from siri_train.monitor.run_logs import keep_records, of_evaluation, reported
from siri_train.monitor.trackers import numbers
from siri_train.train import train

TWO = [
    {"kind": "embedded", "size": 6, "seed": 1, "name": "test"},
    {"kind": "embedded", "size": 5, "seed": 2, "name": "validation"},
    {"kind": "embedded", "size": 4, "seed": 3, "name": "test"},
]


@pytest.mark.parametrize(
    ("data", "overrides", "said"),
    [
        ({"eval": [TWO[0], {"kind": "embedded"}]}, (), "eval.1 has no name"),
        ({"train": [TWO[0]]}, (), "train.0.name (test): only sources of data.eval form sets"),
        ({"eval": TWO}, ["eval.select=dev"], "eval.select (dev) must be the name of a source"),
        ({"eval": TWO}, ["eval.select=dev"], "takes one of test, validation"),
        ({}, ["eval.select=dev"], "no source has a name"),
        ({"eval": [{"kind": "embedded", "name": "a/b"}]}, (), "takes the name of a set"),
        ({"eval": [{"kind": "embedded", "name": ""}]}, (), "takes the name of a set"),
        ({"train": [{"kind": "embedded", "samples": 4}]}, (), "train.0.samples (4): only sources"),
        ({"eval": [{**TWO[0], "samples": 0}]}, (), "data.eval.0.samples"),
        ({"eval": TWO}, ["data.eval.2.samples=4"], "eval.2.samples (4) and eval.0.samples (null)"),
        ({"eval": TWO}, ["data.eval.0.samples=4", "data.eval.2.samples=2"], "the set test, which"),
        (
            {"eval": [{"kind": "embedded"}, {"kind": "embedded", "samples": 2}]},
            (),
            "eval.1.samples (2) and eval.0.samples (null) are of one set",
        ),
    ],
)
def test_what_a_recipe_may_not_say(data: dict, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"data": data}, overrides)
    assert said in str(caught.value) and "data" in str(caught.value) and "\n" not in said


def test_sources_of_one_name_are_one_set() -> None:
    config = parse_config({"data": {"eval": TWO}}, [])
    questions = read_evaluation(config)
    assert [q.set for q in questions] == ["test"] * 6 + ["validation"] * 5 + ["test"] * 4
    assert config.data.set_names == ["test", "validation"]
    assert all(not q.set for q in read_evaluation(parse_config({}, ["data.eval.0.size=3"])))
    again = parse_config(config.model_dump(mode="json"), [])
    assert again.data == config.data


def test_a_set_may_have_its_own_number_of_samples() -> None:
    own = ["data.eval.0.samples=4", "data.eval.2.samples=4"]
    config = parse_config({"data": {"eval": TWO}}, [*own, "eval.samples=3"])
    assert (config.samples_of("test"), config.samples_of("validation")) == (4, 3)
    questions = [SimpleNamespace(set=question.set) for question in read_evaluation(config)]
    assert responses_in_all(config, questions) == 10 * 4 + 5 * 3  # type: ignore[arg-type]
    alone = parse_config({}, ["data.eval.0.samples=2", "eval.samples=9"])
    assert alone.samples_of("") == 2 and parse_config({}, ["eval.samples=9"]).samples_of("") == 9
    again = parse_config(config.model_dump(mode="json"), [])
    assert again.data == config.data


def test_a_set_that_selects_and_is_left_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("no reasoning_gym here")

    monkeypatch.setattr("siri_train.data.sources.reasoning_gym_questions", missing)
    gym = {"kind": "reasoning_gym", "task": "chain_sum", "name": "sums", "required": False}
    data = {"data": {"eval": [gym, TWO[0]]}}
    assert {q.set for q in read_evaluation(parse_config(data, []))} == {"test"}
    with pytest.raises(ConfigError, match=r"eval\.select: the set sums has no question"):
        read_evaluation(parse_config(data, ["eval.select=sums"]))


def test_a_small_set_in_the_training_data_is_refused_beside_a_large_one() -> None:
    """3 of 600 held-out questions would pass; they are all of a set."""
    train_set = [Question(f"t{i}", f"What is {i} + 1?", str(i + 1)) for i in range(50)]
    large = [Question(f"l{i}", f"What is {i} + 9?", str(i + 9), set="l") for i in range(100, 700)]
    small = [replace(question, set="small") for question in train_set[:3]]
    reward = parse_config({}, []).reward
    check_data(train_set, large, reward)
    with pytest.raises(ConfigError, match="data.eval, set small: 3 of 3 questions are also in"):
        check_data(train_set, [*large, *small], reward)


def record(step: int | None = 3, name: str | None = None, right: int = 2) -> QuestionRecord:
    questions = (("1+1", "2"), ("2+2", "4"))
    return QuestionRecord(
        step, name, (8, 16), 4, ("a", "b"), fingerprint(questions), ((0, 1), (right, 4)), (5.0, 7.5)
    )


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = [record(0), record(3, "x"), record(3, "y"), record(None)]
    lines = [json.dumps(one.row()) for one in written]
    (tmp_path / FILE).write_text("\n".join(lines) + "\n")
    assert read_question_records(tmp_path) == written
    assert written[1].shares() == [0.5, 1.0] and written[1].shares(0) == [0.0, 0.25]
    # A step written twice, a damaged line, and a half-written last one.
    later = record(0, right=1)
    more = [json.dumps(later.row()), "{]", lines[1][:40]]
    (tmp_path / FILE).write_text("\n".join([*lines, *more]))
    assert read_question_records(tmp_path) == [later, *written[1:]]
    assert read_question_records(tmp_path / "nowhere") == []


def test_a_fingerprint_knows_text_answer_and_order() -> None:
    base = [("1+1", "2"), ("2+2", "4")]
    others = [base[::-1], [("1+1", "3"), base[1]], [("1 +1", "2"), base[1]], base[:1]]
    assert fingerprint(base) == fingerprint(list(base))
    assert len({fingerprint(one) for one in (base, *others)}) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"budgets": []}, {"budgets": [8]}, {"budgets": [8, "16"]}, {"ids": ["a"]},
        {"ids": ["a", 2]}, {"right": [[0, 1], [2, 5]]}, {"right": [[0, 1], [2, -1]]},
        {"right": [[0, 1]]}, {"right": [[0, 1], [2, True]]}, {"tokens": [5.0]},
        {"tokens": [5.0, None]}, {"tokens": [5.0, float("nan")]}, {"samples": 0},
        {"samples": "4"}, {"step": -1}, {"step": 1.5}, {"set": 3}, {"fingerprint": None},
    ],
)  # fmt: skip
def test_what_is_no_record(change: dict[str, Any]) -> None:
    assert of_questions(record().row())
    assert not of_questions({**record().row(), **change})


def test_records_without_an_evaluation_are_removed(tmp_path: Path) -> None:
    """A run that is killed between the two files evaluates again when it continues."""
    path = tmp_path / FILE
    lines = [json.dumps(record(step).row()) + "\n" for step in (0, 2, 4, 6)]
    path.write_text("".join(lines) + lines[0][:30])
    keep_records(path, below=5, valid=of_questions, last=0, of_steps={0, 4})
    assert path.read_text() == lines[0] + lines[2]
    assert not list(tmp_path.glob("*.damaged"))


def test_a_run_that_is_continued_writes_the_same_records(tiny: Any, tmp_path: Path) -> None:
    own = [{**TWO[0], "samples": 3}, TWO[1], {**TWO[2], "samples": 3}]
    sets = f"data.eval={own}".replace("'", '"')
    whole = train(tiny(f"output={tmp_path / 'whole'}", sets, "train.steps=4", "eval.every=1"))
    folder = train(tiny(f"output={tmp_path / 'parts'}", sets, "train.steps=2", "eval.every=1"))
    # Killed after the records of an evaluation, before its row; and in the middle of a line.
    path = folder / FILE
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join(text) + json.dumps(json.loads(text[-1]) | {"step": 3}) + "\n{")
    train(tiny(f"output={folder}", sets, "train.steps=4", "eval.every=1"))
    assert path.read_text() == (whole / FILE).read_text()
    found, expected = (
        [{**json.loads(line), "seconds": 0} for line in (one / "eval.jsonl").open()]
        for one in (folder, whole)
    )
    assert found == expected
    records = read_question_records(folder)
    assert [(one.step, one.set) for one in records] == [
        (step, name) for step in range(5) for name in ("test", "validation")
    ]
    for row in map(json.loads, (folder / "eval.jsonl").read_text().splitlines()):
        for one in records:
            if one.step == row["step"]:
                shares = one.shares()
                found = row["sets"][one.set]["accuracy"][-1]
                assert sum(shares) / len(shares) == pytest.approx(found)


def figures(accuracy: float, tokens: float) -> dict[str, Any]:
    return {
        "accuracy": [accuracy / 2, accuracy], "accuracy_interval": [[0, 1], [0, 1]],
        "pass_at_k": [0.5, 0.75], "pass_at": {"1": [0.25, 0.5], "2": [0.5, 0.75]},
        "tokens": tokens, "tokens_interval": [1, 2], "backtrack_per_1k": 0.0, "samples": 2,
    }  # fmt: skip


ROW = {
    "step": 4, "name": None, "budgets": [8, 16], **figures(0.5, 9), "set": "validation",
    "sets": {"test": figures(0.25, 11), "validation": figures(0.5, 9)},
}  # fmt: skip


def test_what_is_shown_is_the_first_set() -> None:
    shown = reported(ROW)
    assert shown["accuracy"] == [0.125, 0.25] and shown["tokens"] == 11 and shown["step"] == 4
    plain = {key: value for key, value in ROW.items() if key not in ("set", "sets")}
    assert reported(plain) == plain


def test_a_damaged_set_makes_a_damaged_row() -> None:
    assert of_evaluation(ROW)
    assert of_evaluation({key: value for key, value in ROW.items() if key != "tokens_interval"})
    broken: dict[str, Any] = {"sets": {"test": figures(0.5, 9) | {"accuracy": [0.5]}}}
    for change in (broken, {"sets": 3}, {"sets": {"test": None}}, {"tokens_interval": [1, None]}):
        assert not of_evaluation({**ROW, **change}), change


def test_keys_of_trackers() -> None:
    flat = numbers("eval", ROW)
    assert flat["eval/accuracy@16"] == 0.5 and flat["eval/pass_at_2@8"] == 0.5
    assert flat["eval/test/accuracy@16"] == 0.25 and flat["eval/validation/tokens"] == 9
    assert flat["eval/test/pass_at_1@16"] == 0.5
    assert not any("sets" in key for key in flat)
    ends = [key for key in flat if "interval" in key]
    assert ends and all("_interval/low" in key or "_interval/high" in key for key in ends)
