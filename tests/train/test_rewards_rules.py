"""Answer checking by rule, with drawn answers: numbers and units."""

from __future__ import annotations

import itertools
import string
from fractions import Fraction
from random import Random

import pytest

from siri_train.rewards.exact import exact_match
from siri_train.rewards.unit_table import AMBIGUOUS, KNOWN, NOT_COUNTED
from tests.train.spellings import all_equal, draw_number, none_equal, numbers, wrapped

SEEDS = range(10)


@pytest.mark.draw(4)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_number_is_itself_in_every_spelling_and_no_other_number(seed: int) -> None:
    rng = Random(seed)
    for _ in range(6):
        value, other = draw_number(rng), draw_number(rng)
        forms = numbers(value)
        all_equal([wrapped(form, rng) for form in forms], rng.choice(forms))
        near = value + rng.choice([1, -1, Fraction(1, 10), value / 10, -2 * value, value])
        for wrong in {other, near} - {value}:
            none_equal([wrapped(form, rng) for form in forms], rng.choice(numbers(wrong)))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_long_decimal_stands_for_a_fraction_only_if_it_is_rounded_rightly(seed: int) -> None:
    rng = Random(seed)
    value = Fraction(rng.randrange(1, 500), rng.choice([3, 7, 9, 11, 13, 17, 21]))
    if value.denominator == 1:
        value += Fraction(1, 3)
    gold = f"{value.numerator}/{value.denominator}"
    for places in range(1, 16):
        scale = 10**places
        down, rounded = value * scale // 1, round(value * scale)
        for digits in {down, rounded, down - 1, rounded + 1}:
            text = f"{digits // scale}.{digits % scale:0{places}d}"
            certain = len(text.replace(".", "").lstrip("0")) >= 10 and digits in (down, rounded)
            assert exact_match(text, gold) == certain, (text, gold)


SPELLINGS: dict[str, list[str]] = {}
for _spelling, _base in KNOWN.items():
    SPELLINGS.setdefault(_base, []).append(_spelling)


def _quantity(value: str, unit: str, rng: Random) -> str:
    unit = unit.replace("$", r"\$")
    if unit in r"\$€£¥₹" and rng.random() < 0.5:
        return rng.choice([f"{unit}{value}", f"{unit} {value}"])
    forms = [f"{value} {unit}", f"{value}\\,{unit}"]
    if unit[0].isalpha():
        forms += [
            f"{value}\\text{{ {unit}}}",
            f"{value}\\mathrm{{{unit}}}",
            f"{value}~\\mbox{{{unit}}}",
            f"\\text{{{value} {unit}}}",
            f"{value}\\ \\textrm{{{unit}}}.",
        ]
    return rng.choice(forms)


@pytest.mark.draw(60)
@pytest.mark.parametrize("base", sorted(SPELLINGS))
def test_a_unit_agrees_with_its_spellings_and_with_no_other_unit(base: str) -> None:
    rng = Random(base)
    value = str(rng.randrange(2, 90))
    for spelling in SPELLINGS[base]:
        given = _quantity(value, spelling, rng)
        assert exact_match(given, value), given
        assert not exact_match(given, str(int(value) + 1)), given
        for same in rng.sample(SPELLINGS[base], min(3, len(SPELLINGS[base]))):
            gold = _quantity(value, same, rng)
            assert exact_match(given, gold), (given, gold)
        for other in rng.sample(sorted(SPELLINGS), 12):
            if other == base or frozenset([base, other]) in AMBIGUOUS:
                continue
            gold = _quantity(value, rng.choice(SPELLINGS[other]), rng)
            assert not exact_match(given, gold), (given, gold)


@pytest.mark.parametrize("seed", SEEDS)
def test_compound_units(seed: int) -> None:
    rng = Random(seed)
    lengths = [("meter", "m"), ("kilometer", "km"), ("mile", "mi"), ("foot", "ft")]
    times = [("second", "s"), ("hour", "h"), ("minute", "min")]
    (length, short), (duration, t) = rng.choice(lengths), rng.choice(times)
    value, power = str(rng.randrange(2, 90)), rng.choice([2, 3])
    speeds = [
        f"{value} {short}/{t}",
        f"{value}\\text{{ {short}}}/\\text{{{t}}}",
        f"{value}\\,\\mathrm{{{short}/{t}}}",
        f"{value}\\,\\frac{{\\text{{{short}}}}}{{\\text{{{t}}}}}",
        f"{value}\\text{{ {short}}}\\cdot\\text{{{t}}}^{{-1}}",
        f"{value} {length}s per {duration}",
        f"{value} {length}s/{duration}",
    ]
    word = "square" if power == 2 else "cubic"
    areas = [
        f"{value} {short}^{power}",
        f"{value} {short}{'²³'[power - 2]}",
        f"{value}\\text{{ {short}}}^{{{power}}}",
        f"{value}\\,\\mathrm{{{short}^{power}}}",
        f"{value} {word} {length}s",
        f"{value} {'sq' if power == 2 else 'cu'} {short}",
        f"{value} {length}s {'squared' if power == 2 else 'cubed'}",
    ]
    for forms in (speeds, areas):
        all_equal(forms, value)
        all_equal(forms, rng.choice(forms))
        none_equal(forms, f"{value} {length}s")
    none_equal(speeds, rng.choice(areas))
    none_equal(areas, f"{value} {short}^{{{5 - power}}}")
    other = rng.choice([pair for pair in lengths if pair[0] != length])
    none_equal(speeds, f"{value} {other[1]}/{t}")


@pytest.mark.draw(150)
@pytest.mark.parametrize("word", sorted(NOT_COUNTED - set(KNOWN)))
def test_a_word_that_scales_negates_or_connects_is_no_unit(word: str) -> None:
    for number in ("3", "18", "0.5"):
        for form in ("{} {}", r"{}\text{{ {}}}", r"{}\ \mathrm{{{}}}", r"\text{{{} {}}}"):
            text = form.format(number, word)
            assert not exact_match(text, number), text
            assert not exact_match(number, text), text
            assert exact_match(text, f"{number} {word}")


def test_an_upright_letter_that_is_no_unit_is_a_part_of_the_answer() -> None:
    for letter in set(string.ascii_letters) - set(KNOWN):
        for style in (r"\mathrm", r"\text", r"\textit", r"\mathbf"):
            text = f"3{style}{{{letter}}}"
            assert not exact_match(text, "3") and not exact_match("3", text), text
            assert exact_match(text, f"3{letter}"), text
            assert not exact_match(f"{text}^{{3}}", f"{text}^{{2}}")
    assert not exact_match("5m", "5")  # closed up and in italics: a variable


def test_a_counted_noun_may_follow_a_plain_number() -> None:
    nouns = "apples students marbles books tickets eggs red balls ways sheets of paper".split()
    for noun, number in itertools.product([*nouns, "red balls", "cups of water"], ("7", "1,200")):
        if noun == "of":
            continue
        for text in (
            f"{number} {noun}",
            f"{number}\\text{{ {noun}}}",
            f"\\text{{{number} {noun}}}.",
        ):
            assert exact_match(text, number), text
            assert not exact_match(text, f"{number} oranges")
            assert not exact_match(text, "8")
    assert exact_match("1 apple", "1 apples") and exact_match("3 boxes", "3 box")


def test_words_that_scale_count_exactly() -> None:
    scales = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "dozen": 12}
    for (word, scale), number in itertools.product(scales.items(), ("3", "2.5", "1/2", "12")):
        exact = Fraction(number) * scale
        for text in (f"{number} {word}", f"{number}\\text{{ {word}}}", f"${number} {word} dollars"):
            assert exact_match(text, str(exact)), text
            assert not exact_match(text, number)
            for other in scales.keys() - {word}:
                assert not exact_match(text, f"{number} {other}")
