"""Data files with one bad row, whose number is drawn; the message must give file and row."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from siri_train.data.demo_task import questions as embedded
from tests.train.bad_inputs.bed import RECIPE, Bad, write_recipe

COUNT = 24
Row = dict[str, Any]


def good_rows() -> list[Row]:
    """Questions of the embedded task, as a file would hold them."""
    questions = embedded.questions(COUNT, seed=5)
    return [{"question": q.prompt, "answer": q.answer, "solution": q.solution} for q in questions]


def _source(name: str, **more: Any) -> dict[str, Any]:
    return {"kind": "file", "path": name, **more}


def _write(home: Path, name: str, lines: list[bytes], **more: Any) -> None:
    (home / name).write_bytes(b"".join(line + b"\n" for line in lines))
    evaluation = [{"kind": "embedded", "size": 8, "seed": 1}]
    data = {"train": [_source(name, **more)], "eval": evaluation, "max_prompt_len": 24}
    write_recipe(home, data=data)


def _line(row: Any) -> bytes:
    return json.dumps(row).encode()


SPOILT: dict[str, Callable[[Row], bytes]] = {
    "no JSON": lambda row: _line(row)[1:],
    "cut": lambda row: _line(row)[:-5],
    "two objects": lambda row: _line(row) * 2,
    "a comma behind": lambda row: _line(row) + b",",
    "single quotes": lambda row: _line(row).replace(b'"', b"'"),
    "a list": lambda row: _line([row]),
    "a text": lambda row: _line("question"),
    "a number": lambda row: b"5",
    "null": lambda row: b"null",
    "not UTF-8": lambda row: _line(row)[:-1] + b', "more": "\xff\xfe"}',
    "Latin-1": lambda row: _line(row)[:-1] + ', "more": "é"}'.encode("latin-1"),
    "deep lists": lambda row: b"[" * 100_000,
    "deep objects": lambda row: b'{"question": ' * 50_000,
    "no question": lambda row: _line({"answer": row["answer"]}),
    "no answer": lambda row: _line({"question": row["question"]}),
    "no field": lambda row: b"{}",
    "other fields": lambda row: _line({"Question": row["question"], "Answer": row["answer"]}),
    "an empty question": lambda row: _line({**row, "question": ""}),
    "a blank question": lambda row: _line({**row, "question": " \t\n\u00a0"}),
    "an empty answer": lambda row: _line({**row, "answer": ""}),
    "a blank answer": lambda row: _line({**row, "answer": " \n"}),
    "a null question": lambda row: _line({**row, "question": None}),
    "a null answer": lambda row: _line({**row, "answer": None}),
    "a true answer": lambda row: _line({**row, "answer": True}),
    "an object as answer": lambda row: _line({**row, "answer": {"value": 5}}),
    "two answers": lambda row: _line({**row, "answer": ["5", "6"]}),
    "no answers": lambda row: _line({**row, "answer": []}),
    "NaN as answer": lambda row: _line({**row, "answer": float("nan")}),
    "infinite answer": lambda row: _line({**row, "answer": -float("inf")}),
    "a question of lists": lambda row: _line({**row, "question": [["a"]]}),
    "a chat without a user": lambda row: _line(
        {**row, "question": [{"role": "system", "content": "x"}]}
    ),
    "a chat of numbers": lambda row: _line({**row, "question": [{"role": "user", "content": 5}]}),
    "a surrogate in the question": lambda row: _line(
        {**row, "question": row["question"] + "\ud800"}
    ),
    "a surrogate in the answer": lambda row: _line({**row, "answer": "\udfff"}),
    "a form feed in the answer": lambda row: _line({**row, "answer": "\frac{1}{2}"}),
    "a backspace in the answer": lambda row: _line({**row, "answer": "\beta"}),
    "a dollar as answer": lambda row: _line({**row, "answer": "$"}),
    "an empty box as answer": lambda row: _line({**row, "answer": "\\boxed{}"}),
}  # fmt: skip


def rows() -> Iterator[Bad]:
    """One spoilt row among good ones; files as a whole; columns that are not there."""
    draw = random.Random(8)
    for name, spoil in SPOILT.items():
        number = draw.randrange(2, COUNT)

        def prepare(home: Path, spoil: Any = spoil, number: int = number) -> None:
            lines = [_line(row) for row in good_rows()]
            lines[number - 1] = spoil(good_rows()[number - 1])
            _write(home, "q.jsonl", lines)

        yield Bad(
            "rows", name, ("train", RECIPE), ("data.train", "q.jsonl", f"line {number}"), prepare
        )

    def other(name: str, raw: bytes, *words: str, file: str = "q.jsonl", **more: Any) -> Bad:
        def prepare(home: Path) -> None:
            _write(home, file, [raw] if raw else [], **more)

        return Bad("rows", name, ("train", RECIPE), words or ("data.train", file), prepare)

    whole = b"\n".join(_line(row) for row in good_rows())
    yield other("no rows", b"")
    yield other("blank lines", b"\n\n \n")
    yield other("a .json that is JSONL", whole, file="q.json")
    yield other("a .json of an object", b'{"a": 1}', file="q.json")
    yield other("a .json of numbers", b"[1, 2]", file="q.json")
    yield other("an empty .json", b"[]", file="q.json")
    yield other("a .json cut", b'[{"question": "', file="q.json")
    yield other("a .json that is deep", b"[" * 100_000, file="q.json")
    yield other("no Parquet", b"PAR1 and then nothing PAR1", file="q.parquet")
    yield other("an empty Parquet", b"", file="q.parquet")
    yield other("a suffix nobody knows", whole, file="q.csv")
    yield other("no suffix", whole, file="questions")
    yield other("an offset past the end", whole, "q.jsonl", offset=999)
    yield other("a column that is not there", whole, "queston", question_field="queston")
    yield other("a column below a text", whole, "question.text", question_field="question.text")
    yield other("a mark that does not occur", whole, "####", answer_after="####")
    yield other("a solution that is not there", whole, "worked", solution_field="worked")
    yield other("a question twice, two answers", b"\n".join(
        [_line({"question": good_rows()[0]["question"], "answer": a}) for a in ("1", "2")] * 9
    ), "q.jsonl")  # fmt: skip
    yield other("long prompts", whole.replace(b"+", b"+1 +2 +3 +4 +5 +6 +7 +8 +"), "max_prompt_len")

    def leak(home: Path) -> None:
        _write(home, "q.jsonl", [_line(row) for row in good_rows()])
        train = [_source("q.jsonl")]
        write_recipe(home, data={"train": train, "eval": train, "max_prompt_len": 24})

    yield Bad("rows", "eval is train", ("train", RECIPE), ("data.eval",), leak)
    for spacing in draw.sample(("  ", "\t", "\u00a0", " \n"), 2):

        def near(home: Path, spacing: str = spacing) -> None:
            _write(home, "q.jsonl", [_line(row) for row in good_rows()])
            again = [
                _line({**r, "question": r["question"].replace(" ", spacing)}) for r in good_rows()
            ]
            (home / "e.jsonl").write_bytes(b"\n".join(again))
            sources = {"train": [_source("q.jsonl")], "eval": [_source("e.jsonl")]}
            write_recipe(home, data={**sources, "max_prompt_len": 64})

        name = f"eval is train with {spacing!r} between"
        yield Bad("rows", name, ("train", RECIPE), ("data.eval",), near)
