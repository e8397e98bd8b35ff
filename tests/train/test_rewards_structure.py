"""Answer checking by rule, with drawn answers: tuples, sets, intervals, matrices, inequalities."""

from __future__ import annotations

import itertools
from fractions import Fraction
from random import Random

import pytest

from siri_train.rewards.exact import exact_match
from tests.train.spellings import (
    BRACKETS,
    all_equal,
    element,
    none_equal,
    wrapped,
)

SEEDS = range(10)


def _enclosed(parts: list[str], opening: str, closing: str, rng: Random) -> str:
    left, right = rng.choice(BRACKETS)
    names = {r"\{": r"\lbrace ", r"\}": r"\rbrace ", "[": r"\lbrack ", "]": r"\rbrack "}
    if rng.random() < 0.3:
        opening, closing = names.get(opening, opening), names.get(closing, closing)
    inside = rng.choice([",", ", ", r",\,"]).join(parts)
    return f"{left}{opening}{inside}{right}{closing}"


@pytest.mark.parametrize("seed", SEEDS)
def test_tuples_intervals_sets_and_lists(seed: int) -> None:
    rng = Random(seed)
    drawn: dict[Fraction, str] = {}
    while len(drawn) < rng.choice([2, 3]):
        value, spelling = element(rng)
        drawn[value] = spelling
    values, parts = list(drawn), list(drawn.values())
    plain = [str(value) for value in values]
    backwards = plain[::-1]
    paired = ",".join(plain)
    kinds = {"()": f"({paired})", "[]": f"[{paired}]", "{}": f"\\{{{paired}\\}}"}
    if len(plain) == 2:
        kinds |= {"[)": f"[{paired})", "(]": f"({paired}]"}
    for (one, gold), (two, _) in itertools.product(kinds.items(), kinds.items()):
        opening, closing = ("\\" + c if c in "{}" else c for c in two)
        given = wrapped(_enclosed(parts, opening, closing, rng), rng, 1)
        assert exact_match(given, gold) == (one == two), (given, gold)
        turned = _enclosed(parts[::-1], opening, closing, rng)
        assert exact_match(turned, gold) == (one == two == "{}"), (turned, gold)
        assert not exact_match(_enclosed(parts[:-1] + ["77"], opening, closing, rng), gold)
        assert not exact_match(_enclosed([*parts, "77"], opening, closing, rng), gold)
    bare = ", ".join(plain)
    for separator in (", ", r"\text{ or }", " and ", r"\text{ and }", "; "):
        all_equal([separator.join(parts), separator.join(parts[::-1])], bare)
        all_equal([separator.join("x=" + part for part in parts)], bare)
        none_equal([separator.join(parts)], plain[0])
        none_equal([plain[0]], separator.join(parts))
    all_equal([f"({','.join(parts)})"], bare)
    none_equal([f"({','.join(backwards)})"], f"({paired})")
    names = "xyz"[: len(parts)]
    given = [f"{name}={part}" for name, part in zip(names, parts, strict=True)]
    for order in itertools.permutations(given):
        all_equal([", ".join(order), r"\text{ and }".join(order)], f"({paired})")
        none_equal([", ".join(order)], f"({','.join(backwards)})")
    all_equal([f"({','.join(names)})=({','.join(parts)})"], f"({paired})")
    all_equal([f"({paired})"], ", ".join(given))
    assert not exact_match(", ".join(given[:-1]), f"({paired})")


@pytest.mark.parametrize("seed", SEEDS)
def test_matrices_have_a_shape_and_are_no_numbers(seed: int) -> None:
    rng = Random(seed)
    rows, columns = rng.choice([(2, 2), (2, 1), (1, 2), (3, 1), (2, 3)])
    table = [[element(rng) for _ in range(columns)] for _ in range(rows)]

    def write(cells: list[list[str]], name: str) -> str:
        body = r" \\ ".join(" & ".join(row) for row in cells)
        if name == "array":
            return f"\\left[\\begin{{array}}{{{'c' * columns}}}{body}\\end{{array}}\\right]"
        return f"\\begin{{{name}}}{body}\\end{{{name}}}"

    gold = write([[str(value) for value, _ in row] for row in table], "pmatrix")
    cells = [[spelling for _, spelling in row] for row in table]
    for name in ("pmatrix", "bmatrix", "array", "smallmatrix"):
        assert exact_match(write(cells, name), gold), write(cells, name)
    wrong = [row[:] for row in cells]
    wrong[-1][-1] = "77"
    assert not exact_match(write(wrong, "pmatrix"), gold)
    transposed = [list(row) for row in zip(*cells, strict=True)]
    if rows != columns:
        assert not exact_match(write(transposed, "pmatrix"), gold)
    for number in ("0", "1", "-2", "5", "x", "(1,2)"):
        assert not exact_match(write(cells, "pmatrix"), number)
        assert not exact_match(number, gold)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_inequality_is_its_interval_and_has_a_direction(seed: int) -> None:
    rng = Random(seed)
    low = rng.randrange(-20, 20)
    high = low + rng.randrange(1, 9)
    less = {"<": ["<", r"\lt "], "<=": [r"\le ", r"\leq ", r"\leqslant ", "≤", "<="]}
    more = {"<": [">", r"\gt "], "<=": [r"\ge ", r"\geq ", "≥", ">="]}
    meanings: dict[str, list[str]] = {}
    for sign, close in (("<", ")"), ("<=", "]")):
        opening = {")": "(", "]": "["}[close]
        up, down = rng.choice(less[sign]), rng.choice(more[sign])
        below = rf"(-\infty,{low}{close}"
        meanings[below] = [f"x{up}{low}", f"{low}{down}x", f"(-∞, {low}{close}", f"x \\in {below}"]
        above = rf"{opening}{low},\infty)"
        meanings[above] = [f"x{down}{low}", f"{low}{up}x", f"{opening}{low},+\\infty)"]
        meanings[f"{opening}{low},{high})"] = [
            f"{low}{up}x<{high}",
            f"{high}>x{down}{low}",
            f"\\left{opening}{low},{high}\\right)",
        ]
    outside = rf"(-\infty,{low})\cup({high},\infty)"
    meanings[outside] = [f"x<{low}\\text{{ or }}x>{high}", rf"({high},∞) ∪ (-∞,{low})"]
    for (gold, forms), (other, _) in itertools.product(meanings.items(), meanings.items()):
        if gold == other:
            all_equal(forms, gold)
            all_equal(forms, forms[0])
        else:
            none_equal(forms, other)
    assert not exact_match(f"y<{low}", f"x<{low}")
    assert not exact_match(f"x<{low}", str(low)) and not exact_match(str(low), f"x<{low}")


def test_plus_minus_is_two_answers() -> None:
    for gold in ("3,-3", r"\{-3,3\}", r"\pm 3", r"x=\pm3", "x=3 or x=-3"):
        all_equal([r"\pm 3", "±3", r"x = \pm 3", "-3, 3", r"\{3,-3\}"], gold)
        none_equal(["3", "-3", r"\pm 4", "3,3"], gold)
    all_equal([r"1\pm\sqrt2"], r"1+\sqrt{2}, 1-\sqrt{2}")
    none_equal([r"\pm 3"], "3")


def test_the_empty_set_is_nothing_else() -> None:
    forms = [r"\emptyset", r"\varnothing", r"\{\}", r"\{ \}", "{}", "∅", "Ø", r"\left\{\right\}"]
    for form, gold in itertools.product(forms, forms):
        assert exact_match(form, gold), (form, gold)
    for gold in ("0", r"\{0\}", "", "x"):
        none_equal(forms, gold)
