r"""Numbers with their base: ``101_2``, ``(1A7)_{12}``, ``123 base 5``."""

from __future__ import annotations

import re

_BASED = re.compile(
    r"\(?(?P<digits>[0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?)\)?"
    r"(?:_\{\(?(?:base ?)?(?P<base>[0-9]+|[a-z]+)\)?\}|"
    r" ?\(?(?:in )?base ?(?P<word>[0-9]+|[a-z]+)\)?)"
)
_BASES = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
    "twelve": "12",
    "sixteen": "16",
}


def based(text: str) -> tuple[str, str] | None:
    """The number that is written with its base.

    Args:
        text: spelled by ``spelling.spell``.

    Returns:
        (digits, base), to be compared as written; None for anything else, a number in base ten
        included.
    """
    match = _BASED.fullmatch(text)
    if match is None:
        return None
    base = match["base"] or match["word"]
    base = _BASES.get(base, base)
    digits = match["digits"]
    if not base.isdigit() or not 2 <= int(base[:3]) <= 36 or base == "10":
        return None
    if not digits[0].isdigit() and not (digits.isupper() and len(digits) > 1):
        return None
    return digits.lstrip("0").upper() or "0", base
