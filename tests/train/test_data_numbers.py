"""Numbers of a data file: whoever writes them out in a box is paid, whatever wrote the file."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from siri_train.data.json_text import JsonTextError, parse_json
from siri_train.data.numbers import written_number
from siri_train.data.questions import DataError, load_questions
from siri_train.rewards import exact_match
from siri_train.rewards.rounded import rounded_verdict

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e60, max_value=1e60)
EXACT = settings(derandomize=True, max_examples=200)


@EXACT
@given(FINITE | st.integers(-(10**40), 10**40))
@example(1e-7)
@example(1e22)
def test_a_number_of_json_is_reached_by_writing_it_out(value: float | int) -> None:
    token = json.dumps(value)
    gold = written_number(parse_json(token))
    assert gold is not None
    answer = f"{Decimal(token):f}"
    assert exact_match(answer, gold)
    assert exact_match(answer.replace("-", "−"), gold)  # as models write it
    other = f"{Decimal(token) * 2 + 1:f}"
    assert not exact_match(other, gold)


@EXACT
@given(st.integers(10**17, 10**30))
def test_a_double_too_large_for_its_digits_is_reached_by_the_integer_it_was(value: int) -> None:
    token = json.dumps(float(value))
    gold = written_number(parse_json(token))
    assert gold is not None
    assert not exact_match(str(value + (value >> 40)), gold)
    assert not exact_match(str(-value), gold)
    if "e" not in gold:  # few digits: written out, and meant as it stands
        assert int(gold) == int(float(value)) or len(gold.rstrip("0")) < 16
        return
    assert exact_match(str(value), gold) and exact_match(f"{value:,}", gold)
    assert exact_match(gold.replace("e+", "\\times10^{") + "}", gold)


@EXACT
@given(st.decimals(allow_nan=False, allow_infinity=False, places=6).filter(lambda d: abs(d) < 1e9))
def test_digits_stay_as_they_were_written(value: Decimal) -> None:
    whole, _, part = f"{value:f}".partition(".")
    text = written_number(parse_json(f"{value:f}"))
    assert text is not None and "e" not in text.lower()
    # Trailing zeros are digits, but for those of an integer behind a point: pandas' 42.0.
    expected = f"{value:f}" if part.strip("0") else whole
    assert text == ("0" if value == 0 else expected)


def test_a_rounded_gold_is_no_licence() -> None:
    assert rounded_verdict("12", "12") is None
    assert rounded_verdict("x", "1.2345678901234567e+19") is None
    assert rounded_verdict("1" * 500, "1.2345678901234567e+19") is None
    assert rounded_verdict("1.2e999", "1.2345678901234567e+19") is False
    assert not exact_match("1.2345678901234567", "1.2345678901234567e+19")
    assert not exact_match("12345678901234567890, 1", "1.2345678901234567e+19")


def _rows(file: Path, lines: list[str]) -> Path:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e400000", "null", "true", "{}",
                                   "[]", "[1, 2]", "[[1]]", '"NaN"', '"null"', '"  "',
                                   "1" * 4500, '[{"role": "user", "content": "1"}]'])  # fmt: skip
@pytest.mark.parametrize("place", [1, 4])
def test_what_is_no_number_is_refused_by_line(tmp_path: Path, token: str, place: int) -> None:
    lines = [json.dumps({"question": f"q{i}", "answer": i}) for i in range(5)]
    lines[place - 1] = f'{{"question": "q", "answer": {token}}}'
    with pytest.raises(DataError) as caught:
        load_questions(_rows(tmp_path / "a.jsonl", lines))
    assert f"a.jsonl, line {place}: field 'answer'" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_column_that_is_not_asked_for_may_hold_anything(tmp_path: Path) -> None:
    line = '{"question": "q", "answer": 1, "score": NaN, "emoji": "\\ud83d", "big": 1e999999999999}'
    assert load_questions(_rows(tmp_path / "a.jsonl", [line]))[0].answer == "1"


@pytest.mark.parametrize("kind", ["float64", "float32", "decimal", "int64", "gap"])
def test_numbers_of_parquet(tmp_path: Path, kind: str) -> None:
    pa: Any = pytest.importorskip("pyarrow")
    pq: Any = pytest.importorskip("pyarrow.parquet")
    texts = ["42", "0.1", "0.00001", "-7", "1234567", "0.3"]
    if kind == "int64":
        texts = ["42", "-7", str(2**62)]
        column = pa.array([int(t) for t in texts], pa.int64())
    elif kind == "decimal":
        column = pa.array([Decimal(t) for t in texts], pa.decimal128(30, 6))
    else:
        column = pa.array(
            [float(t) for t in texts], pa.float32() if kind == "float32" else pa.float64()
        )
    if kind == "gap":  # an integer column with a gap becomes floats
        column = pa.array([1.0, float("nan"), 3.0])
    questions = [f"q{i}" for i in range(len(column))]
    pq.write_table(pa.table({"question": questions, "answer": column}), tmp_path / "a.parquet")
    if kind == "gap":
        with pytest.raises(DataError, match=r"a\.parquet, row 1: field 'answer'.*got nan"):
            load_questions(tmp_path / "a.parquet")
        return
    golds = [q.answer for q in load_questions(tmp_path / "a.parquet")]
    assert all(exact_match(text, gold) for text, gold in zip(texts, golds, strict=True)), golds
    assert not any("e" in gold.lower() for gold in golds)


def test_json_keeps_what_python_would_drop() -> None:
    assert parse_json('{"a": 1, "b": [2.50]}') == {"a": 1, "b": [Decimal("2.50")]}
    assert str(parse_json("2.50")) == "2.50"
    for text, reason in (
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('[{"b": {"c": 1, "d": 2, "c": 3}}]', "the key 'c' stands twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested too deeply"),
        ("{", "not valid JSON"),
        ("01", "not valid JSON"),
    ):
        with pytest.raises(JsonTextError, match=reason):
            parse_json(text)
