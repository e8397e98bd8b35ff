r"""Units behind a number: recognised by a table and a grammar, never by their place alone.

A unit is a product of known units with exponents (``cm^2``, ``m/s``, ``m s^{-1}``, ``ms^{-1}``,
``kilometers per hour``, ``square inches``), a money sign, a degree sign, or a counted noun behind a
plain number (``18 people``, ``18 red marbles``). Two spellings of one unit agree; different units
do not, also where one could be converted (2 hours, 120 minutes). Words that scale, negate, compare
or direct are no units, so they stay a part of the answer, as does everything that is not
recognised.
"""

from __future__ import annotations

import re

from siri_train.rewards.number_forms import matching, read_number
from siri_train.rewards.unit_table import (
    AMBIGUOUS,
    CAPITALS,
    COMPOUND,
    GLUED,
    KNOWN,
    MEASURED,
    MONEY,
    NOT_COUNTED,
    SINGLE_LETTERS,
    TWO_WORDS,
)

Unit = tuple[tuple[str, int], ...]
"""Sorted (base unit, exponent); a counted noun is one base, with a blank in front."""

_LONGEST_UNIT = 80
_SIGNED_MONEY = re.compile(
    r"(?P<sign>[-+]?) ?"
    r"(?:(?:US|CA|AU)? ?(?P<money>[$€£¥₹])|(?P<code>USD|EUR|GBP|JPY|INR|CHF|Rs)[. ]) ?"
    r"(?P<rest>[-+]?[0-9.(\\].*)",
    re.S,
)
_PIECE = re.compile(r"[A-Za-zμΩ]+|[°$€£¥₹¢]|\\[A-Za-z]+|[0-9]+|.", re.S)
_FACTOR = re.compile(
    r"(?P<word>US ?\$|[A-Za-zμΩ]+|° ?[CFK](?![A-Za-z])|°|[$€£¥₹¢])"
    r"(?: ?\^\{(?P<exponent>-?[1-9])\}| ?\^(?P<bare>[1-9])|"
    r"(?<=[A-Za-z])(?<![A-Za-z]{3})(?P<plain>[23])(?![0-9]))?"  # cm3
)
_SEPARATOR = re.compile(r" ?(/|per(?![A-Za-z])|\*|-|\.(?=[A-Za-z])| ) ?")
_NOUN = re.compile(r"[A-Za-z]+(?:[ -][A-Za-z]+){0,3}")
_ORDINAL = re.compile(r"[-+]?[0-9][0-9,]*(?:st|nd|rd|th)")
# Words, and a second quantity: "2 h 30" is no amount of minutes.
_NO_BODY = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}| [0-9]")
_OHM = re.compile(r"(?<=[ kMm])\\Omega ?$")
_MICRO = re.compile(r"\\mu ?(?=(?:[msLlACFVW]|Sv|gs?)(?![A-Za-z])|mol)")
# Adverbs, ordinals of the tens, and words that scale.
_NOT_COUNTED_ENDING = re.compile(
    r"(?<!fami)(?<!jel)(?<!bel)(?<!bul)ly$|(?:teen|ie)ths?$|fold$|illions?$|(?<!re)(?<!a)(?<!s)wards?$|bound$"
)
_AMOUNT = re.compile(r"[0-9]|\\pi(?![A-Za-z])|\\sqrt")
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]\Z")
_CLOCK = " o'clock"
_BEFORE = "0123456789.})]|!/"
_LENGTHS = frozenset("meter centimeter millimeter kilometer decimeter foot inch yard".split())
_IRREGULAR = {
    "people": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
    "teeth": "tooth",
    "feet": "foot",
    "dice": "die",
    "leaves": "leaf",
    "loaves": "loaf",
    "halves": "half",
    "knives": "knife",
    "shelves": "shelf",
    "vertices": "vertex",
}


def split_unit(text: str, *, closed_up: bool = False) -> tuple[str, Unit | None]:
    r"""The quantity that ``text`` is: what is measured and its unit.

    Args:
        text: spelled by ``spelling.spell``, blanks kept: one in front of a letter sets it apart.
        closed_up: take one letter right behind a number for a unit too (``5m``); without it, it is
            a variable.

    Returns:
        (the rest, the unit), or (``text``, None) without a unit that is recognised. The rest is any
        expression in front of a known unit, but a plain number in front of a counted noun.
    """
    text = _MICRO.sub("μ", _OHM.sub("Ω", text.strip()))
    if _ORDINAL.fullmatch(text):
        return text[:-2], ((" ordinal", 1),)
    if text.endswith(_CLOCK):
        return text.removesuffix(_CLOCK), ((_CLOCK, 1),)
    money = _SIGNED_MONEY.fullmatch(text)
    if money is not None:
        base = MONEY[money["money"]] if money["money"] else KNOWN[money["code"].rstrip(".")]
        body, unit = _split_suffix(money["rest"], closed_up)
        powers = dict(unit or ())
        if any(power > 0 and name != base for name, power in powers.items()):
            return text, None
        return money["sign"] + body, tuple(sorted((powers | {base: 1}).items()))
    return _split_suffix(text, closed_up)


def _split_suffix(text: str, closed_up: bool) -> tuple[str, Unit | None]:
    words = text.rsplit(" ", 1)
    while len(words) == 2 and words[1] in MEASURED and words[0][-1:].isalpha():
        text = words[0].removesuffix(" in")
        words = text.rsplit(" ", 1)
    first = max(len(text) - _LONGEST_UNIT, 0)
    for match in _PIECE.finditer(text, first):
        at = match.start()
        if at == 0 or not _may_begin(text, at):
            continue
        body, suffix = text[:at].rstrip(), text[at:]
        if not body or body[-1] in "+-*=<>°,;:":
            continue
        if body[-1] == "/":  # "5/hour", "5 dollars/hour" began earlier
            body, suffix = body[:-1].rstrip(), "per " + suffix
        if suffix.startswith("per ") and suffix != "per cent":
            below = _known(suffix[4:], apart=False) if read_number(body) is not None else None
            if below is not None:
                return body, tuple((base, -power) for base, power in below)
            continue
        apart = (closed_up or text[at - 1] == " ") and _is_amount(body)
        unit = _known(suffix.rstrip("."), apart=apart)
        number = read_number(body)
        if unit is None and text[at - 1] == " " and number is not None:
            unit = _noun(suffix)
        if unit is not None and (number is not None or _NO_BODY.search(body) is None):
            return body.removesuffix("*"), unit
    return text, None


def _is_amount(text: str) -> bool:
    return _AMOUNT.search(text) is not None and _VARIABLE.search(text[-2:]) is None


def _may_begin(text: str, at: int) -> bool:
    before = text[at - 1]
    if text[at] == "\\":
        return text.startswith("\\frac{", at)
    if not (text[at].isalpha() or text[at] in "°$€£¥₹¢"):
        return False
    if before == " ":
        # Behind a command's name the blank only ends the name: "\pi m" is pi times m, unless more
        # than one letter stands there.
        return True
    return before in _BEFORE


def _known(text: str, *, apart: bool) -> Unit | None:
    if text.startswith("\\frac{"):
        middle = matching(text, 5)
        if middle is None or text[middle + 1 : middle + 2] != "{" or not text.endswith("}"):
            return None
        above = _product(text[6:middle], apart=True)
        below = _product(text[middle + 2 : -1], apart=True)
        if above is None or below is None:
            return None
        return _collect(above + [(base, -power) for base, power in below])
    factors = _product(text, apart=apart)
    return None if factors is None else _collect(factors)


def _product(text: str, *, apart: bool) -> list[tuple[str, int]] | None:
    """The factors of ``cm^{2}``, ``kg*m/s^{2}``, ``square miles per hour``; None: not a unit."""
    text = text.strip()
    factors: list[tuple[str, int]] = []
    sign, at, pending, single = 1, 0, 1, False
    while at < len(text):
        match = _FACTOR.match(text, at)
        if match is None:
            return None
        word = match["word"]
        at = match.end()
        if match["plain"] and KNOWN.get(word) not in _LENGTHS and not (word == "s" and sign < 0):
            return None
        power = int(match["exponent"] or match["bare"] or match["plain"] or 1)
        lower = word.lower()
        if lower in ("square", "sq", "cubic", "cu") and power == 1 and pending == 1:
            pending = 2 if lower.startswith("sq") else 3
            at += text[at : at + 1] in (".", " ")
            at += text[at : at + 1] == " "
            continue
        if lower in ("squared", "cubed") and factors and power == 1:
            base, old = factors[-1]
            factors[-1] = base, old * (2 if lower == "squared" else 3)
        elif power != 1 and (glued := _glued(word, power)):
            factors += [(base, sign * exponent) for base, exponent in glued]
        elif word in COMPOUND or (len(word) > 2 and lower in COMPOUND):
            parts = COMPOUND.get(word) or COMPOUND[lower]
            factors += [(base, sign * exponent * power) for base, exponent in parts]
        else:
            known = _base(word)
            if known is None:
                return None
            base = known
            single = single or word in SINGLE_LETTERS
            pair = (factors[-1][0], base) if factors else ("", "")
            if pair in TWO_WORDS and factors[-1][1] == sign:
                factors[-1] = TWO_WORDS[pair], sign * power
            else:
                factors.append((base, sign * power * pending))
        pending = 1
        if at < len(text):
            if text[at - 1] == "}" and text[at].isalpha():  # kg^{-1}K^{-1}
                continue
            separator = _SEPARATOR.match(text, at)
            if separator is None or separator.end() == len(text):
                return None
            at = separator.end()
            if separator[1] in ("/", "per"):
                if sign < 0:  # only m/s/s
                    following = _FACTOR.match(text, at)
                    if following is None or _base(following["word"]) != factors[-1][0]:
                        return None
                sign = -1
                if text[at : at + 1] == "(" and text.endswith(")"):
                    below = _product(text[at + 1 : -1], apart=True)
                    if below is None or any(power < 0 for _, power in below):
                        return None
                    return factors + [(base, -power) for base, power in below]
    if pending != 1 or not factors or (single and not apart and len(factors) == 1):
        return None
    return factors


def _glued(word: str, power: int) -> list[tuple[str, int]]:
    """The factors of ``kgm`` in ``kgm^{-3}``: symbols in a row, the exponent at the last.

    Empty when there is but one, and for a positive exponent behind single letters, which are
    variables.
    """
    found: list[str] = []
    at = 0
    # The s of kgs^{-1} is no plural.
    plural = power < 0 and word[-1] == "s" and word[:-1] in GLUED and word != "ms"
    if len(word) > 8 or not plural and KNOWN.get(word, "millisecond") != "millisecond":
        return []
    while at < len(word):
        symbol = next(
            (word[at:end] for end in (at + 3, at + 2, at + 1) if word[at:end] in GLUED), ""
        )
        if not symbol:
            return []
        found.append(symbol)
        at += len(symbol)
    if len(found) < 2 or power > 0 and max(map(len, found)) == 1:
        return []
    powers = [1] * (len(found) - 1) + [power]
    return [(KNOWN[symbol], exponent) for symbol, exponent in zip(found, powers, strict=True)]


def _base(word: str) -> str | None:
    base = KNOWN.get(word.replace(" ", ""))
    if base is None and len(word) > 2:
        base = KNOWN.get(word.lower())
    if base is None and word in CAPITALS:
        base = KNOWN.get(word.lower())
    if base is None and word.lower() in ("light", "fluid", "fl", "nautical", "us", "electron"):
        base = word.lower()
    return base


def _collect(factors: list[tuple[str, int]]) -> Unit | None:
    powers: dict[str, int] = {}
    for base, power in factors:
        if base in ("light", "fluid", "fl", "nautical", "us", "electron"):
            return None
        powers[base] = powers.get(base, 0) + power
    if any(powers.get(name, 0) > 1 for name in ("hour", "minute", "day", "year")):
        return None  # the product of the variables h and r
    if "degree" in powers and powers != {"degree": 1}:
        return None
    return tuple(sorted(item for item in powers.items() if item[1])) or None


def _noun(text: str) -> Unit | None:
    text = text.strip().rstrip(".")
    above, per, below = text.replace("/", " per ").partition(" per ")
    if per:
        parts = _noun(above), _noun(below)
        if None in parts:
            return None
        return ((f" {above} per {singular(below)}", 1),)
    if _NOUN.fullmatch(text) is None or len(text) > _LONGEST_UNIT:
        return None
    words = re.split("[ -]", text)
    if len(words) > 1 and words[1].lower() == "of" and len(words) > 2:
        counted = [words[0], *words[2:]]
    else:
        counted = words
    for word in counted:
        lower = word.lower()
        if lower in NOT_COUNTED or _NOT_COUNTED_ENDING.search(lower) or word[1:] != lower[1:]:
            return None
        if len(word) < 3 or lower not in KNOWN and not set(lower) & set("aeiou"):
            return None
    return ((" " + " ".join(singular(word.lower()) for word in words), 1),)


def same_unit(left: Unit, right: Unit) -> bool:
    """Whether two units are one, allowing for spellings that may mean either of two units.

    Args:
        left: a unit.
        right: another.

    Returns:
        True when they are the same, or differ in one unit of an ambiguous spelling: 18 pounds is
        18 lb and £18, but 18 lb is not £18.
    """
    if left == right:
        return True
    apart, other = set(left) - set(right), set(right) - set(left)
    if len(apart) != 1 or len(other) != 1:
        return False
    (one, power), (two, other_power) = apart.pop(), other.pop()
    return power == other_power and frozenset([one, two]) in AMBIGUOUS


def singular(word: str) -> str:
    """The singular of a lower-case English noun, by rule; only to compare two spellings."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith(("ies", "ie", "y")):  # berries, cookies
        return word.removesuffix("s").removesuffix("e")[:-1] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "sses", "zes", "oes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
