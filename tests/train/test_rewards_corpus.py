"""Answer checking against a public corpus of exploits, and what reaches math-verify.

The corpus is the package reward-doctor 0.2 (Apache-2.0). Its cases that stand in a box are written
down here too, so that the test does not depend on the package.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from siri_train.rewards import MathVerifier, final_answer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed"
)

RIGHT = [
    ("42", "42"),
    ("  42  ", "42"),
    ("42.", "42"),
    ("1,000", "1000"),
    ("1000", "1,000"),
    ("042", "42"),
    ("+42", "42"),
    ("0.50", "0.5"),
    (".5", "0.5"),
    ("3.0", "3"),
    ("1e3", "1000"),
    ("1E-3", "0.001"),
    ("−5", "-5"),
    ("- 5", "-5"),
    ("-0", "0"),
    ("1/2", "0.5"),
    (r"\frac{1}{2}", "1/2"),
    (r"\dfrac{1}{2}", "1/2"),
    ("2/4", "1/2"),
    ("0.3333333333", "1/3"),
    ("1 1/2", "3/2"),
    (r"2\sqrt{3}", "2*sqrt(3)"),
    (r"\sqrt 2", r"\sqrt{2}"),
    ("π", r"\pi"),
    (r"2 \pi", r"2\pi"),
    ("$5$", "5"),
    (r"\boxed{5}", "5"),
    ("5", r"\boxed{5}"),
    (r"\text{5}", "5"),
    ("(5)", "5"),
    ("x = 5", "5"),
    ("5 meters", "5"),
    ("50%", r"50\%"),
    ("Yes", "yes"),
    ("Yes.", "yes"),
    ("a", "A"),
    ("(A)", "A"),
    ("derivative", "the derivative"),
    ("(1, 2)", "(1,2)"),
    ("{3,2,1}", "{1,2,3}"),
]
WRONG = [
    ("0.05", "0.5"),
    ("100", "10"),
    ("21", "12"),
    ("-5", "5"),
    ("2/1", "1/2"),
    ("3.14", "3.14159"),
    ("43", "42"),
    ("52", "5"),
    ("142", "42"),
    ("17", "7"),
    ("no", "yes"),
    ("B", "A"),
    ("", "0"),
    ("5 feet", "5 meters"),
    ("40, 41, 42, 43, or 44", "42"),
    ("A, B, C, or D", "C"),
    ("not 42", "42"),
    ("43", "42"),
    (", ".join(map(str, range(1, 40))), "42"),
]


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(workers=1) as shared:
        yield shared


def test_the_boxed_cases_of_the_corpus(verifier: MathVerifier) -> None:
    verdicts = verifier.verdicts(RIGHT + WRONG)
    refused = [pair for pair, right in zip(RIGHT, verdicts[: len(RIGHT)], strict=True) if not right]
    paid = [pair for pair, right in zip(WRONG, verdicts[len(RIGHT) :], strict=True) if right]
    assert not refused and not paid


def test_the_corpus_itself(verifier: MathVerifier) -> None:
    corpus = pytest.importorskip("reward_doctor.corpus", reason="reward-doctor is not installed")
    cases = corpus.load(include_contested=True)
    assert len(cases) >= 87
    texts = [
        f"\\boxed{{{case.completion}}}"
        if case.category in ("equivalence", "distinction") and "\\boxed" not in case.completion
        else case.completion
        for case in cases
    ]
    pairs = [
        (final_answer(text, think="optional"), case.reference)
        for text, case in zip(texts, cases, strict=True)
    ]
    graded = list(zip(cases, texts, verifier.verdicts(pairs), strict=True))
    assert not [case.id for case, _, right in graded if right and not case.expect]
    # Answers outside a box are refused on purpose.
    boxed = [(case.id, right) for case, text, right in graded if case.expect and "\\boxed" in text]
    assert len(boxed) >= 40 and not [name for name, right in boxed if not right]


EVALUATED = [
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt3}"),
    ("√50", r"5\sqrt{2}"),
    ("3pi/4", r"\frac{3}{4}\pi"),
    ("(a+b)(a-b)", "a^2-b^2"),
    (r"(\frac12, √8)", r"(0.5,2\sqrt2)"),
    (r"\{\sqrt8, 1\}", r"1, 2\sqrt{2}"),
    (
        r"\begin{bmatrix} \frac12 \\ \sqrt{8} \end{bmatrix}",
        r"\begin{pmatrix}0.5\\2\sqrt2\end{pmatrix}",
    ),
    (r"x \leq \sqrt{8}", r"(-\infty, 2\sqrt{2}]"),
    (r"x=1+√2 \text{ or } x=1-√2", r"1\pm\sqrt{2}"),
    ("2x+2y=6", "x+y=3"),
    (r"12\pi\text{ cm}^2", r"3\cdot 4\pi"),
    ("xy", "yx"),
    ("A+a+1", "1+a+A"),
    ("5m^2+m", "m(5m+1)"),
]
"""Pairs that only their values decide."""


def test_what_must_be_computed_reaches_math_verify(verifier: MathVerifier) -> None:
    assert verifier.verdicts(EVALUATED) == [True] * len(EVALUATED)


LOST = [
    ("A+a", "2A"),  # capitals
    (r"\frac{A}{a}", "1"),
    ("2X+1", "1+2x"),
    ("f'(x)+1", "1+f(x)"),  # primes
    ("2AB+1", "1+2BA"),  # the order of letters
    ("5m+x", "x+5"),  # letters that are units to math-verify
    ("x+3h", "x+3"),
    ("7s", "7"),
    (r"10^{-17}\pi", r"2\cdot 10^{-17}\pi"),  # small numbers
    ("1e-17x", "2e-17x"),
    (r"\sqrt{2}\cdot 10^{-20}", r"\sqrt{3}\cdot 10^{-20}"),
    ("e^{-50}", "e^{-51}"),
    ("2^{-60}", "2^{-61}"),
    ("3.14159265", r"\pi"),  # too few digits for certain
    (r"101_2+x", "101+x"),  # bases
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "-2"),  # determinants
    (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", "-2"),  # something left to compute
    (r"\vec{v}+1", "v+1"),  # accents
    (r"\overline{AB}", "AB"),
    (r"(\sqrt8, 1)", r"(1, 2\sqrt2)"),  # order
    (r"x<\sqrt8", r"x>2\sqrt2"),  # direction
    (r"\pm\sqrt8", r"2\sqrt2"),
    (r"\sqrt{8}=\sqrt{8}", r"2\sqrt2"),
]
"""Pairs that math-verify alone, or a careless question to it, takes for equal."""


def test_what_math_verify_would_lose_is_kept(verifier: MathVerifier) -> None:
    paid = [pair for pair, right in zip(LOST, verifier.verdicts(LOST), strict=True) if right]
    assert not paid
