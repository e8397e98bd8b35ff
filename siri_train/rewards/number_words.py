"""English number words with their exact value: ``twelve``, ``one hundred and five``.

A grammar, not a list: a number below a hundred, hundreds, scales that fall (million, then
thousand), ``and`` only behind a hundred or a scale, a fraction at the end. What does not fit is no
number, so "two three", "twelve or thirteen" and "twenty fifth" are not read.
"""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = {
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "quadrillion": 10**15,
}
PARTS = {
    "half": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
    "ninth": 9,
    "tenth": 10,
    "eleventh": 11,
    "twelfth": 12,
    "sixteenth": 16,
    "twentieth": 20,
    "hundredth": 100,
    "thousandth": 1000,
}
"""Parts of one by name, with what they divide by; ``PLURALS`` are two and more of them."""
PLURALS = {f"{name}s": value for name, value in PARTS.items()} | {"halves": 2}
_VALUES = {word: value for value, word in enumerate(_UNITS)} | {
    word: 20 + 10 * place for place, word in enumerate(_TENS)
}
_BEGINS = re.compile(
    rf"(?:minus |negative )?(?:(?:{'|'.join([*_UNITS, *_TENS])}|half)(?![A-Za-z])|"
    rf"an? (?:dozen|hundred|{'|'.join([*_SCALES, *PARTS])})(?![A-Za-z]))",
    re.I,
)
_TENS_AND_UNIT = re.compile(rf"({'|'.join(_TENS)})-({'|'.join(_UNITS[1:10])})(?![A-Za-z])")
_PART = re.compile(rf"-(?=(?:{'|'.join([*PARTS, *PLURALS])})\Z)")
_LONGEST = 240


def begins_with_number_word(text: str) -> bool:
    """Whether ``text`` may be a number in words; a cheap look at its first word."""
    return _BEGINS.match(text) is not None


def read_number_words(text: str) -> Fraction | None:
    """The number that an English phrase is.

    Args:
        text: words between single blanks; capitals do not matter.

    Returns:
        Its value, or None when the whole of it is not one number.
    """
    if len(text) > _LONGEST or not begins_with_number_word(text):
        return None
    lower = text.lower()
    sign = 1
    for word in ("minus ", "negative "):
        if lower.startswith(word):
            sign, lower = -1, lower.removeprefix(word)
    lower = _PART.sub(" ", _TENS_AND_UNIT.sub(r"\1 \2", lower))
    words = lower.split(" ")
    value = _decimal(words) if "point" in words else _mixed(words)
    return None if value is None else sign * value


def _decimal(words: list[str]) -> Fraction | None:
    at = words.index("point")
    whole, digits = _cardinal(words[:at]), words[at + 1 :]
    if whole is None or not digits or any(_VALUES.get(word, 10) > 9 for word in digits):
        return None
    return whole + Fraction(int("".join(str(_VALUES[word]) for word in digits)), 10 ** len(digits))


def _mixed(words: list[str]) -> Fraction | None:
    value = _cardinal(words)
    if value is None:
        value = _fraction(words)
    if value is not None:
        return value
    # "three and a half": the fraction behind the last "and", less than one.
    if "and" not in words:
        return None
    at = len(words) - 1 - words[::-1].index("and")
    whole, part = _cardinal(words[:at]), _fraction(words[at + 1 :])
    return whole + part if whole is not None and part is not None and part < 1 else None


def _fraction(words: list[str]) -> Fraction | None:
    """``two thirds``, ``a half``, ``half``."""
    if words == ["half"]:
        return Fraction(1, 2)
    if len(words) < 2:
        return None
    above = Fraction(1) if words[:-1] in (["a"], ["an"]) else _cardinal(words[:-1])
    parts = PARTS if above == 1 else PLURALS
    if above is None or above == 0 or words[-1] not in parts:
        return None
    return above / parts[words[-1]]


def _cardinal(words: list[str]) -> Fraction | None:
    """``one thousand two hundred and five``, ``a dozen``, ``half a million``."""
    if not words:
        return None
    if words[-1] in ("dozen", "million", "billion") and words[:-1] == ["half", "a"]:
        return Fraction(_SCALES.get(words[-1], 12), 2)
    if words[-1] == "dozen":
        count = 1 if words[:-1] == ["a"] else _below_hundred(words[:-1])
        return None if not count else Fraction(12 * count)
    total, least = 0, None
    group: list[str] = []
    for word in [*words, ""]:
        scale = _SCALES.get(word)
        if scale is None and word:
            group.append(word)
            continue
        last = not word
        value = _below_thousand(group, first=total == 0, joined=last and total > 0)
        if value is None:
            if not (last and not group and total):
                return None
            value = 0
        if scale is not None:
            if least is not None and scale >= least or value == 0:
                return None
            least, total, group = scale, total + value * scale, []
        else:
            total += value
    return Fraction(total)


def _below_thousand(words: list[str], *, first: bool, joined: bool) -> int | None:
    if joined and words[:1] == ["and"]:
        rest = _below_hundred(words[1:])
        return rest or None
    if "hundred" not in words:
        return 1 if first and words == ["a"] else _below_hundred(words)
    at = words.index("hundred")
    head, tail = words[:at], words[at + 1 :]
    count = 1 if first and head == ["a"] else _below_hundred(head)
    if not count or count % 10 == 0:
        return None
    if not tail:
        return count * 100
    rest = _below_hundred(tail[1:] if tail[0] == "and" else tail)
    return None if not rest else count * 100 + rest


def _below_hundred(words: list[str]) -> int | None:
    values = [_VALUES.get(word) for word in words]
    if len(values) == 1:
        return values[0]
    if len(values) == 2 and None not in values:
        tens, unit = values
        assert tens is not None and unit is not None
        if tens >= 20 and 1 <= unit <= 9:
            return tens + unit
    return None
