from __future__ import annotations

import builtins
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from siri_train.data.questions import (
    REASONING_GYM_TASKS,
    DataError,
    MissingDataError,
    Question,
    find_first,
    load_questions,
    read_rows,
    reasoning_gym_questions,
)

GSM8K = [
    {"question": "How many?", "answer": "48/2 = <<48/2=24>>24\n#### 1,072"},
    {"question": "And now? ", "answer": "It is #### marked\n#### -3"},
    {"question": "And then?", "answer": "#### 5"},
]


def _jsonl(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _hide(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = builtins.__import__

    def guarded(module: str, *args: Any, **kwargs: Any) -> Any:
        if module.split(".")[0] == name:
            raise ImportError(f"No module named {name!r}")
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)


def test_gsm8k_folder(tmp_path: Path) -> None:
    _jsonl(tmp_path / "train.jsonl", GSM8K)
    _jsonl(tmp_path / "test.jsonl", GSM8K[:1])
    train = load_questions(tmp_path, answer_after="####")
    assert train[0] == Question("train-1", "How many?", "1,072", GSM8K[0]["answer"])
    assert [question.answer for question in train] == ["1,072", "-3", "5"]
    assert [q.id for q in load_questions(tmp_path, split="test", answer_after="####")] == ["test-1"]
    with pytest.raises(MissingDataError, match=r"no split 'dev'.*holds test\.jsonl, train\.jsonl"):
        load_questions(tmp_path, split="dev")


def test_limit_and_offset(tmp_path: Path) -> None:
    file = _jsonl(tmp_path / "train.jsonl", GSM8K)
    loaded = load_questions(file, answer_after="####", offset=1, limit=1)
    assert [question.id for question in loaded] == ["train-2"]
    with pytest.raises(DataError, match="no row left after skipping 3"):
        load_questions(file, answer_after="####", offset=3)
    with pytest.raises(ValueError, match="offset: got -1"):
        load_questions(file, offset=-1)
    with pytest.raises(ValueError, match="limit: got 0"):
        load_questions(file, limit=0)


def test_rows_after_the_limit_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"question": "a", "answer": "1"}\n{broken\n')
    assert len(load_questions(file, limit=1)) == 1


DAPO = {
    "prompt": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "..."},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"text": "1+1?"}]},
    ],
    "reward_model": {"ground_truth": "34", "style": "rule"},
    "extra_info": {"answer": 2, "index": 0},
    "dotted.name": "3",
}


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_dotted_fields_and_chats(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"dapo.{kind}"
    row = {**DAPO, "prompt": [*DAPO["prompt"][:3], {"role": "user", "content": "What is 1+1?"}]}
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist([row]), file)
    elif kind == "json":
        file.write_text(json.dumps([row]))
    else:
        _jsonl(file, [row])
    for field, answer in (
        ("reward_model.ground_truth", "34"),
        ("extra_info.answer", "2"),
        ("dotted.name", "3"),
    ):
        (question,) = load_questions(file, question_field="prompt", answer_field=field)
        assert question.answer == answer
        assert question.prompt == "Be brief.\n\nfirst\n\n...\n\nWhat is 1+1?"
        assert [role for role, _ in question.messages] == ["system", "user", "assistant", "user"]
    with pytest.raises(DataError, match="no field 'truth' in 'reward_model'; it has ground_truth"):
        load_questions(file, question_field="prompt", answer_field="reward_model.truth")


def test_values_of_other_types(tmp_path: Path) -> None:
    file = _jsonl(
        tmp_path / "a.jsonl", [DAPO, {"prompt": "x", "extra_info": {"answer": ["7"]}, "s": None}]
    )
    read = load_questions(
        file, question_field="prompt", answer_field="extra_info.answer", solution_field=None
    )
    assert [(q.messages[-1:], q.answer) for q in read] == [((("user", "What is 1+1?"),), "2"),
                                                           ((), "7")]  # fmt: skip
    (last,) = load_questions(
        file, question_field="prompt", answer_field="prompt", solution_field="s", offset=1
    )
    assert last.solution is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "not valid JSON.*it reads '{broken'"),
        ("[1, 2]", "expected an object with fields, got list"),
        ('{"qestion": "a", "answer": "1"}', "no field 'question'; it has qestion, answer; did you"),
        ('{"question": "a"}', "no field 'answer'; it has question"),
        ('{"question": " ", "answer": "1"}', "field 'question' is empty"),
        ('{"question": "a", "answer": ""}', "field 'answer' holds no answer"),
        ('{"question": "a", "answer": null}', r"'answer': expected text.*got nothing \(null\)"),
        ('{"question": "a", "answer": true}', "'answer': expected text.*got bool"),
        ('{"question": "a", "answer": ["1", "2"]}', "'answer': expected text.*got a list of 2"),
        ('{"question": {"a": 1}, "answer": "1"}', "'question': expected text.*got dict"),
        ('{"question": [{"role": "system", "content": "a"}], "answer": "1"}', "without a user"),
        ('{"question": [{"role": "user", "content": 3}], "answer": "1"}', "content is int, not"),
    ],
)
def test_malformed_rows_name_file_line_and_reason(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "a", "answer": "1"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 3: .*{reason}"):
        load_questions(file)


def test_missing_mark_and_field_without_fields(tmp_path: Path) -> None:
    file = _jsonl(tmp_path / "a.jsonl", [{"question": "a", "answer": "1"}])
    with pytest.raises(DataError, match="line 1: '####' does not occur in field 'answer'"):
        load_questions(file, answer_after="####")
    with pytest.raises(DataError, match="no field 'answer.x': 'answer' has no fields"):
        load_questions(file, answer_field="answer.x")
    _jsonl(file, [{"question": "a", "answer": "so #### "}])
    with pytest.raises(DataError, match="line 1: field 'answer' holds no answer"):
        load_questions(file, answer_after="####")


def test_encodings(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"question": "caf\xc3\xa9", "answer": "1"}\r\n')
    assert load_questions(file)[0].prompt == "café"
    file.write_bytes(b'{"question": "caf\xe9", "answer": "1"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: not UTF-8"):
        load_questions(file)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"question": "a"}\n{"question": "b"}')
    with pytest.raises(DataError, match=r"a\.json: not valid JSON.*is called \.jsonl"):
        list(read_rows(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DataError, match="expected a list of objects, got dict"):
        list(read_rows(tmp_path / "a.json"))
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match=r"unknown kind of file '\.csv', takes \.jsonl"):
        read_rows(tmp_path / "a.csv")
    with pytest.raises(DataError, match="is a folder"):
        read_rows(tmp_path)
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_text("version https://")
    with pytest.raises(DataError, match=r"a\.parquet, row 0: not readable as Parquet"):
        list(read_rows(tmp_path / "a.parquet"))


def test_parquet_rows_and_shards(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for shard in range(2):
        rows = [{"question": f"{shard}{n}", "answer": n} for n in range(2)]
        parquet.write_table(
            pyarrow.Table.from_pylist(rows), tmp_path / f"train-0000{shard}-of-00002.parquet"
        )
    loaded = load_questions(tmp_path)
    assert [question.prompt for question in loaded] == ["00", "01", "10", "11"]
    assert len({question.id for question in loaded}) == 4
    with pytest.raises(DataError, match=r"of-00002\.parquet, row 0: no field 'solution'"):
        load_questions(tmp_path, solution_field="solution")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    _hide(monkeypatch, "pyarrow")
    with pytest.raises(ImportError, match="needs pyarrow: pip install pyarrow"):
        load_questions(tmp_path / "a.parquet")


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    _jsonl(tmp_path / "train.jsonl", GSM8K)
    with pytest.raises(MissingDataError, match=r"no such file: .*trian\.jsonl; .*: train\.jsonl"):
        load_questions(tmp_path / "trian.jsonl")
    with pytest.raises(FileNotFoundError, match="nearest folder that exists is"):
        load_questions(tmp_path / "no" / "where.jsonl")
    with pytest.raises(DataError, match="nearest: train.jsonl"):
        load_questions(tmp_path / "zzz")


def test_find_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _jsonl(tmp_path / "train.jsonl", GSM8K)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_first([tmp_path / "no.jsonl", file, "hub:a/b"]) == str(file)
    assert find_first(["~/no.jsonl", "hub:a/b", file]) == "hub:a/b"
    assert find_first(["~/train.jsonl"]) == str(file)
    with pytest.raises(MissingDataError, match=r"none of these exists: .*x\.jsonl, .*y\.jsonl"):
        find_first([tmp_path / "x.jsonl", tmp_path / "y.jsonl"])
    with pytest.raises(MissingDataError, match="nearest: train.jsonl"):
        find_first([tmp_path / "train.json"])
    with pytest.raises(DataError, match="no path given"):
        find_first([])


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> Any:
        asked.append((name, config, split, revision))
        if name == "no/such":
            raise ConnectionError("offline")
        return GSM8K

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    loaded = load_questions("hub:openai/gsm8k:main@v1", split="test", answer_after="####", limit=2)
    assert [(q.id, q.answer) for q in loaded] == [("test-0", "1,072"), ("test-1", "-3")]
    load_questions("hub:openai/gsm8k", answer_after="####")
    assert asked == [("openai/gsm8k", "main", "test", "v1"), ("openai/gsm8k", None, "train", None)]
    with pytest.raises(DataError, match="hub:no/such, split 'train': ConnectionError: offline"):
        load_questions("hub:no/such")
    with pytest.raises(DataError, match="hub:openai/gsm8k, split train, row 0: no field 'q'"):
        load_questions("hub:openai/gsm8k", question_field="q")
    with pytest.raises(DataError, match="expected hub:OWNER/NAME"):
        load_questions("hub:")


def test_hub_without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "datasets")
    with pytest.raises(ImportError, match="needs datasets: pip install datasets"):
        load_questions("hub:openai/gsm8k")


def _fake_gym(monkeypatch: pytest.MonkeyPatch, answer: str = "12") -> None:
    def create_dataset(task: str, size: int, seed: int, min_terms: int = 2) -> Any:
        return [
            {"question": f" {task} {seed} {n} {min_terms} ", "answer": answer, "metadata": {}}
            for n in range(size)
        ]

    fake = types.ModuleType("reasoning_gym")
    fake.create_dataset = create_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reasoning_gym", fake)


def test_reasoning_gym(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_gym(monkeypatch)
    first, second = reasoning_gym_questions("chain_sum", 2, 7, min_terms=3)
    assert first == Question("chain_sum-7-0", "chain_sum 7000000 0 3", "12")
    assert second.id == "chain_sum-7-1"
    with pytest.raises(DataError, match="'chainsum' is not offered; did you mean 'chain_sum'"):
        reasoning_gym_questions("chainsum", 2, 7)
    with pytest.raises(DataError, match="'game_of_life_halting' is not offered"):
        reasoning_gym_questions("game_of_life_halting", 2, 7)
    with pytest.raises(DataError, match="chain_sum: parameters {'max_term': 3}"):
        reasoning_gym_questions("chain_sum", 2, 7, max_term=3)
    with pytest.raises(ValueError, match="size: got 0"):
        reasoning_gym_questions("chain_sum", 0, 7)
    _fake_gym(monkeypatch, answer="1/2")
    with pytest.raises(DataError, match="item 0: answer '1/2' is no integer"):
        reasoning_gym_questions("chain_sum", 2, 7)


def test_reasoning_gym_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "reasoning_gym", raising=False)
    _hide(monkeypatch, "reasoning_gym")
    with pytest.raises(ImportError, match="pip install reasoning-gym"):
        reasoning_gym_questions("gcd", 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("task", REASONING_GYM_TASKS)
def test_every_offered_reasoning_gym_task_for_real(task: str) -> None:
    try:
        import reasoning_gym  # noqa: F401
    except ImportError as error:
        pytest.skip(str(error))
    questions = reasoning_gym_questions(task, 40, 1)
    assert questions == reasoning_gym_questions(task, 40, 1)
    assert all(question.prompt and int(question.answer) is not None for question in questions)
    if task == "gsm_symbolic":
        assert all(question.solution for question in questions)


@pytest.mark.parametrize("field", ["question", "answer"])
@pytest.mark.parametrize("seed", range(4))
def test_a_text_that_shows_nothing_is_none(tmp_path: Path, seed: int, field: str) -> None:
    draw = random.Random(seed)
    text = "".join(draw.choices("\u200b\u2060\ufeff\u200d\u3164\u2800\u00a0\u202e ", k=seed + 1))
    row = {"question": "1 + 1 ?", "answer": "2"}
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({**row, field: text}))
    with pytest.raises(DataError, match=f"q.jsonl, line 1: field '{field}'"):
        load_questions(file)
    file.write_text(json.dumps({**row, field: f"{text}3{text}"}))
    assert len(load_questions(file)) == 1
