"""Number words, decimal commas, marked groups, glued units, amounts in several units: drawn."""

from __future__ import annotations

from fractions import Fraction
from random import Random

import pytest

from siri_train.rewards.exact import exact_match
from siri_train.rewards.number_words import read_number_words
from siri_train.rewards.unit_table import GLUED, KNOWN

SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(n: int, rng: Random) -> str:
    """An English spelling of ``n``, 0 <= n < 10**12, with or without "and" and hyphens."""
    if n < 20:
        return SMALL[n]
    if n < 100:
        rest = n % 10
        return TENS[n // 10 - 2] + (rng.choice("- ") + SMALL[rest] if rest else "")
    for scale, name in (
        (10**9, "billion"),
        (10**6, "million"),
        (1000, "thousand"),
        (100, "hundred"),
    ):
        if n >= scale:
            head, rest = in_words(n // scale, rng), n % scale
            joint = rng.choice((" and ", " ")) if rest < 100 else " "
            return f"{head} {name}" + (joint + in_words(rest, rng) if rest else "")
    raise AssertionError(n)


@pytest.mark.draw(2)
@pytest.mark.parametrize("seed", range(6))
def test_a_number_in_words_is_that_number_and_no_other(seed: int) -> None:
    rng = Random(seed)
    for _ in range(25):
        n = rng.choice((rng.randrange(130), rng.randrange(10**4), rng.randrange(10**12)))
        words = in_words(n, rng)
        shown = rng.choice((words, words.capitalize(), f"\\text{{{words}}}", f"{words}."))
        assert exact_match(shown, str(n)) and exact_match(str(n), shown), (shown, n)
        assert exact_match(f"negative {words}", str(-n)) and exact_match(f"{n:,}", words)
        for other in {n + 1, n * 10, n * 100, n // 10, n // 100, n % 100, n % 1000, -n} - {n}:
            assert not exact_match(shown, str(other)), (shown, other)
        assert exact_match(f"{words} apples", str(n))
        assert not exact_match(f"{words} percent", str(n)) or n == 0
        assert exact_match(f"{words} percent", f"{n}\\%")


@pytest.mark.draw(2)
@pytest.mark.parametrize("seed", range(4))
def test_words_that_are_no_number_stay_words(seed: int) -> None:
    rng = Random(seed)
    for _ in range(60):
        one, two = rng.randrange(1, 100), rng.randrange(1, 100)
        a, b = in_words(one, rng), in_words(two, rng)
        beside = f"{a} {b}"
        if read_number_words(beside) is not None:  # twenty and five are twenty-five
            assert one in range(20, 100, 10) and two < 10
            continue
        for text in (
            beside, f"{a} or {b}", f"{a} and {b}", f"{a} to {b}", f"{a} plus {b}", f"not {a}",
            f"about {a}", f"at least {a}", f"{a} minus one", f"{a} hundred and",
        ):  # fmt: skip
            for gold in {one, two, one + two, int(f"{one}{two}"), one * 100, 100 * one + two}:
                assert not exact_match(text, str(gold)), (text, gold)


def test_parts_in_words() -> None:
    parts = {
        "half": 2,
        "third": 3,
        "quarter": 4,
        "fifth": 5,
        "eighth": 8,
        "tenth": 10,
        "hundredth": 100,
    }
    for name, below in parts.items():
        plural = "halves" if name == "half" else f"{name}s"
        for above in range(1, 13):
            text = f"{SMALL[above]} {plural if above > 1 else name}"
            gold = Fraction(above, below)
            assert exact_match(text, f"{above}/{below}") and exact_match(
                text.replace(" ", "-"), str(gold)
            )
            for wrong in {Fraction(above), Fraction(below), 1 / gold, gold + 1} - {gold}:
                assert not exact_match(text, str(wrong)), (text, wrong)
            if above < below:
                assert exact_match(f"seven and {text}", str(7 + gold))
        if name != "half":  # "third" is a place in a row
            assert (
                read_number_words(name) is None and read_number_words(f"{SMALL[3]} {name}") is None
            )


@pytest.mark.draw(2)
@pytest.mark.parametrize("seed", range(6))
def test_a_decimal_comma_is_read_where_one_number_is_asked_for(seed: int) -> None:
    rng = Random(seed)
    for _ in range(40):
        whole, places = (
            rng.choice((0, rng.randrange(10), rng.randrange(10**6))),
            rng.randrange(1, 6),
        )
        if places == 3 and whole:
            places = 2
        digits = "".join(rng.choices("0123456789", k=places - 1)) + rng.choice("123456789")
        sign = rng.choice(("", "-"))
        gold, text = f"{sign}{whole}.{digits}", f"{sign}{whole},{digits}"
        assert exact_match(text, gold) and exact_match(text.replace(",", "{,}"), gold)
        assert exact_match(text, str(Fraction(gold))) and exact_match(f"{text} cm", gold)
        # A list stays one, and one number is no list.
        assert exact_match(text, f"\\{{{sign}{whole};{digits}\\}}")
        assert not exact_match(gold, text) and not exact_match(text, f"{sign}{whole}")
        for wrong in (
            f"{sign}{whole}{digits}",
            str(int(digits)),
            gold + "1",
            f"{sign}{whole + 1}.{digits}",
        ):
            if Fraction(wrong) != Fraction(gold):
                assert not exact_match(text, wrong), (text, wrong)
        for brackets in ("({})", r"\{{{}\}}", "[{}]"):
            assert not exact_match(brackets.format(text), gold)
        assert not exact_match(f"{whole}, {digits}", gold)


@pytest.mark.draw(2)
@pytest.mark.parametrize("seed", range(4))
def test_digits_in_groups(seed: int) -> None:
    rng = Random(seed)
    for _ in range(60):
        n = rng.randrange(1000, 10**10)
        by_comma = f"{n:,}"
        part = f"{rng.randrange(100):02d}7"[:2] + "5"
        for mark in ("_", r"\_", "'", ",", "{,}", r"\,", " "):
            text = by_comma.replace(",", mark)
            assert exact_match(text, str(n)) and exact_match(str(n), text), text
            for wrong in (n + 1, n // 1000, n % 1000, n * 10):
                assert not exact_match(text, str(wrong)), (text, wrong)
        assert exact_match(f"{by_comma.replace(',', '.')},{part[-1]}", f"{n}.{part[-1]}")
        if n >= 10**6:
            assert exact_match(by_comma.replace(",", "."), str(n))
        else:  # a decimal
            assert not exact_match(by_comma.replace(",", "."), str(n))
        # A group behind a zero, and groups of another size, group nothing.
        assert not exact_match(f"0,{n % 900 + 100}", str(n % 900 + 100))
        assert not exact_match(f"{n}_{rng.randrange(10, 99)}", f"{n}{rng.randrange(10, 99)}")


SYMBOLS = sorted(symbol for symbol in GLUED if symbol.isascii() and symbol in KNOWN)


@pytest.mark.draw(2)
@pytest.mark.parametrize("seed", range(6))
def test_products_of_units_in_every_writing(seed: int) -> None:
    rng = Random(seed)
    for _ in range(25):
        above = rng.choice(("m", "kg", "mol", "N", "J", "W", "g", "kJ", "cm", "L"))
        below = rng.choice(("s", "K", "kg", "m", "min", "mol", "cm", "dm"))
        if KNOWN[above] == KNOWN[below]:
            continue
        power = rng.randrange(1, 4)
        raised = f"^{power}" if power > 1 else ""
        forms = [
            rf"7\,\mathrm{{{above}\,{below}^{{-{power}}}}}",
            rf"7\,\mathrm{{{above}}}\,\mathrm{{{below}}}^{{-{power}}}",
            rf"7 \mathrm{{~{above}}} \cdot \mathrm{{{below}}}^{{-{power}}}",
            f"7 {above} {below}^{{-{power}}}",
            f"7 {above}/{below}{raised}",
            f"7 {above}/{below}" + f"/{below}" * (power - 1),
            f"7 {above}.{below}^{{-{power}}}",
            rf"7\ \frac{{\text{{{above}}}}}{{\text{{{below}}}{raised}}}",
        ]
        glued = above + below
        known = glued in KNOWN and not glued.endswith("s")  # mmol, mm
        if {above, below} <= set(SYMBOLS) and not known or glued == "ms":
            forms += [
                f"7 {above}{below}^{{-{power}}}",
                rf"7\,\mathrm{{{above}{below}}}^{{-{power}}}",
            ]
        for form in forms:
            assert (
                exact_match(form, "7")
                and exact_match(form, forms[4])
                and exact_match(forms[0], form)
            )
            others = [f"7 {above}", f"7 {below}", f"7 {above}/{below}^{power + 1}"]
            others += [
                f"7 {above} {below}{raised}",
                f"7 {below}/{above}{raised}",
                f"8 {above}/{below}{raised}",
            ]
            for other in others:
                assert not exact_match(form, other), (form, other)


def test_milliseconds_are_no_metre_seconds() -> None:
    assert exact_match("3 ms^{-1}", "3 m/s") and exact_match("3 ms", "3 milliseconds")
    for one, two in (("3 ms", "3 m s"), ("3 ms", "3 m/s"), ("3 ms^{-1}", "3 ms"), ("3 Nm", "3 nm")):
        assert not exact_match(one, two) and not exact_match(two, one)


@pytest.mark.draw(2)
@pytest.mark.parametrize("seed", range(4))
def test_amounts_in_several_units(seed: int) -> None:
    rng = Random(seed)
    kinds = [
        (("hours", "h", "hr"), ("minutes", "min"), ("seconds", "s", "sec")),
        (("feet", "ft"), ("inches", "in")), (("pounds", "lb"), ("ounces", "oz")),
        (("dollars",), ("cents",)), (("years", "yr"), ("months",), ("days",)),
    ]  # fmt: skip
    for _ in range(60):
        kind = rng.choice(kinds)
        size = rng.randrange(2, len(kind) + 1)
        values = [rng.randrange(2, 60) for _ in range(size)]

        def form(numbers: list[int], kind: tuple[tuple[str, ...], ...] = kind) -> str:
            parts = [f"{n} {rng.choice(names)}" for n, names in zip(numbers, kind, strict=False)]
            return rng.choice((" ", ", ")).join(parts[:-1]) + rng.choice((" ", " and ")) + parts[-1]

        assert exact_match(form(values), form(values))
        place = rng.randrange(size)
        other = [n + (i == place) for i, n in enumerate(values)]
        assert not exact_match(form(other), form(values))
        if values[0] != values[1]:
            swapped = [values[1], values[0], *values[2:]]
            assert not exact_match(form(swapped), form(values))
        for single in (*map(str, values), str(sum(values)), f"{values[0]}.{values[1]}"):
            assert not exact_match(form(values), single) and not exact_match(single, form(values))


@pytest.mark.draw(2)
@pytest.mark.parametrize("seed", range(4))
def test_inequalities_joined(seed: int) -> None:
    rng = Random(seed)
    for _ in range(40):
        low, high = sorted(rng.sample(range(1, 60), 2))
        below, above = rng.choice(("<", r"\le ")), rng.choice((">", r"\ge "))
        opening, closing = "(["[above != ">"], ")]"[below != "<"]
        parts = [f"x{above}{low}", f"x{below}{high}"]
        rng.shuffle(parts)
        both, either = " and ".join(parts), " or ".join(parts)
        assert exact_match(both, f"{opening}{low},{high}{closing}")
        assert not exact_match(either, both) and not exact_match(both, either)
        assert not exact_match(either, f"{opening}{low},{high}{closing}")
        assert exact_match(f"|x|{below}{low}", f"-{low}{below}x{below}{low}")
        assert not exact_match(f"|x|{below}{low}", f"x{below}{low}")
        assert exact_match(f"|x|{above}{low}", f"x{above}{low} or x{below}-{low}".replace(
            below, {">": "<", r"\ge ": r"\le "}[above]
        ))  # fmt: skip
    for one, two in (("Ann or Bob", "Ann and Bob"), ("x>1 or y<2", "x>1 and y<2")):
        assert not exact_match(one, two) and not exact_match(two, one)
    assert exact_match("x=1 or x=2", "1 and 2")


@pytest.mark.parametrize("seed", range(3))
def test_a_point_may_have_its_name(seed: int) -> None:
    rng = Random(seed)
    for _ in range(30):
        point = [rng.randrange(-9, 10) for _ in range(rng.choice((2, 3)))]
        name, other = rng.sample("ABCDPQ", 2)
        text = f"({', '.join(map(str, point))})"
        assert exact_match(name + text, text) and exact_match(text, f"{name}_1{text}")
        assert not exact_match(name + text, other + text)
        wrong = point[1:] + point[:1]
        if wrong != point:
            assert not exact_match(f"{name}({','.join(map(str, wrong))})", text)


def test_two_products_of_vectors() -> None:
    pytest.importorskip("math_verify")
    from siri_train.rewards import MathVerifier

    right = [(r"\vec{a}+2\vec{b}", r"2\vec b+\vec a"), (r"\frac{1}{2}\vec{a}", r"\frac12\vec{a}")]
    wrong = [
        (r"\vec{a}\times\vec{b}", r"\vec{a}\cdot\vec{b}"),
        (r"\vec{a}\times\vec{b}", r"\vec{b}\times\vec{a}"),
        (r"\vec{a}+\vec{b}", r"\vec{a}-\vec{b}"),
        (r"\vec{a}+\vec{b}", r"\vec{a}+\vec{c}"),
        (r"\vec{a}", "a"),
    ]
    with MathVerifier(workers=1, timeout=5.0, batch_timeout=None) as verifier:
        assert verifier.verdicts(right + wrong) == [True] * len(right) + [False] * len(wrong)


def test_a_rounded_gold_may_be_given_as_about() -> None:
    for text in (r"\approx 3.14", r"x \approx 3.14", "≈3.14"):
        assert exact_match(text, "3.14") and not exact_match(text, "3.15")
    assert not exact_match(r"\approx 42", "42")
