r"""Generators of answers in many spellings, for the tests of answer checking.

A generator gives a *meaning* and everything it may be written as; tests pair spellings of one
meaning, which must be equal, and of two, which must not be.
"""

from __future__ import annotations

from fractions import Fraction
from random import Random

from siri_train.rewards import exact_match

WRAPPERS = (
    "{}",
    " {} ",
    "${}$",
    r"\({}\)",
    r"\[{}\]",
    "{{{}}}",
    r"\mathbf{{{}}}",
    r"\boldsymbol{{{}}}",
    r"\underline{{{}}}",
    r"\boxed{{{}}}",
    r"\textcolor{{red}}{{{}}}",
    r"{{\color{{blue}}{}}}",
    r"{{\large {}}}",
    r"\displaystyle {}",
    r"\ensuremath{{{}}}",
    r"\,{}\!",
    r"\quad {}\;",
    r"\hspace{{1cm}}{}",
)
"""What may stand around any part of an answer."""

OUTERMOST = ("**{}**", "`{}`", "{}.", "= {}", "**{}**.", "{}", "{}", '"{}"', "${}$.")
"""What may stand around the whole."""

BRACKETS = [
    ("", ""),
    (r"\left", r"\right"),
    (r"\bigl", r"\bigr"),
    (r"\Big", r"\Big"),
    (r"\biggl", r"\biggr"),
]


def wrapped(text: str, rng: Random, layers: int = 2) -> str:
    """``text`` in a few wrappers."""
    for _ in range(rng.randrange(layers + 1)):
        text = rng.choice(WRAPPERS).format(text)
    return rng.choice(OUTERMOST).format(text)


def terminates(value: Fraction) -> bool:
    """Whether a finite decimal is the value."""
    below = value.denominator
    for prime in (2, 5):
        while below % prime == 0:
            below //= prime
    return below == 1


def decimal(value: Fraction) -> str:
    """The finite decimal of a value that has one."""
    places = 0
    while (value * 10**places).denominator != 1:
        places += 1
    digits = str(abs(value * 10**places)).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def repeating(value: Fraction) -> tuple[str, str, str] | None:
    """(whole, digits once, digits repeated) of a positive value; None with a long period."""
    whole, rest = divmod(value.numerator, value.denominator)
    seen: dict[int, int] = {}
    digits = ""
    while rest and rest not in seen and len(digits) < 12:
        seen[rest] = len(digits)
        digit, rest = divmod(rest * 10, value.denominator)
        digits += str(digit)
    if not rest or rest not in seen:
        return None
    return str(whole), digits[: seen[rest]], digits[seen[rest] :]


def numbers(value: Fraction) -> list[str]:
    """Every spelling of a number that the tests know."""
    size = abs(value)
    above, below = size.numerator, size.denominator
    forms = [f"{a}{above * k}{b}{below * k}{c}" for k in (1, 2, 7) for a, b, c in FRACTIONS]
    if terminates(size):
        plain = decimal(size)
        forms += [plain, f"0{plain}", plain + ("0" if "." in plain else ".0"), f"({plain})"]
        forms += [plain.removeprefix("0")] if plain.startswith("0.") else []
        whole, point, rest = plain.partition(".")
        if len(whole) > 3:
            groups = f"{int(whole):,}"
            for separator in (",", "{,}", r"\,", r"\;", " ", "~", r",\!", "\u2009"):
                forms.append(groups.replace(",", separator) + point + rest)
        power = len(whole) - 1 if size >= 1 else -2
        head = decimal(size / Fraction(10) ** power)
        for times in (r"\times 10^", r" \cdot 10^", "*10^", "×10^", " x 10^"):
            forms.append(f"{head}{times}{{{power}}}")
        forms += [f"{head}e{power}", f"{head}E{power:+03d}", f"{head}\\times10^{power}"]
        forms.append(f"{head}×10{str(power).translate(RAISED)}")
    elif (period := repeating(size)) is not None:
        whole, once, block = period
        forms += [
            f"{whole}.{once}\\overline{{{block}}}",
            f"{whole}.{once}\\bar{{{block}}}",
            f"{whole}.{once}({block})",
            f"{whole}.{once}{block * 3}...",
            f"{whole}.{once}{block * 3}\\ldots",
        ]
    if below > 1 and above > below:
        unit, rest_above = divmod(above, below)
        for form in MIXED:
            forms.append(form.format(unit, rest_above, below))
    if value < 0:
        forms = [f"{sign}{form}" for form in forms for sign in ("-", "−", "- ")]
    else:
        forms.append(f"+{forms[0]}")
    return forms


MIXED = (r"{}\frac{{{}}}{{{}}}", r"{} \tfrac{{{}}}{{{}}}", "{} {}/{}", r"{}\ \dfrac{{{}}}{{{}}}")
RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
LOWERED = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
FRACTIONS = (
    ("", "/", ""),
    (r"\frac{", "}{", "}"),
    (r"\dfrac{", "}{", "}"),
    (r"\tfrac{ ", " }{ ", " }"),
    (r"{", r"\over ", "}"),
    (r"\left(", "/", r"\right)"),
)


def draw_number(rng: Random) -> Fraction:
    """A number such as answers are: small, large, a fraction, tiny."""
    kind = rng.randrange(5)
    if kind == 0:
        return Fraction(rng.randrange(-50, 200))
    if kind == 1:
        return Fraction(rng.randrange(1000, 10**7))
    if kind == 2:
        return Fraction(rng.randrange(-400, 400), rng.choice([2, 4, 5, 8, 10, 20, 25, 100, 1000]))
    if kind == 3:
        return Fraction(rng.randrange(-60, 60), rng.choice([3, 6, 7, 9, 11, 12, 13, 15, 30]))
    return Fraction(rng.randrange(1, 100), 10 ** rng.randrange(15, 30))


def element(rng: Random) -> tuple[Fraction, str]:
    """(value, spelling) of a part of a tuple: no commas in it."""
    while True:
        value = Fraction(rng.randrange(-30, 30), rng.choice([1, 1, 1, 2, 3, 4]))
        spelling = rng.choice(numbers(value))
        if "," not in spelling:
            return value, spelling


def all_equal(forms: list[str], gold: str) -> None:
    """Assert that every form is right for the gold answer."""
    refused = [form for form in forms if not exact_match(form, gold)]
    assert not refused, f"for {gold!r}: {refused}"


def none_equal(forms: list[str], gold: str) -> None:
    """Assert that no form is right for the gold answer."""
    paid = [form for form in forms if exact_match(form, gold)]
    assert not paid, f"for {gold!r}: {paid}"
