r"""Comparing answers without evaluating anything: what ``rules`` decide on their own."""

from __future__ import annotations

from fractions import Fraction

from siri_train.rewards.number_forms import read_number
from siri_train.rewards.rules import decide
from siri_train.rewards.text_form import normalise

__all__ = ["as_number", "exact_match", "exact_verdict", "normalise"]


def as_number(normalised: str) -> tuple[Fraction, bool] | None:
    r"""The exact value of a number in any form that ``number_forms`` reads.

    Args:
        normalised: a result of ``normalise``: ``-1,234.50``, ``007``, ``3/4``, ``-\frac{1}{2}``,
            ``1 1/2``, ``1e3``, ``0.\overline{3}``, ``12%``.

    Returns:
        (value, percent): the value as written (12 for ``12%``) and whether a percent sign follows;
        None when it is anything else, a division by zero included.
    """
    number = read_number(normalised)
    return None if number is None else (number.value, number.percent)


def exact_verdict(answer: str, gold: str) -> bool | None:
    r"""Compare without evaluating; None where that cannot decide.

    Two numbers are compared exactly, so 3.0 is 3, 007 is 7, ``\frac{2}{4}`` is 0.5, and 0.333 is
    not 1/3. A percent sign on one side only makes answers different: neither "10%" for 10 nor "10%"
    for 1/10 is accepted (math-verify alone accepts both). The other rules are in ``rules``. Above
    1000 characters only identical texts are equal.

    Args:
        answer: the content of a box.
        gold: the right answer, bare or inside its own ``\boxed{}``.

    Returns:
        True, False, or None (two expressions whose values would have to be compared).
    """
    verdict = decide(answer, gold)
    return verdict if isinstance(verdict, bool) else None


def exact_match(answer: str, gold: str) -> bool:
    r"""Whether two answers are the same by rule (see ``exact_verdict``).

    Args:
        answer: the content of a box.
        gold: the right answer.

    Returns:
        True only when equality is certain; two expressions of equal value are not evaluated.
    """
    return exact_verdict(answer, gold) is True
