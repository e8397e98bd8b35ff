"""The gate for data: damaged texts, golds nobody can meet, repeats, contradictions, leaks."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from siri_train.config.base import ConfigError
from siri_train.config.method import RewardConfig
from siri_train.data.damage import control_character, eaten_backslash, prose
from siri_train.data.gate import check_data, check_leak, check_questions
from siri_train.data.questions import Question, load_questions
from siri_train.data.repeats import loose_key, strict_key
from siri_train.rewards import ExactVerifier

DRAWN = settings(derandomize=True, max_examples=200)
EXACT = ExactVerifier()


def questions(*pairs: tuple[str, str], file: str = "a.jsonl") -> list[Question]:
    return [
        Question(f"a-{i}", prompt, answer, where=f"{file}, line {i}")
        for i, (prompt, answer) in enumerate(pairs, 1)
    ]


# Commands of LaTeX whose first letter is an escape of JSON, in formulas as they are written.
EATEN = [
    r"\frac{1}{2}", r"3\times 4", r"\theta", r"\beta + 1", r"\begin{pmatrix}1\end{pmatrix}",
    r"\boxed{7}", r"\binom{5}{2}", r"\text{yes}", r"\right)", r"\rho", r"x \neq 3", r"\nabla f",
    r"\tan 45^\circ", r"\bar{x}", r"\forall x", r"\tfrac12", r"\rfloor + 1", r"\not\in", r"\tau^2",
    r"\triangle ABC", r"\textbf{4}", r"2\times10^3", r"\notin A", r"\to 0",
]  # fmt: skip
CLEAN = [
    "1\n2\n3", "a\tb", "The\ttext is\nlong.\n\nAn end.\n", "x\ty\n1\t2\nto go\r\nrow",
    "def f(x):\n\treturn x\n", "1\n\n2", "e\nu\ni", "A\r\nB\r\n", "so\nthe\ntan line",
    "x = 1\nu = 2\n", "not\nthis one", "\\frac{1}{2}", "\\\\neq", "\n- one\n- two", "E = 3\ne = 4",
]  # fmt: skip


@pytest.mark.parametrize("formula", EATEN)
def test_a_backslash_that_json_ate_is_seen_wherever_it_stood(tmp_path: Path, formula: str) -> None:
    # What a file holds whose writer put strings between quotation marks by hand.
    formula = re.sub(r"\\(?![bfnrt])", r"\\\\", formula)  # these would not be JSON at all
    for answer, question in ((formula, "Q?"), ("7", f"What is ${formula}$?")):
        text = f'{{"question": "{question}", "answer": "{answer}"}}'
        assert json.loads(text)  # valid, and wrong
        (tmp_path / "a.jsonl").write_text(text + "\n")
        with pytest.raises(ConfigError) as caught:
            check_data(load_questions(tmp_path / "a.jsonl"), [], RewardConfig())
        said = str(caught.value)
        assert "a.jsonl, line 1: the " in said and "write the rows with a JSON library" in said
        assert "\n" not in said and said.isprintable()
        whole = json.dumps({"question": question, "answer": answer})
        (tmp_path / "a.jsonl").write_text(whole + "\n")
        check_data(load_questions(tmp_path / "a.jsonl"), [], RewardConfig())


@pytest.mark.parametrize("text", CLEAN)
def test_blanks_and_lines_of_a_text_are_no_damage(text: str) -> None:
    assert eaten_backslash(text) is None


@DRAWN
@given(
    st.lists(
        st.sampled_from("the to an au so in area text times angle right equal of".split()),
        min_size=2,
        max_size=12,
    ),
    st.lists(st.sampled_from(" \t\n\r"), min_size=12, max_size=12),
)
def test_prose_between_any_blanks_is_no_damage(words: list[str], blanks: list[str]) -> None:
    text = "".join(word + blank for word, blank in zip(words, blanks, strict=False))
    assert eaten_backslash(text) is None


@pytest.mark.parametrize("code", [0, 1, 7, 8, 11, 12, 27, 31, 127, 0x85, 0x9F])
def test_a_gold_with_a_control_character_is_refused(code: int) -> None:
    rows = questions(("Q", "1"), ("R", f"x{chr(code)}2"))
    with pytest.raises(ConfigError, match=r"data\.eval: a\.jsonl, line 2: the answer holds"):
        check_questions(rows, "data.eval", EXACT)
    assert control_character("a\tb\nc") is None


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        ("$", "is not equal to itself"),
        ("$$", "is not equal to itself"),
        (".", "is not equal to itself"),
        ("\\boxed{}", "is not equal to itself"),
        ("\\boxed{ }", "is not equal to itself"),
        ("{1", "is not equal to itself"),
        ("1}", "is not equal to itself"),
        ("\\frac{1}{2", "is not equal to itself"),
        ("She has 3 left.\n#### 3", "set answer_after='####'"),
        ("The answer is forty two because six times seven is that", "is prose"),
        ("It grows as the temperature rises.", "is prose"),
        ("\\text{We first note that the sum of all of the digits is nine}", "is prose"),
    ],
)
@pytest.mark.parametrize("verifier", ["exact", "math_verify"])
def test_a_gold_that_no_response_can_meet_is_refused(gold: str, reason: str, verifier: str) -> None:
    if verifier == "math_verify":
        pytest.importorskip("math_verify")
    rows = questions(*[(f"Q{i}", str(i)) for i in range(30)])
    for i in (4, 9, 11, 12, 13, 20, 28):
        rows[i] = Question("x", f"Q{i}", gold, where=f"a.jsonl, line {i + 1}")
    with pytest.raises(ConfigError) as caught:
        check_data(rows, [], RewardConfig(verifier=verifier))  # type: ignore[arg-type]
    said = str(caught.value)
    assert said.startswith("data.train: a.jsonl, line 5: the answer ") and reason in said
    assert "7 of 30 rows are like this (also line 10, line 12, " in said and "\n" not in said


@pytest.mark.parametrize(
    "gold",
    ["42", "-1,072", "3/4", "\\frac{\\sqrt{2}}{2}", "(1, 2]", "x^2+1", "\\text{Tuesday}", "B",
     "\\boxed{7}", "12%", "\\{1, 2\\}", "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "$18",
     "All real numbers except x = 1", "\\text{The function is increasing on } (0, 1)"],
)  # fmt: skip
def test_golds_as_they_should_be_pass(gold: str) -> None:
    assert check_questions(questions(("Q", gold)), "data.train", EXACT) == []


class _Undecided(ExactVerifier):
    def verdicts(self, pairs):  # type: ignore[no-untyped-def]
        return [None] * len(pairs)


def test_a_gold_that_cannot_be_judged_is_not_taken_on_trust() -> None:
    with pytest.raises(ConfigError, match="cannot be judged when a response boxes it"):
        check_questions(questions(("Q", "x")), "data.train", _Undecided())


def test_a_long_answer_is_reported() -> None:
    (notice,) = check_questions(
        questions(("Q", "1"), ("R", "the red and the blue ball")), "data.train", EXACT
    )
    assert "data.train: 1 of 2 answers are long" in notice and "a.jsonl, line 2" in notice
    assert prose("a b c d e f g h i j k l") is None  # letters are no words


def respelled(text: str, rng: random.Random) -> str:
    """The same question with other blanks, case, dashes, widths and marks of a sentence."""
    words = text.split(" ")
    text = "".join(word + rng.choice([" ", "  ", "\n", "\t", "\u00a0", " \r\n"]) for word in words)
    changes = [
        lambda t: t.upper(),
        lambda t: t.lower(),
        lambda t: t.replace("-", rng.choice("−–—")),
        lambda t: "".join(chr(ord(c) + 0xFEE0) if c.isdigit() else c for c in t),
        lambda t: t.replace("?", ""),
        lambda t: t.replace(",", ""),
        lambda t: "\ufeff" + t.replace("a", "a\u200b"),
        lambda t: unicodedata.normalize("NFD", t),
        lambda t: f"“{t.strip()}”.",
        lambda t: t.replace(" + ", "+").replace(" = ", "="),
    ]
    for change in rng.sample(changes, rng.randrange(1, 5)):
        text = change(text)
    return text


ASKED = [
    "What is 1 + 2 ?",
    "If x = 3.5, what is 2x - 7?",
    "Évaluer la somme de 3 - 4, puis de 5 + 6.",
    "Compute 10^3 + (2 - 1)/4 .",
    "Tom's cat has 9 lives, how many are left after 3?",
]


@settings(derandomize=True, max_examples=300)
@given(st.sampled_from(ASKED), st.integers(0, 10**9))
def test_a_respelled_question_is_the_same_question(text: str, seed: int) -> None:
    other = respelled(text, random.Random(seed))
    (one,), (two,) = questions((text, "1")), questions((other, "1"), file="b.jsonl")
    assert loose_key(one) == loose_key(two), other
    with pytest.raises(ConfigError, match=r"data\.eval: 1 of 1 questions are also in data\.train"):
        check_leak([one], [two])
    notices = check_questions([one, two], "data.train", EXACT)
    assert "1 of 2 questions repeat an earlier one" in notices[0] and "b.jsonl" in notices[0]


@DRAWN
@given(st.text("0123456789+-*/^!=().x ", min_size=3, max_size=14),
       st.text("0123456789+-*/^!=().x ", min_size=3, max_size=14))  # fmt: skip
def test_other_formulas_are_other_questions(one: str, two: str) -> None:
    def bare(text: str) -> str:  # blanks and full stops may differ
        return "".join(text.split()).replace(".", "")

    assume(bare(one) != bare(two))
    a, b = questions((f"Find {one}", "1"), (f"Find {two}", "1"))
    assert loose_key(a) != loose_key(b) and strict_key(a) != strict_key(b)


@pytest.mark.parametrize(
    ("one", "two"),
    [("4 + 9", "4 - 9"), ("5!", "5"), ("f(1, 2)", "f(12)"), ("3.5", "35"), ("2²", "22"),
     ("1 2 3", "12 3"), ("x'", "x"), ("a < b", "a > b"), ("50%", "50"), ("#  #\n # #", "# #\n#  #"),
     ("+--+  +\n|  |  |", "+--+ +\n|  | |"), ("-3", "3"), ("[1, 2)", "(1, 2]")],
)  # fmt: skip
def test_what_makes_another_question_is_kept(one: str, two: str) -> None:
    a, b = questions((one, "1"), (two, "2"))
    assert loose_key(a) != loose_key(b)
    assert check_questions([a, b], "data.train", EXACT) == []


@pytest.mark.parametrize("blanks", ["{}", " {}\n", "{} "])
def test_one_question_with_two_answers_is_refused(blanks: str) -> None:
    rows = questions(("What is 1 + 2?", "3"), ("Else?", "4"),
                     (blanks.format("What is 1 +  2?"), "12"), ("What is 1+2?", "3.0"))  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        check_questions(rows, "data.train", EXACT)
    assert (
        "a.jsonl, line 3: the question of a.jsonl, line 1 again, with another answer: '12', "
        in (str(caught.value))
    )
    assert check_questions(rows[:2] + rows[3:], "data.train", EXACT) == [
        "data.train: 1 of 3 questions repeat an earlier one but for blanks, case or punctuation "
        "(the first: a.jsonl, line 4 repeats a.jsonl, line 1)"
    ]


def test_other_case_with_another_answer_is_reported() -> None:
    notices = check_questions(
        questions(("Count a in Aa", "1"), ("count A in aa", "0")), "data.eval", EXACT
    )
    assert "1 of these have another answer" in notices[1] and "line 2: '0'" in notices[1]


def test_a_few_shared_questions_are_reported_and_more_refused() -> None:
    train = questions(*[(f"What is {i} + 1?", "1") for i in range(300)], file="train.jsonl")
    held = questions(*[(f"What is {i} * 7?", "1") for i in range(200)], file="test.jsonl")
    assert check_leak(train, held) == []
    held[50] = Question("x", "what is 5  +1", "1", where="test.jsonl, line 51")
    (notice,) = check_leak(train, held)
    assert "1 of 200 questions are also in data.train" in notice
    assert "test.jsonl, line 51, in train train.jsonl, line 6" in notice
    held[60], held[61] = train[7], train[8]
    with pytest.raises(ConfigError, match="3 of 200 .*give eval another file, split, offset or"):
        check_leak(train, held)


def test_chats_are_compared_with_their_roles() -> None:
    base = Question("a", "S\n\nQ", "1", None, (("system", "S"), ("user", "Q")), "a.jsonl, line 1")
    same = Question("b", "s\n\nq", "1", None, (("system", "s"), ("user", "q")), "b.jsonl, line 1")
    other = Question("c", "S\n\nQ", "2", None, (("user", "S"), ("user", "Q")), "b.jsonl, line 2")
    assert loose_key(base) == loose_key(same) != loose_key(other)
