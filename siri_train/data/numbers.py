"""Writes the numbers of data files as a model would write them."""

from __future__ import annotations

from decimal import Decimal

# A double has at most 17 significant digits. One with this many digits and a positive exponent is
# a rounded number: writing zeros behind its digits would claim more than the file knows.
_ROUNDED_DIGITS = 16
_LONGEST = 400


def written_number(value: int | float | Decimal) -> str | None:
    """The digits of a number, without an exponent.

    1e-05 becomes 0.00001, 1e+16 becomes 10000000000000000, 42.0 becomes 42 and 2.50 stays 2.50.
    A double too large for its digits to reach the units, 1.2345678901234567e+19, keeps its
    exponent; ``siri_train.rewards.rounded`` knows that form as a rounded number.

    Args:
        value: an int, a float (its shortest decimal is taken) or a Decimal (its own digits).

    Returns:
        The text; None for NaN, infinity, and numbers of more than 400 digits written out.
    """
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if not number.is_finite():
        return None
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    if exponent > 0 and len(digits) >= _ROUNDED_DIGITS:
        return f"{number:e}"
    if not number:
        return "0"
    if max(exponent, 0) + len(digits) > _LONGEST or -exponent > _LONGEST:
        return None
    text = f"{number:f}"
    whole, point, part = text.partition(".")
    return whole if point and not part.strip("0") else text
