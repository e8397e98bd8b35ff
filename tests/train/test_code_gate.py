"""Problems whose answer is a program, before a run: what is refused, and with which line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from siri_train.config.base import ConfigError
from siri_train.config.data import SourceConfig
from siri_train.config.recipe import load_config
from siri_train.data.code_gate import check_programs
from siri_train.data.gate import check_data, check_questions
from siri_train.data.questions import Question
from siri_train.data.sources import encode_questions, read_sources
from siri_train.rewards import CodeVerifier, ExactVerifier

ADD = {
    "text": "Add.",
    "code": "def add(a, b): return a + b",
    "test_list": ["assert add(1, 2) == 3"],
}


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    made = CodeVerifier(timeout=10.0, sandbox="best_effort")
    yield made
    made.close()


def source(tmp_path: Path, *rows: dict[str, Any]) -> SourceConfig:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(kind="file", format="code", path=str(file))


def read(tmp_path: Path, *rows: dict[str, Any]) -> list[Question]:
    return read_sources([source(tmp_path, *rows)], "train", "data.train")


def test_a_reference_that_fails_is_named(tmp_path: Path, verifier: CodeVerifier) -> None:
    wrong = {**ADD, "task_id": 7, "text": "Subtract.", "test_list": ["assert add(1, 2) == -1"]}
    questions = read(tmp_path, ADD, wrong, {**wrong, "text": "Again.", "task_id": 8})
    with pytest.raises(ConfigError) as error:
        check_questions(questions, "data.train", verifier)
    assert str(error.value) == (
        f"data.train: {tmp_path}/p.jsonl, line 2 (7): the reference fails its own tests (the "
        "tests: wrong); correct or drop the row; 2 of 3 rows are like this (also line 3 (8))"
    ).replace(f"{tmp_path}/p.jsonl", questions[0].where.rpartition(",")[0])


def test_good_problems_pass_and_those_without_a_reference_are_counted(
    tmp_path: Path, verifier: CodeVerifier
) -> None:
    bare = {"prompt": "Halve.", "test_list": ["assert halve(4) == 2"]}
    questions = read(tmp_path, ADD, bare)
    assert check_questions(questions, "data.train", verifier) == [
        "data.train: 1 of 2 problems have no reference to try their tests"
    ]


def test_code_with_tabs_is_not_taken_for_damaged_mathematics(
    tmp_path: Path, verifier: CodeVerifier
) -> None:
    # A tab before "imes" is a sign of a lost backslash elsewhere.
    row = {**ADD, "code": "def add(a, b):\n\times = a + b\n\treturn imes"}
    assert check_questions(read(tmp_path, row), "data.train", verifier) == []


def test_problems_and_verifier_belong_together(tmp_path: Path, verifier: CodeVerifier) -> None:
    questions = read(tmp_path, ADD)
    with pytest.raises(ConfigError, match="its answer is a program; set reward.verifier=code"):
        check_programs(questions, "data.train", ExactVerifier())
    plain = [Question("a", "1 + 1?", "2", where="a.jsonl, line 1")]
    with pytest.raises(ConfigError, match="its answer is no program, but reward.verifier is code"):
        check_programs(plain, "data.eval", verifier)
    assert check_programs(plain, "data.eval", ExactVerifier()) == []


def test_one_question_with_other_tests_is_a_contradiction(
    tmp_path: Path, verifier: CodeVerifier
) -> None:
    other = {**ADD, "test_list": [*ADD["test_list"], "assert add(0, 0) == 0"]}
    with pytest.raises(ConfigError, match="line 1 again, with another answer"):
        check_questions(read(tmp_path, ADD, other), "data.train", verifier)


def test_the_recipe_passes_its_own_gate(capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config("smollm2-code.yaml", ["reward.timeout=10", "reward.sandbox=best_effort"])
    train = read_sources(config.data.train, "train", "data.train")
    held_out = read_sources(config.data.eval, "test", "data.eval")
    check_data(train, held_out, config.reward)
    assert capsys.readouterr().err.startswith("code sandbox: ")
    assert {question.form for question in train + held_out} == {"code"}


class Words:
    """A tokenizer that remembers what it is given."""

    chat_template = "yes"

    def apply_chat_template(self, turns: list[dict[str, str]], **_: Any) -> list[int]:
        self.seen = turns[-1]["content"]
        return [1]


@pytest.mark.parametrize(("given", "end"), [(None, "ends with ```."), ("Be brief.", " Be brief.")])
def test_a_problem_says_itself_how_to_answer(tmp_path: Path, given: str | None, end: str) -> None:
    config = load_config("smollm2-code.yaml").data.model_copy(update={"instruction": given})
    words = Words()
    encode_questions(read(tmp_path, ADD), words, config)
    assert words.seen.endswith(end) and "boxed" not in words.seen


def test_the_format_is_of_a_file() -> None:
    with pytest.raises(ValueError, match="format is of a source of kind file"):
        SourceConfig(kind="embedded", format="code")


def test_problems_read_as_answers_are_told_their_format(tmp_path: Path) -> None:
    plain = source(tmp_path, ADD).model_copy(update={"format": "answers"})
    with pytest.raises(ConfigError, match=r"no field 'question'.*need format=code$"):
        read_sources([plain], "train", "data.train")
