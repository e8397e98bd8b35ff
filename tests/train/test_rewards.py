from __future__ import annotations

import math
from contextlib import closing
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_train.rewards import (
    ExactVerifier,
    Grade,
    Response,
    exact_match,
    final_answer,
    grade_responses,
    last_boxed,
    make_verifier,
)
from siri_train.rewards.exact import as_number, exact_verdict, normalise


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{7}", "7"),
        (r"\boxed{ 7 }", "7"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{1} then \fbox{2}", "2"),
        (r"\boxed{41}. Wait, \boxed{42}", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{a \\ {b}}", r"a \\ {b}"),
        (r"\\boxed{7}", "7"),
        (r"x \\\boxed{7}", "7"),
        (r"{ an open brace, \boxed{7}", "7"),
        (r"} a closed one, \boxed{7}", "7"),
        (r"\boxed{41} and then \boxed{42", "41"),
        (r"\boxed{ {7 }", None),
        (r"\boxed{42", None),
        (r"\boxed 42", None),
        (r"\boxedanswer{42}", None),
        ("the answer is 42", None),
        (r"\boxed{}", ""),
        ("", None),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


def test_last_boxed_is_linear_in_open_boxes() -> None:
    # 50 000 boxes that never close would take minutes if each were scanned to the end.
    assert last_boxed(r"\boxed{1}" + r"\boxed{" * 50_000) == "1"


@pytest.mark.parametrize(
    ("text", "required", "optional", "none"),
    [
        (r"<think> 6*7 </think> \boxed{42}", "42", "42", "42"),
        (r"6*7 </think> \boxed{42}", "42", "42", "42"),  # the prompt opened the thoughts
        (r"\boxed{41}</think> \boxed{42}", "42", "42", "42"),
        (r"a </think> \boxed{1} </think> \boxed{2}", "2", "2", "2"),
        (r"<think> maybe \boxed{42}", None, None, "42"),  # cut while thinking
        (r"maybe \boxed{42} </think> it is 42", None, None, "42"),
        (r"a </think> b <think> \boxed{42}", None, None, "42"),  # thoughts opened again
        (r"\boxed{42}", None, "42", "42"),
        ("the answer is 42 because 6*7 is 42 and 5 is", None, None, None),
        ("a </think> the answer is 42", None, None, None),
        (r"a </think> the answer is \boxed{42", None, None, None),
    ],
)
def test_final_answer(
    text: str, required: str | None, optional: str | None, none: str | None
) -> None:
    assert final_answer(text) == required
    assert final_answer(text, think="optional") == optional
    assert final_answer(text, think="none") == none


def test_final_answer_refuses_an_unknown_mode() -> None:
    with pytest.raises(ValueError, match="'sometimes'.*required, optional, none"):
        final_answer("", think="sometimes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("42", "42"),
        (" 42 ", "42"),
        ("+42", "42"),
        ("- 42", "-42"),
        ("−42", "-42"),
        ("-0", "0"),
        ("070", "70"),
        ("3.0", "3"),
        ("3.", "3"),
        (".5", "0.5"),
        ("1,000", "1000"),
        ("1{,}000", "1000"),
        (r"1,\!000", "1000"),
        (r"1\,000", "1000"),
        ("1,234,567.50", "1234567.5"),
        ("$18", "18"),
        (r"\$18", "18"),
        ("$42$", "42"),
        ("{42}", "42"),
        (r"42^\circ", "42"),
        (r"42^{\circ}", "42"),
        (r"42\text{ cm}", "42"),
        (r"42\text{ cm}^2", "42"),
        (r"42~\mathrm{km}", "42"),
        (r"\text{42}", "42"),
        ("3/4", "0.75"),
        (r"\frac{3}{4}", "3/4"),
        (r"\dfrac{6}{8}", "3/4"),
        (r"\tfrac34", "3/4"),
        (r"-\frac{1}{2}", "-1/2"),
        (r"\frac{-1}{2}", "-0.5"),
        (r"\frac{84}{2}", "42"),
        (r"12\%", "12%"),
        (r"\text{Tuesday}", "Tuesday"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        ("x = 3", "x=3"),
        ("B", r"\text{B}"),
        ("42", r"\boxed{42}"),
        ("42", "The answer is $\\boxed{42}$."),
    ],
)
def test_exact_match_accepts(answer: str, gold: str) -> None:
    assert exact_match(answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("41", "42"),
        ("", "42"),
        ("", ""),
        ("$", "$"),
        ("0.333", "1/3"),
        ("5.0000001", "5"),
        ("1/0", "1/0.0"),
        ("10", r"10\%"),
        ("10%", "10"),
        ("10%", "0.1"),
        ("1/10", "10%"),
        ("4 1 42", "4142"),
        ("41 42", "4142"),
        ("41,42", "42"),
        ("12,34", "1234"),
        (r"42\text{ or 43}", "42"),
        ("x", "X"),
        ("42x", "42"),
        ("40+2", "42"),
        ("9" * 5000, "9" * 4999),
    ],
)
def test_exact_match_refuses(answer: str, gold: str) -> None:
    assert not exact_match(answer, gold)


def test_exact_verdict_is_undecided_only_where_something_must_be_evaluated() -> None:
    assert exact_verdict("41", "42") is False
    assert exact_verdict("10%", "x") is False
    assert exact_verdict(r"2\sqrt{3}", r"\sqrt{12}") is None
    assert exact_verdict("200,100", "100,200") is False  # numbers before lists


def test_long_answers_cost_nothing() -> None:
    assert exact_match("x" * 5000, " " + "x" * 5000)
    for hostile in ("^" + " " * 200_000, "{" * 200_000, "1 " * 100_000, r"\text{" * 50_000):
        assert not exact_match(hostile, "42")
        assert not exact_match("42", hostile)


@given(st.text(alphabet=r"\{}()[]$%^_=+-*/.,~ 0123456789xab" + "\n−°٣", max_size=40))
def test_any_text_is_compared_without_an_error(text: str) -> None:
    assert exact_match(text, text) == bool(normalise(text))
    assert exact_verdict(text, "42") in (True, False, None)
    assert normalise(normalise(text)) is not None
    final_answer(f"</think> \\boxed{{{text}}}")


def test_as_number() -> None:
    assert as_number("12%") == (Fraction(12), True)
    assert as_number(normalise(r"-\frac12")) == (Fraction(-1, 2), False)
    assert as_number("1/0") is None
    assert as_number("٣") is None  # other digits than 0-9
    assert as_number("1e3") == (Fraction(1000), False)
    assert as_number("1e99999") is None  # an exponent out of bounds


class _Down(ExactVerifier):
    """A verifier whose processes do not start."""

    def verdicts(self, pairs):  # type: ignore[no-untyped-def]
        return [None] * len(pairs)


@pytest.mark.parametrize("truncated", ["grade", "zero"])
def test_grade_responses(truncated: Any) -> None:
    done = r"<think> 6*7 </think> \boxed{42}"
    grades = grade_responses(
        [
            Response(done, "stop"),
            Response(done, "length"),  # right, and its answer stands before the truncation
            Response(r"</think> \boxed{41}", "stop"),
            Response(r"\boxed{42}", "stop"),  # a box in the thoughts only
            Response("the answer is 42 because 6*7 is 42 and 5 is", "length"),
            Response(done, "abort"),
        ],
        ["42"] * 6,
        verifier=ExactVerifier(),
        truncated=truncated,
    )
    assert grades[:5] == [
        Grade(1.0, True, "42", False, True),
        Grade(float(truncated == "grade"), True, "42", True, truncated == "grade"),
        Grade(0.0, False, "41", False, False),
        Grade(0.0, False, None, False, False),
        Grade(0.0, False, None, True, False),
    ]
    assert math.isnan(grades[5].reward) and not grades[5].truncated


def test_grade_responses_without_think_marks() -> None:
    (grade,) = grade_responses(
        [Response(r"6*7 is \boxed{42}", "stop")], ["42"], verifier=ExactVerifier(), think="none"
    )
    assert grade.reward == 1.0


def test_what_cannot_be_scored_is_nan_but_what_was_cut_is_zero_where_that_is_asked_for() -> None:
    text = r"</think> \boxed{x}"
    both = [Response(text, "stop"), Response(text, "length")]
    stopped, cut = grade_responses(both, ["y", "y"], verifier=_Down(), truncated="zero")
    assert math.isnan(stopped.reward) and not stopped.correct
    assert cut.reward == 0.0 and cut.truncated
    grades = grade_responses(both, ["y", "y"], verifier=_Down())
    assert all(math.isnan(grade.reward) for grade in grades)


@pytest.mark.parametrize("reason", ["stop", "length"])
@pytest.mark.parametrize(
    ("text", "think", "answer"),
    [
        (r"so \boxed{42} and", "optional", None),  # in the thoughts that the prompt opened
        (r"so \boxed{41} </think> \boxed{42}", "optional", "42"),
        (r"so \boxed{41} </think> \boxed{42}", "required", "42"),
        (r"so \boxed{42} and", "required", None),
        (r"so \boxed{42} and", "none", "42"),
    ],
)
def test_a_box_in_thoughts_that_the_prompt_opened_is_not_paid(
    text: str, think: Any, answer: str | None, reason: Any
) -> None:
    (grade,) = grade_responses(
        [Response(text, reason, thinking=True)], ["42"], verifier=ExactVerifier(), think=think
    )
    assert grade.answer == answer and grade.reward == float(answer == "42")


@given(
    st.sampled_from(["", "<think> ", "so ", r"\boxed{41} "]),
    st.sampled_from(["</think>", "</think> then", "", "</think> <think>"]),
    st.sampled_from([r" \boxed{42}", r" \boxed{42", r" \boxed{41}", " 42"]),
    st.sampled_from(["required", "optional", "none"]),
)
def test_a_cut_response_earns_what_its_text_earns(
    start: str, middle: str, end: str, think: Any
) -> None:
    text = start + middle + end
    whole, cut = grade_responses(
        [Response(text, "stop"), Response(text, "length")],
        ["42", "42"],
        verifier=ExactVerifier(),
        think=think,
    )
    assert cut.reward == whole.reward == float(whole.correct) and cut.truncated
    if think == "required":  # a closed box behind the thoughts, nothing else
        assert cut.reward == (middle.startswith("</think>") and "<think>" not in middle
                              and end == r" \boxed{42}")  # fmt: skip
    (zero,) = grade_responses(
        [Response(text, "length")], ["42"], verifier=ExactVerifier(), think=think, truncated="zero"
    )
    assert zero.reward == 0.0 and zero.correct == cut.correct


def test_grade_responses_checks_its_input() -> None:
    with pytest.raises(ValueError, match="golds: got 2 for 1 responses"):
        grade_responses([Response("", "stop")], ["1", "2"], verifier=ExactVerifier())
    with pytest.raises(ValueError, match=r"responses\[0\].finish_reason: got 'eos'"):
        grade_responses(
            [Response("", "eos")],  # type: ignore[arg-type]
            ["1"],
            verifier=ExactVerifier(),
        )
    assert grade_responses([], [], verifier=ExactVerifier()) == []
    with pytest.raises(ValueError, match="truncated: got 'half', takes 'grade' or 'zero'"):
        grade_responses([], [], verifier=ExactVerifier(), truncated="half")  # type: ignore[arg-type]


def test_make_verifier() -> None:
    with closing(make_verifier("exact")) as verifier:
        assert verifier.verdicts([("3.0", "3"), (None, "3"), ("4", "3")]) == [True, False, False]
        assert verifier.verdicts([(None, "3")]) == [False]
    with pytest.raises(ValueError, match="'sympy'; takes one of 'exact', .*'math_verify'"):
        make_verifier("sympy")
