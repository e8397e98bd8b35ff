r"""Plain numbers in every form they are written in, with their exact value.

Decimals (``-1,234.50``, ``.5``, ``007``), fractions (``3/4``, ``\frac{-1}{2}``), mixed numbers
(``1 1/2``, ``1\frac{1}{2}``), scientific notation (``1e3``, ``1.8*10^{-4}``, ``10^{3}``), repeating
decimals (``0.1\overline{6}``, ``0.(3)``, ``0.333...``), words that scale (``3 million``,
``5 dozen``), words (``number_words``), and a percent sign or word behind any of them. Values are
fractions, so that 1e-17 is not 2e-17. Nothing else is computed: ``40+2`` is not a number.

A comma groups thousands (``1,234``) or separates two answers (``0,5``). Where one number is asked
for it may also be a decimal comma, which ``read_decimal_comma`` reads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from siri_train.rewards.number_words import begins_with_number_word, read_number_words

LONGEST = 1000
_LARGEST_EXPONENT = 2000
_CERTAIN_DIGITS = 10

_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_PLAIN = re.compile(_NUMBER)
_GROUPED = re.compile(r"[1-9][0-9]{0,2}(?:[ ,][0-9]{3})+(?:\.[0-9]+)?")
# Points that group and a decimal comma, or several points that group.
_POINTS = re.compile(r"[1-9][0-9]{0,2}(?:(?:[. ][0-9]{3})+,[0-9]+|(?:\.[0-9]{3}){2,})")
_DECIMAL_COMMA = re.compile(r"[0-9]+,[0-9]+")
_SCIENTIFIC = re.compile(
    rf"(?:(?P<times>{_NUMBER})(?:\*| ?[xX] ?))?10\^\{{(?P<power>[+-]?[0-9]+)\}}|"
    rf"(?P<head>{_NUMBER})[eE](?P<tail>[+-]?[0-9]+)"
)
_SLASH = re.compile(r"(?P<above>[^/]+)/(?P<below>[^/]+)")
_MIXED = re.compile(
    r"(?P<whole>[0-9]+)(?: ?(?=\\frac)| )(?P<part>\\frac\{[0-9]+\}\{[0-9]+\}|[0-9]+/[0-9]+)"
)
_REPEATING = re.compile(
    r"(?P<whole>[0-9]*)\.(?P<once>[0-9]*)(?:\\overline\{(?P<a>[0-9]+)\}|\((?P<b>[0-9]+)\)|"
    r"\\dot\{(?P<c>[0-9])\}(?:(?P<between>[0-9]*)\\dot\{(?P<d>[0-9])\})?)(?:\\dots|\.\.\.)?"
)
_DOTTED = re.compile(r"(?P<whole>[0-9]*)\.(?P<digits>[0-9]+)(?:\\dots|\.{3,})")
_SCALED = re.compile(
    r"(?P<number>.*[0-9}) ]) ?"
    r"(?P<word>hundred|thousand|million|billion|trillion|dozen|lakh|crore)s?",
    re.I,
)
_PERCENT = re.compile(r"(?P<number>.*[0-9}) ]) ?(?:%|percent|per cent|pct)", re.I)

_SCALES = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "lakh": 10**5,
    "crore": 10**7,
}


@dataclass(frozen=True)
class Number:
    """An exact number.

    Attributes:
        value: the value as written: 12 for ``12%``.
        percent: whether a percent sign or word follows.
        digits: significant digits of a decimal with a point; None for every other form.
        places: digits behind its point.
        grouped: whether it could also be read as a list (``100,200``).
    """

    value: Fraction
    percent: bool = False
    digits: int | None = None
    places: int = 0
    grouped: bool = False

    def equals(self, other: Number) -> bool:
        """Whether both are the same number.

        Values are compared exactly, with one exception: a decimal of ten significant digits or more
        stands for a fraction without a finite decimal if it is that fraction rounded or truncated
        (0.3333333333 and 1/3). A percent sign counts: neither 10 nor 1/10 is 10%.
        """
        if self.percent != other.percent:
            return False
        if self.value == other.value:
            return True
        return _stands_for(self, other) or _stands_for(other, self)


def read_number(text: str) -> Number | None:
    r"""The number that ``text`` is.

    Args:
        text: spelled by ``spelling.spell``.

    Returns:
        The number, or None when it is anything else; a division by zero, and an exponent beyond
        2000, included.
    """
    if len(text) > LONGEST:
        return None
    text = text.strip()
    if not any(character.isdigit() for character in text) and not begins_with_number_word(text):
        return None
    match = _PERCENT.fullmatch(text)
    if match is not None:
        number = _read(match["number"].strip(), 0)
        return None if number is None else replace(number, percent=True)
    return _read(text, 0)


def read_decimal_comma(text: str) -> Number | None:
    """The number that ``text`` is when its comma is a decimal comma.

    Only for an answer where one number is asked for: ``0,5`` is also a list. A comma in front of
    exactly three digits groups thousands, unless it follows a zero; a number with a decimal comma
    that is an integer (``5,0``) stays a list.

    Args:
        text: spelled by ``spelling.spell``.

    Returns:
        The number of ``0,5``, ``-3,14``, ``1.234,56``, ``1 234,5`` or ``1.234.567``; else None.
    """
    text = text.strip()
    percent = text.endswith("%")
    text = text.removesuffix("%").rstrip()
    negative = text.startswith("-")
    text = text.removeprefix("-") if negative else text.removeprefix("+")
    if len(text) > LONGEST or "," not in text and text.count(".") < 2:
        return None
    if _POINTS.fullmatch(text):
        text = re.sub("[. ]", "", text).replace(",", ".")
    elif _DECIMAL_COMMA.fullmatch(text) and not _GROUPED.fullmatch(text):
        text = text.replace(",", ".")
        if text[0] == "0" and text[1] != "." or not text.rpartition(".")[2].strip("0"):
            return None
    else:
        return None
    value = _decimal(text)
    return Number(-value if negative else value, percent)


def looks_scientific(text: str) -> bool:
    """Whether ``text`` is scientific notation, one whose exponent is out of bounds included."""
    return _SCIENTIFIC.fullmatch(text.lstrip("+-")) is not None


def _read(text: str, depth: int) -> Number | None:
    if depth > 4 or not text:
        return None
    if text[0] in "+-":
        rest = text[1:].strip()
        if rest[:1] in ("+", "-"):
            return None
        number = _read(rest, depth + 1)
        if number is None or text[0] == "+":
            return number
        return replace(number, value=-number.value)
    if text[0] == "(" and text[-1] == ")" and matching(text, 0) == len(text) - 1:
        return _read(text[1:-1].strip(), depth + 1)
    if begins_with_number_word(text):
        value = read_number_words(text)
        if value is not None:
            return Number(value)
    scaled = _SCALED.fullmatch(text)
    if scaled is not None:
        number = _read(scaled["number"].strip(), depth + 1)
        return None if number is None else Number(number.value * _SCALES[scaled["word"].lower()])
    grouped = _GROUPED.fullmatch(text) is not None
    if grouped:
        text = text.replace(",", "").replace(" ", "")
    if _PLAIN.fullmatch(text):
        digits = len(text.replace(".", "").lstrip("0")) if "." in text.rstrip(".") else None
        return Number(_decimal(text), False, digits, len(text.partition(".")[2]), grouped)
    return _scientific(text) or _repeating(text) or _fraction(text, depth)


def _scientific(text: str) -> Number | None:
    match = _SCIENTIFIC.fullmatch(text)
    if match is None:
        return None
    head = match["head"] or match["times"] or "1"
    power_text = match["power"] or match["tail"]
    if len(power_text) > 6 or abs(int(power_text)) > _LARGEST_EXPONENT:
        return None
    power = int(power_text)
    return Number(_decimal(head) * Fraction(10) ** power)


def _repeating(text: str) -> Number | None:
    match = _REPEATING.fullmatch(text)
    if match is not None:
        block = match["a"] or match["b"]
        if block is None:
            block = match["c"] + (match["between"] or "") + (match["d"] or "")
        return Number(_periodic(match["whole"], match["once"], block))
    match = _DOTTED.fullmatch(text)
    if match is None:
        return None
    digits = match["digits"]
    # The digits show a period when the shortest block that ends them stands there twice.
    for size in range(1, min(len(digits) // 2, 20) + 1):
        block = digits[-size:]
        if digits.endswith(block * 2):
            return Number(_periodic(match["whole"], digits[:-size], block))
    return None


def _fraction(text: str, depth: int) -> Number | None:
    if text.startswith("\\frac{"):
        end = matching(text, 5)
        if (
            end is None
            or text[end + 1 : end + 2] != "{"
            or matching(text, end + 1) != len(text) - 1
        ):
            return None
        parts = text[6:end], text[end + 2 : -1]
    else:
        mixed = _MIXED.fullmatch(text)
        if mixed is not None:
            part = _fraction(mixed["part"], depth + 1)
            if part is None or not 0 <= part.value < 1:
                return None
            return Number(int(mixed["whole"]) + part.value)
        slash = _SLASH.fullmatch(text)
        if slash is None:
            return None
        parts = slash["above"].strip(), slash["below"].strip()
    above, below = _read(parts[0], depth + 1), _read(parts[1], depth + 1)
    if above is None or below is None or below.value == 0:
        return None
    return Number(above.value / below.value)


def _periodic(whole: str, once: str, block: str) -> Fraction:
    scale = 10 ** len(once)
    return (
        Fraction(int(whole or "0"))
        + Fraction(int(once or "0"), scale)
        + Fraction(int(block), scale * (10 ** len(block) - 1))
    )


def _stands_for(decimal: Number, exact: Number) -> bool:
    if decimal.digits is None or decimal.digits < _CERTAIN_DIGITS or exact.digits is not None:
        return False
    if _terminates(exact.value) or not _terminates(decimal.value) or decimal.value == 0:
        return False
    unit = Fraction(1, 10**decimal.places)
    error = abs(decimal.value - exact.value)
    truncated = abs(decimal.value) < abs(exact.value) and error < unit
    return truncated or 2 * error <= unit


def _terminates(value: Fraction) -> bool:
    below = value.denominator
    for prime in (2, 5):
        while below % prime == 0:
            below //= prime
    return below == 1


def _decimal(text: str) -> Fraction:
    # Fraction("5.") and Fraction(".5") are not both accepted by every supported Python.
    whole, _, rest = text.partition(".")
    return Fraction(f"{whole or '0'}.{rest or '0'}")


_PAIRS = {"{": "}", "(": ")", "[": "]"}


def matching(text: str, start: int) -> int | None:
    """Where the bracket at ``start`` closes, counting brackets of its kind only.

    Args:
        text: any text.
        start: index of a ``{``, ``(`` or ``[``.

    Returns:
        The index of the bracket that closes it, or None.
    """
    opening, closing = text[start], _PAIRS[text[start]]
    depth = 0
    for index in range(start, len(text)):
        character = text[index]
        if character == opening or character == closing:
            if text[index - 1 : index] == "\\":
                continue
            depth += 1 if character == opening else -1
            if depth == 0:
                return index
    return None
