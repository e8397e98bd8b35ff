"""Answer checking by rule, with drawn answers: words, choices, expressions, exploits."""

from __future__ import annotations

import itertools
import string
import time
from random import Random

import pytest

from siri_train.rewards.exact import exact_match, exact_verdict
from tests.train.spellings import (
    LOWERED,
    RAISED,
    all_equal,
    none_equal,
    wrapped,
)

SEEDS = range(10)


@pytest.mark.parametrize("seed", SEEDS)
def test_words_keep_their_letters_order_and_case(seed: int) -> None:
    rng = Random(seed)
    upper = "".join(rng.sample(string.ascii_uppercase, rng.randrange(2, 6)))
    shuffled = "".join(rng.sample(upper, len(upper)))
    for style in ("{}", r"\text{{{}}}", r"\mathrm{{{}}}", r"\textbf{{{}}}."):
        assert exact_match(style.format(upper), upper)
        assert exact_match(style.format(shuffled), upper) == (shuffled == upper)
        assert not exact_match(style.format(upper.lower()), upper)
        assert not exact_match(style.format(upper), upper.lower())
    letter = rng.choice(string.ascii_lowercase)
    assert not exact_match(letter.upper(), letter)
    coefficient = rng.randrange(2, 9)
    assert exact_verdict(f"{coefficient}{letter}", f"{coefficient}{letter.upper()}") is not True


def test_sentences_may_be_written_as_one_likes() -> None:
    for word in ("yes", "no", "true", "false", "none", "even", "paris", "tuesday", "isosceles"):
        forms = [
            word,
            word.title(),
            f"{word.title()}.",
            f"\\text{{{word}}}",
            f"\\textbf{{{word}}}",
            f"{word}!",
        ]
        for form, gold in itertools.product(forms, forms):
            assert exact_match(form, gold), (form, gold)
        none_equal(forms, "maybe")
    assert exact_match("the derivative", "derivative") and exact_match("A circle", "circle")
    assert exact_match("no solution", r"\text{No solution}.") and exact_match("3 PM", "3 p.m.")
    assert not exact_match("no solution", "one solution")


@pytest.mark.parametrize("letter", "ABCDE")
def test_a_choice_may_carry_its_text_but_no_second_choice(letter: str) -> None:
    other = "B" if letter == "A" else "A"
    marks = [
        letter,
        f"({letter})",
        f"{letter}.",
        f"\\text{{{letter}}}",
        f"\\textbf{{({letter})}}",
        f"Option {letter}",
    ]
    marks += [f"\\mathrm{{({letter})}}", letter.lower(), f"({letter.lower()})", f"{letter}:"]
    texts = [
        r"({}) 12",
        r"{}. 12",
        r"{}) \frac{{1}}{{2}}",
        r"\textbf{{({})}}\ 12",
        r"\text{{({}) }}x+1",
        "{}: none",
    ]
    forms = marks + [text.format(letter) for text in texts]
    for gold in (letter, f"({letter})", f"\\text{{({letter})}}"):
        all_equal(forms, gold)
        none_equal([form.format(other) for form in texts] + [other, f"({other})"], gold)
        for both in (
            "{} or {}",
            "{}, {}",
            "({})({})",
            "{}) {})",
            "({}) {}",
            "{} and {}",
            "{}{}",
            "{}/{}",
        ):
            for pair in ((letter, other), (other, letter)):
                assert not exact_match(both.format(*pair), gold), (both, pair)
    assert exact_match(f"({letter}) 12", f"({letter}) 12.0")
    assert not exact_match(f"({letter}) 12", f"({letter}) 13")


@pytest.mark.parametrize("seed", SEEDS)
def test_number_bases_and_primes_are_kept(seed: int) -> None:
    rng = Random(seed)
    base = rng.choice([2, 3, 5, 8])
    digits = "1" + "".join(rng.choice("01") for _ in range(4))
    value = int(digits, base)
    forms = [
        f"{digits}_{base}",
        f"{digits}_{{{base}}}",
        f"({digits})_{base}",
        f"{digits}_{{({base})}}",
        f"0{digits}_{base}",
    ]
    all_equal(forms, rng.choice(forms))
    for wrong in (digits, str(value), f"{digits}_{base + 1}", f"{digits}1_{base}"):
        none_equal(forms, wrong)
        none_equal([wrong], rng.choice(forms))
    name = rng.choice("fghy")
    primes = [name + "'" * n for n in range(4)]
    for (m, one), (n, two) in itertools.product(enumerate(primes), enumerate(primes)):
        assert exact_match(one, two) == (m == n)
        assert (exact_verdict(f"{one}(x)+1", f"{two}(x)+1") is True) == (m == n)
        assert m == n or exact_verdict(f"{one}(x)+1", f"{two}(x)+1") is False
    assert exact_match(name + r"^{\prime}", name + "'") and exact_match(name + "′", name + "'")


@pytest.mark.parametrize("seed", SEEDS)
def test_one_expression_in_every_spelling(seed: int) -> None:
    rng = Random(seed)
    a, b, n = rng.randrange(2, 9), rng.choice([2, 3, 5, 7, 11, 13]), rng.randrange(2, 12)
    variable = rng.choice("xyzt")
    pairs = [
        (
            [
                rf"{a}\sqrt{{{b}}}",
                rf"{a}√{b}",
                rf"{a}\sqrt {b}",
                rf"{a}\sqrt({b})",
                f"{a}*sqrt({b})",
                rf"{a}\cdot\sqrt{{{b}}}",
            ],
            rf"{a}\sqrt{{{b + 1}}}",
        ),
        (
            [
                rf"{variable}^{{{n}}}+{a}",
                f"{variable}^{n} + {a}",
                f"{variable}^({n})+{a}",
                f"{variable}{str(n).translate(RAISED)}+{a}",
            ],
            rf"{variable}^{{{n + 1}}}+{a}",
        ),
        ([rf"{a}\pi", f"{a}π", rf"{a}\,\pi", f"{a}pi", rf"{a} \cdot \pi"], rf"{a + 1}\pi"),
        (
            [
                rf"\frac{{{variable}}}{{{b}}}",
                rf"\dfrac {variable}{{{b}}}",
                f"{variable}/{b}",
                rf"{{{variable}\over {b}}}",
            ],
            rf"\frac{{{variable}}}{{{b + 1}}}",
        ),
        (
            [
                rf"{variable}_{{{n}}}",
                f"{variable}_{n}",
                f"{variable}{str(n).translate(LOWERED)}",
            ],
            rf"{variable}_{{{n + 1}}}",
        ),
        ([r"-\infty", "-∞", "−∞", r"- \infty"], r"\infty"),
        (
            [
                f"{n}th",
                rf"{n}^{{\text{{th}}}}",
                rf"{n}^{{th}}",
                rf"{n}\text{{th}}",
                rf"{n}^\text{{th}}",
            ],
            f"{n + 1}th",
        ),
    ]
    for forms, other in pairs:
        gold = rng.choice(forms)
        drawn = [wrapped(form, rng, 1) for form in forms]
        all_equal(drawn, gold)
        none_equal(drawn, other)


INVISIBLE = (
    "\u200b\u200c\u200d\u2060\u2062\u200e\u200f\u202a\u202e\u2066\ufeff\u00ad\u3164\u2800\ufe0f"
    "\x00\x1b\x7f"
)


@pytest.mark.parametrize("gold", ["42", "B", "Yes", r"\frac{1}{2}", "(1,2)", "18 cm"])
def test_what_shows_otherwise_than_it_is_stays_wrong(gold: str) -> None:
    for mark, place in itertools.product(INVISIBLE, (0, len(gold) // 2, len(gold))):
        assert not exact_match(gold[:place] + mark + gold[place:], gold)
        assert exact_match(gold, gold + mark)  # dirt in the data is not the model's fault
    homoglyphs = str.maketrans("ABexc1", "АВехс" + "l")
    if (other := gold.translate(homoglyphs)) != gold:
        assert not exact_match(other, gold)


@pytest.mark.parametrize("gold", [42, 7, 120])
def test_an_exploit_of_a_number_stays_wrong(gold: int) -> None:
    other = gold + 1
    forms = [
        "{g}, {o}",
        "{o}, {g}",
        "{g} or {o}",
        "{g}; {o}",
        "{g} {o}",
        r"{g}\text{{ or }}{o}",
        "{o}={g}",
        "{g}={g}",
        "x={o}={g}",
        "{o}-1",
        "{g}+0",
        "1*{g}",
        r"\frac{{{g}}}{{1}}+0",
        r"\sqrt{{{g}^2}}",
        "{g}!",
        "|{g}|",
        "not {g}",
        "{g} is the answer",
        "The answer is {g}",
        "{g} because",
        "about {g}",
        r"\approx {g}",
        "{g}?",
        "{g}...",
        "{g} (or {o})",
        r"{g} \neq {o}",
        r"\{{{g},{o}\}}",
        "({g},{o})",
        "{g}x",
        "{g}^1",
        "{{{g}",
        "{g}}}",
        r"\pm {g}",
        ">{g}",
        "x>{g}",
        "{g}%",
        "-{g}",
        "{g}_8",
        "{g}:00",
        "{g}'",
    ]
    for form in forms:
        text = form.format(g=gold, o=other)
        assert exact_verdict(text, str(gold)) is False, text


@pytest.mark.draw(2)
@pytest.mark.parametrize("seed", range(6))
def test_any_text_equals_itself_and_ends_soon(seed: int) -> None:
    rng = Random(seed)
    parts = [
        "1",
        " ",
        "a",
        "x=",
        "(",
        ")",
        "{",
        "}",
        r"\{",
        r"\frac",
        "^",
        "_",
        r"\text{",
        ",",
        "and ",
        "'",
        "-",
    ]
    parts += [
        "cm ",
        "m/",
        "$",
        "%",
        "1e",
        r"\begin{pmatrix}",
        "&",
        r"\\",
        r"\cup ",
        "<",
        "...",
        "1,000,",
        "½",
        "(B)",
    ]
    parts += [
        r"\overline{3}",
        r"\left(",
        r"\sqrt",
        r"\pm ",
        "per ",
        "of ",
        " million",
        "√",
        "°",
        r"\over ",
        "²",
    ]
    started = time.process_time()
    for _ in range(12):
        unit = "".join(rng.choices(parts, k=rng.randrange(1, 4)))
        text = unit * (rng.choice([40, 1000]) // len(unit))
        if text.strip():
            assert exact_match(text, text) in (True, False)
        for gold in ("42", "(1,2)", "5 cm", "B", text[:-1] or "x"):
            exact_verdict(text, gold)
            exact_verdict(gold, text)
    # A regular expression that goes back and forth would take hours.
    assert time.process_time() - started < 120
