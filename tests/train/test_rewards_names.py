"""Answer checking: confused letters, names that deny, and hours, places, ratios."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from random import Random

import pytest

from siri_train.rewards import MathVerifier, make_verifier
from siri_train.rewards.exact import exact_match

BOTH_CASES = "gamma delta theta lambda xi pi sigma upsilon phi psi omega".split()
FORMS = ("{}", "2{} x", r"\frac{{{}}}{{2}}", "{}+1", r"\sqrt{{{}}}", "x^{{{}}}")


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    pytest.importorskip("math_verify")
    with closing(make_verifier("math_verify", workers=1, timeout=5)) as made:
        assert isinstance(made, MathVerifier)
        yield made


def test_a_greek_letter_keeps_its_case(verifier: MathVerifier) -> None:
    pairs = []
    for name, form in itertools.product(BOTH_CASES, FORMS):
        small, capital = form.format(f"\\{name}"), form.format(f"\\{name.title()}")
        pairs += [(small, capital), (capital, small)]
        pairs.append((f"\\{name}+2\\{name.title()}", f"2\\{name}+\\{name.title()}"))
    assert not any(verifier.verdicts(pairs))
    assert not any(verifier.verdicts([(r"\gamma", "0.5772156649015329"), ("Ω", "ω")]))
    same = [(f"2\\{name} x+x", f"x(1+2\\{name})") for name in BOTH_CASES]
    assert all(verifier.verdicts(same))


def test_an_inverse_function_is_no_reciprocal(verifier: MathVerifier) -> None:
    pairs = [(f"{f}^{{-1}}({x})", f"\\frac{{1}}{{{f}({x})}}") for f in "fgh" for x in "xt2"]
    assert not any(verifier.verdicts(pairs))


@pytest.mark.parametrize("seed", range(6))
def test_the_imaginary_unit_stands_where_it_likes(seed: int, verifier: MathVerifier) -> None:
    rng = Random(seed)
    a, b, root = rng.randrange(2, 9), rng.randrange(2, 9), rng.choice((2, 3, 5, 7))
    forms = [
        f"{a}+{b}\\sqrt{{{root}}}i",
        f"{a}+{b}i\\sqrt{{{root}}}",
        f"i{b}\\sqrt{{{root}}}+{a}",
        f"{b}\\sqrt{{{root}}}\\,i+{a}",
        f"\\frac{{{2 * a}+{2 * b}i\\sqrt{{{root}}}}}{{2}}",
    ]
    assert all(verifier.verdicts(list(itertools.product(forms, forms))))
    others = [forms[0].replace("+", "-"), forms[0].replace("i", ""), f"{b}+{a}\\sqrt{{{root}}}i"]
    others = [other for other in others if other not in forms]
    assert not any(verifier.verdicts(list(itertools.product(others, forms))))


def test_the_imaginary_unit_squares_to_minus_one(verifier: MathVerifier) -> None:
    pairs = [(f"({n}+i)^2", f"{n * n - 1}+{2 * n}i") for n in range(2, 6)] + [
        (f"\\frac{{{n * n + 1}}}{{{n}+i}}", f"{n}-i") for n in range(2, 6)
    ]
    assert all(verifier.verdicts(pairs))
    assert not any(verifier.verdicts([(answer, f"{gold}+x") for answer, gold in pairs]))


@pytest.mark.parametrize("value", ("18", r"\frac{3}{4}", "-2.5"))
def test_what_denies_a_value_does_not_name_it(value: str) -> None:
    named = ["x", "AB", r"\text{Total}", r"\angle A", "f(3)", "x_{1}", r"\text{Number of notes}"]
    for name in named:
        assert exact_match(f"{name} = {value}", value)
        for denial in (r"\not", r"\text{ is not }", r"\text{ is never }", r"\text{ isn't }"):
            assert not exact_match(f"{name}{denial}={value}", value), (name, denial)
    for name in ("not x", "anything but", "wrong answer", "incorrect", r"\lnot x", r"\not", "not"):
        assert not exact_match(
            f"\\text{{{name}}} = {value}" if name.isalpha() else f"{name} = {value}", value
        ), name
    assert exact_match(f"{value} = x", value) and not exact_match(f"{value} = 2x", value)


def test_a_sum_of_letters_is_what_was_asked_for() -> None:
    for left in ("m+n", "m + n", "p+q+r", "a-b"):
        assert exact_match(f"{left}=17", "17")
        for wrong in (
            f"{left}=18",
            f"2{left}=17",
            f"{left}\\neq 17",
            f"{left}>17",
            f"{left}=17, c=3",
            f"{left}=17 \\text{{ or }} 18",
            f"{left}=17=18",
        ):
            assert not exact_match(wrong, "17"), wrong
        assert not exact_match("17", f"{left}=17")  # an equation is not its right side


@pytest.mark.parametrize("hour", (1, 3, 10, 12))
def test_a_full_hour_and_a_place_in_an_order(hour: int) -> None:
    for half in ("am", "pm"):
        forms = [
            f"{hour} {half}",
            f"{hour}:00 {half}",
            f"\\text{{{hour}:00 {half.upper()}}}",
            f"{hour}\\text{{ {half[0]}.m.}}",
            f"{hour}:00\\text{{ {half[0].upper()}.M.}}",
        ]
        other = "pm" if half == "am" else "am"
        for form, gold in itertools.product(forms, forms):
            assert exact_match(form, gold), (form, gold)
            assert not exact_match(form, f"{hour}:30 {half}")
            assert not exact_match(form, f"{hour}:00 {other}")
            assert not exact_match(form, f"{hour + 1} {half}")
    assert not exact_match(f"{hour}:00", str(hour))
    for form in (r"{}\text{{th}}", "{}^{{th}}", "{}th", r"{}\,\mathrm{{th}}"):
        assert exact_match(form.format(hour), str(hour))
        assert not exact_match(form.format(hour), str(hour + 1))


def test_a_ratio_in_words() -> None:
    for a, b in itertools.permutations((2, 3, 7, 2.5), 2):
        for form in ("{} to {}", r"{}\text{{ to }}{}"):
            assert exact_match(form.format(a, b), f"{a}:{b}")
            for gold in (f"{b}:{a}", f"{a}", f"{b}", f"[{a},{b}]", f"{a},{b}"):
                assert not exact_match(form.format(a, b), gold), gold


@pytest.mark.parametrize("day", (1, 2, 3, 4, 11, 22, 30))
def test_a_day_of_a_month_may_be_an_ordinal(day: int) -> None:
    ending = {1: "st", 2: "nd", 3: "rd", 22: "nd"}.get(day, "th")
    for month in ("January", "May", "December"):
        for form in ("{} {}{}", r"\text{{{} {}{}}}", r"\text{{{} }}{}^{{\text{{{}}}}}"):
            answer = form.format(month, day, ending)
            assert exact_match(answer, f"{month} {day}"), answer
            assert not exact_match(answer, f"{month} {day + 1}")
            assert not exact_match(answer, f"June {day}")
    assert exact_match(f"July {day}{ending}, 2020", f"July {day}, 2020")


def test_marks_that_are_written_in_two_ways() -> None:
    for domain in ("", r"\in\mathbb{Z}", r" \in \mathbb{R}"):
        for bound in (2, 5):
            left, right = (f"\\{{n{domain}{mark} n>{bound}\\}}" for mark in (":", r" \mid"))
            assert exact_match(left, right) and exact_match(right, left)
            assert not exact_match(left, right.replace(">", "<"))
            assert not exact_match(left, f"{bound}")
    for dots in ("...", r"\ldots", r"\dots", r"\cdots", "…"):
        assert exact_match(f"1,2,{dots},9", r"1, 2, \ldots, 9")
        assert not exact_match(f"1,2,{dots},9", r"1,2,\ldots,8")
        assert not exact_match(f"1,2,{dots},9", "1,2,9")
