r"""Gold answers that are rounded: doubles too large for their digits to reach the units.

A file that was written through floats holds 12345678901234567890 as 1.2345678901234567e+19. The
last digits are gone, so every number that rounds to that double must count as right.
"""

from __future__ import annotations

import re

_DOUBLE = re.compile(r"-?[0-9]\.[0-9]{15,16}e\+[0-9]{1,3}")
_BLANK = re.compile(r"\s|\{,\}|\\[,;:! ]|~|(?<=[0-9]),(?=[0-9]{3}(?![0-9]))|\\?\$")
_NUMBER = re.compile(
    r"(?P<digits>[+-]?[0-9]+(?:\.[0-9]*)?)"
    r"(?:[eE]\+?(?P<e>[0-9]{1,3})|(?:\\times|\\cdot|×|\*)10\^\{?(?P<ten>[0-9]{1,3})\}?)?"
)
_LONGEST = 400


def rounded_verdict(answer: str, gold: str) -> bool | None:
    r"""Compare with a gold answer that is a rounded double.

    Args:
        answer: the content of a box: digits, digits with grouping commas, ``1.2e19`` or
            ``1.2\times10^{19}``.
        gold: the right answer.

    Returns:
        Whether the answer is a number that rounds to the gold's double; None where the gold is no
        such number, or the answer is none that can be read here.
    """
    if not _DOUBLE.fullmatch(gold.strip()) or len(answer) > _LONGEST:
        return None
    match = _NUMBER.fullmatch(_BLANK.sub("", answer).replace("−", "-"))
    if match is None:
        return None
    exponent = match["e"] or match["ten"] or "0"
    return float(f"{match['digits']}e{exponent}") == float(gold)
