"""Rows and chats that would lose something or end in a traceback: refused by file and line."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_train.cli import main
from siri_train.data.fields import read_chat
from siri_train.data.questions import DataError, load_questions
from siri_train.data.rows import Row
from siri_train.data.sources import encode_questions
from siri_train.model.chat_template import encode_prompt, prompt_messages
from siri_train.model.demo_model import START_FOLDER
from tests.train.test_data_prompts import tokenizer as tokenizer

DRAWN = settings(derandomize=True, max_examples=150)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=12)
ODD = st.lists(TEXTS.filter(str.strip), min_size=1, max_size=5).filter(lambda t: len(t) % 2)
CHATS = st.tuples(st.booleans(), ODD).map(
    lambda drawn: (
        [{"role": "system", "content": "Use hexadecimal."}] * drawn[0]
        + [
            {"role": ("user", "assistant")[i % 2], "content": text}
            for i, text in enumerate(drawn[1])
        ]
    )
)


@DRAWN
@given(CHATS)
def test_a_chat_reaches_the_model_whole(chat: list[dict[str, str]]) -> None:
    messages = read_chat(chat, Row(1, "a.jsonl, line 1", {}), "prompt")
    turns = prompt_messages("Q", template="chat", instruction="", messages=messages)
    assert turns == [{**item, "content": item["content"].strip()} for item in chat]
    asked = prompt_messages("Q", template="chat", instruction="Box it.", messages=messages)
    assert asked[:-1] == turns[:-1] and asked[-1]["content"] == f"{turns[-1]['content']} Box it."
    if any(role == "assistant" for role, _ in messages):
        with pytest.raises(ValueError, match="template: 'plain' cannot tell whose turn"):
            prompt_messages("Q", template="plain", messages=messages)
    if messages[0][0] == "system":
        with pytest.raises(ValueError, match=r"system: .*remove it there, or data\.system"):
            prompt_messages("Q", template="chat", system="S", messages=messages)


def test_every_message_is_in_the_prompt(tokenizer: Any, tmp_path: Path, tiny: Any) -> None:
    chat = [
        {"role": "system", "content": "Answer in hexadecimal."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "\\boxed{4}"},
        {"role": "user", "content": [{"type": "text", "text": "8+"}, {"text": "8?"}]},
    ]
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": chat, "answer": "10"}) + "\n")
    questions = load_questions(tmp_path / "q.jsonl")
    config = tiny("data.template=chat", "data.max_prompt_len=900", "train.token_budget=2048").data
    (encoded,) = encode_questions(questions, tokenizer, config)
    text = tokenizer.decode(encoded.prompt_ids).replace(" ", "")
    places = [text.find(part) for part in ("Answerinhex", "2+2?", "\\boxed{4}", "8+8?")]
    assert places == sorted(places) and places[0] > 0


def test_a_template_that_refuses_a_role_is_named_with_the_row(
    tokenizer: Any, tmp_path: Path, tiny: Any
) -> None:
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    (tmp_path / "q.jsonl").write_text('{"question": "a", "answer": "1"}\n')
    config = tiny("data.template=chat", "data.max_prompt_len=900", "train.token_budget=2048").data
    with pytest.raises(ValueError, match=r"q\.jsonl, line 1: .*System role not supported"):
        encode_questions(load_questions(tmp_path / "q.jsonl"), tokenizer, config)
    with pytest.raises(ValueError, match="the roles system, user"):
        encode_prompt(tokenizer, "Q", system="S")


USER = {"role": "user", "content": "Q?"}


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ([USER, {"role": "assistant", "content": "4"}], "ends with the assistant message"),
        ([{"role": "tool", "content": "4"}, USER], "role 'tool'; takes system, user, assistant"),
        ([{"role": None, "content": "4"}, USER], "role 'None'"),
        ([USER, {"role": "system", "content": "S"}, USER], "a system message must be the first"),
        ([{"role": "system", "content": " "}, USER], "the system message is empty"),
        ([{"role": "user", "content": ""}], "the user message is empty"),
        ([{**USER, "tool_calls": [{"id": 1}]}], "tool_calls would not reach the model"),
        ([{**USER, "name": "Bob"}], "name would not reach the model"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], r"no text \(image\)"),
        ([{"role": "user", "content": None}], "content is nothing"),
        ([{"role": "user", "content": "a\ud83d"}], "half of a surrogate pair"),
        ([{"from": "human", "value": "Q?"}], "keys 'role' and 'content', not 'from' and 'value'"),
    ],
)
def test_a_chat_that_would_lose_something_is_refused(
    tmp_path: Path, chat: list[Any], reason: str
) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(
        '{"question": "a", "answer": 1}\n' + json.dumps({"question": chat, "answer": 1})
    )
    with pytest.raises(DataError, match=rf"q\.jsonl, line 2: field 'question'.*{reason}") as caught:
        load_questions(file)
    assert "\n" not in str(caught.value)


def test_keys_without_a_value_are_no_loss(tmp_path: Path) -> None:
    chat = [{**USER, "tool_calls": None, "name": "", "weight": 0}]
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": chat, "answer": 1}) + "\n")
    (question,) = load_questions(tmp_path / "q.jsonl")
    assert question.prompt == "Q?" and question.messages == ()


def _row(**fields: Any) -> bytes:
    return json.dumps({"question": "1 +2 ?", "answer": "3", **fields}).encode()


HALF = "\ud800"
DAMAGES: dict[str, tuple[bytes, str]] = {
    "no object": (b"3", "expected an object"),
    "cut": (_row()[:-5], "not valid JSON"),
    "surrogate question": (_row(question=f"a{HALF}"), "half of a surrogate pair"),
    "surrogate answer": (_row(answer=f"{HALF}3"), "half of a surrogate pair"),
    "surrogate solution": (_row(solution=f"x\udfff {HALF}"), "half of a surrogate pair"),
    "deep": (b'{"question": ' + b"[" * 9000 + b"]" * 9000 + b"}", "nested too deeply"),
    "latin-1": ('{"question": "é", "answer": "3"}'.encode("latin-1"), "not UTF-8"),
    "no token": (_row(question="xyz"), "has no tokens"),
    "blank": (_row(question=" \n "), "is empty"),
    "twice": (b'{"question": "1 +2 ?", "answer": "3", "answer": "4"}', "stands twice"),
    "BOM": (b"\xef\xbb\xbf" + _row(), "not valid JSON"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    "$": (_row(answer="$"), "is not equal to itself"),
    "empty box": (_row(answer="\\boxed{}"), "is not equal to itself"),
    "open brace": (_row(answer="\\frac{1}{"), "is not equal to itself"),
    "form feed": (_row(answer="\frac{1}{2}"), "form feed before 'rac'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_row_ends_a_run_in_one_line_before_any_work(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, reason = DAMAGES[damage]
    rng = random.Random(damage)
    lines = [_row(question=f"{rng.randrange(10)} +{i} ?") for i in range(1, 9)]
    number = rng.randrange(2, 9)
    lines[number - 1 : number - 1] = [raw]
    ends = rng.choice([b"\n", b"\r\n", b"\n\n"])  # blank lines count as lines
    (tmp_path / "rows.jsonl").write_bytes(ends.join(lines))
    line = number if ends != b"\n\n" else 2 * number - 1
    (tmp_path / "recipe.yaml").write_text(
        f"output: {tmp_path / 'run'}\ndata:\n  max_prompt_len: 300\n  train:\n"
        f"  - {{kind: file, path: {tmp_path / 'rows.jsonl'}, "
        f"solution_field: {'solution' if 'solution' in damage else 'answer'}}}\n"
        "schedule: {max_len: 20, min_len: 10, cycle: 4}\n"
        "train: {steps: 1, token_budget: 2048, mini_batches: 1}\n"
    )
    if "solution" in damage:
        lines = [_row(solution="s", question=f"{i} +1 ?") for i in range(1, 9)]
        lines[number - 1 : number - 1] = [raw]
        (tmp_path / "rows.jsonl").write_bytes(ends.join(lines))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert f"rows.jsonl, line {line}:" in said[0] and reason in said[0], said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("a.jsonl", gzip.compress(_row()), "line 1: not UTF-8.*looks like a gzip file: unpack"),
        ("a.jsonl", b"PAR1 \xff", "looks like a Parquet file"),
        ("a.jsonl", _row().decode().encode("utf-16"), "looks like UTF-16"),
        ("a.jsonl.gz", gzip.compress(_row()), r"unknown kind of file '\.gz'.*unpack it first"),
        ("a.jsonl", b"", "holds no row"),
        ("a.jsonl", b"\n\r\n  \n", "holds no row"),
        ("a.json", b"[" * 9000, r"a\.json: not valid JSON: nested too deeply"),
    ],
)
def test_a_file_of_another_kind_says_what_it_looks_like(
    tmp_path: Path, name: str, raw: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=reason):
        load_questions(tmp_path / name)


def test_line_ends_and_a_mark_at_the_start_are_no_damage(tmp_path: Path) -> None:
    rows = [_row(question=f"q{i}") for i in range(3)]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*rows, b"", b"  "]))
    assert [q.prompt for q in load_questions(tmp_path / "a.jsonl")] == ["q0", "q1", "q2"]
    (tmp_path / "b.jsonl").write_text(json.dumps({"question": "😀", "answer": 1}))  # a whole pair
    assert load_questions(tmp_path / "b.jsonl")[0].prompt == "😀"


@pytest.mark.parametrize("path", ["a\0b.jsonl", "x" * 5000 + ".jsonl", "no/" * 50 + "a.jsonl"])
def test_paths_that_no_system_takes(path: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_questions(path)


@pytest.mark.parametrize("command", ["sft", "eval", "dry run"])
@pytest.mark.parametrize("damage", ["form feed", "surrogate answer", "$", "deep"])
def test_the_other_commands_have_the_same_gate(
    command: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, reason = DAMAGES[damage]
    fields = {"solution": "It is 3."}
    lines = [_row(question=f"{i} +1 ?", **fields) for i in range(1, 9)]
    raw = raw.replace(b'"answer"', b'"solution": "s", "answer"') if damage != "deep" else raw
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([*lines, raw]))
    where = "eval" if command == "eval" else "train"
    (tmp_path / "recipe.yaml").write_text(
        f"output: {tmp_path / 'run'}\nsft: {{steps: 1, batch_size: 2}}\ndata:\n"
        f"  max_prompt_len: 300\n  {where}:\n"
        f"  - {{kind: file, path: {tmp_path / 'rows.jsonl'}, solution_field: solution}}\n"
        "schedule: {max_len: 20, min_len: 10, cycle: 4}\nrollout: {prompts: 2, group_size: 2}\n"
        "train: {steps: 1, token_budget: 2048}\n"
    )
    recipe = str(tmp_path / "recipe.yaml")
    arguments = {
        "sft": ["sft", recipe],
        "eval": ["eval", str(shutil.copytree(START_FOLDER, tmp_path / "c")), "--recipe", recipe],
        "dry run": ["train", recipe, "--dry-run"],
    }[command]
    assert main(arguments) == 1
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "rows.jsonl, line 9:" in said and reason in said
    assert not (tmp_path / "run").exists() and not (tmp_path / "c" / "eval.json").exists()
