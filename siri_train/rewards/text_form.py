r"""The text that is compared: a spelled answer without what never matters."""

from __future__ import annotations

import re

from siri_train.rewards.spelling import Malformed, spell
from siri_train.rewards.words import is_words

_BLANK = re.compile(
    r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])|(?<=[A-Za-z]) (?=[0-9])|(?<=[0-9]) (?=[A-Za-z])"
)
_PRODUCT_BLANK = re.compile(r"(?<![A-Za-z\\])([A-Za-z]) (?=[A-Za-z](?![A-Za-z]))")
# Two times one half is not two and a half.
_TIMES = re.compile(r"(?<=[0-9])\*(?=[A-Za-z(]|\\(?!frac))")
_BASE_TEN = re.compile(r"(?<=[0-9])_\{(?:10|ten)\}$")
_ORDINAL_BLANK = re.compile(r"(?<=[0-9]) (?=(?:st|nd|rd|th)(?![A-Za-z]))")
# {x : x>2} is {x | x>2}; {1:2} is a ratio in a set.
_SUCH_THAT = re.compile(r"(\\\{ ?[A-Za-z(][^|:{}]*(?:\{[A-Z]\}[^|:{}]*)?):")
# {x in R | x>2} is {x | x>2}.
_REAL_MEMBERS = re.compile(r"(?<=\\\{[A-Za-z])\\in ?\\mathbb\{R\}\|")
# Feb. 14, St. Louis
_ABBREVIATED = re.compile(r"(?<![A-Za-z\\])([A-Z][a-z]{1,3})\. ?(?=[A-Za-z0-9])")
_VEE = re.compile(r" ?\\vee(?![A-Za-z]) ?")
_CLOCK = re.compile(r"(?<![0-9:])0(?=[0-9]:[0-9]{2}(?![0-9]))")
_HALF_DAY = re.compile(
    r"(?<![A-Za-z\\])(?:([ap])\. ?m(?:\.|(?![A-Za-z]))|(?<=[0-9])([ap])m$)", re.I
)
# 3:00 PM is 3 PM, 12:00 noon is 12 noon.
_FULL_HOUR = re.compile(
    r"(?<![0-9:.])([0-9]{1,2}):00(?= ?(?:[ap]m|noon|midnight)(?![A-Za-z]))", re.I
)
_RATIO_WORD = re.compile(r"[0-9]+(?:\.[0-9]+)?(?: to [0-9]+(?:\.[0-9]+)?)+")
_NAMED = {
    "empty set": r"\emptyset",
    "null set": r"\emptyset",
    "all real numbers": r"\mathbb{R}",
    "all reals": r"\mathbb{R}",
    "real numbers": r"\mathbb{R}",
}
_NAMED_SET = re.compile(rf"(?:the )?({'|'.join(_NAMED)})", re.I)
_ROWS = re.compile(
    r"\\begin\{(cases|aligned|align|gathered)\}(.*)\\end\{\1\}|"
    r"\\\{\\begin\{(pmatrix|aligned)\}(.*)\\end\{\3\}"  # with one brace in front
)
# A fraction by itself, as it is written in one line.
_FRACTION = re.compile(
    r"(-?)\\frac\{([^{}+-]*(?:\{[^{}]*\}[^{}+-]*)*)\}\{([0-9]+|[A-Za-z]|\\[A-Za-z]+)\}\Z"
)


def normalise(answer: str) -> str:
    r"""The form in which two answers are compared as text: spelled, without loose blanks.

    Args:
        answer: the content of a box, or a gold answer.

    Returns:
        The normalised text; may be empty. Case is kept. What cannot be read (braces that do not
        match) keeps its own spelling.
    """
    try:
        return text_key(clean(spell(answer)))
    except Malformed:
        return " ".join(answer.split())


def clean(text: str) -> str:
    r"""A spelled answer without what never matters around it.

    Args:
        text: a result of ``spelling.spell``.

    Returns:
        The text without an equals sign in front and a full stop behind, an exclamation mark after
        words; ``\emptyset`` for the empty set in words, ``3:00`` for ``03:00``, ``pm`` for
        ``p.m.``, ``3 pm`` for ``3:00 pm``, ``3:2`` for ``3 to 2``, ``1st`` for ``1 st``, and no
        base of ten.
    """
    text = text.strip().removeprefix("=").strip()
    while text.endswith((".", ";", ",")) and not text.endswith(("..", "\\.", "\\;", "\\,")):
        text = text[:-1].rstrip()
    named = _NAMED_SET.fullmatch(text)
    if named is not None:
        return _NAMED[named[1].lower()]
    if text.endswith("!") and is_words(text):
        text = text.rstrip("!")
    text = _BASE_TEN.sub("", _CLOCK.sub("", _ORDINAL_BLANK.sub("", text)))
    rows = _ROWS.fullmatch(text)
    body = text if rows is None else rows[2] or rows[4]
    if "\\\\" in body and "\\begin" not in body:
        lines = [re.sub(r"&(?=[=<>]|\\[lg]eq)", "", row) for row in body.split("\\\\")]
        if all("=" in line and "&" not in line for line in lines):
            text = ", ".join(lines)
    if r"\vee" in text and all("=" in part or "<" in part for part in _VEE.split(text)):
        text = _VEE.sub(" or ", text)
    text = _ABBREVIATED.sub(r"\1 ", text)
    text = _HALF_DAY.sub(lambda m: f" {(m[1] or m[2]).lower()}m", text).replace("  ", " ")
    if _RATIO_WORD.fullmatch(text):
        text = text.replace(" to ", ":")
    return _FULL_HOUR.sub(r"\1", text)


def text_key(text: str) -> str:
    r"""The key by which two spelled answers are compared as text.

    Args:
        text: a result of ``clean`` or a part of one.

    Returns:
        The text without the blanks and signs of multiplication that change nothing. A blank stays
        between two words and between two numbers; ``2*\frac{1}{2}`` keeps its sign, because without
        it it is two and a half. A fraction by itself is written in one line: ``\pi/2``.
    """
    text = _TIMES.sub("", _PRODUCT_BLANK.sub(r"\1", _BLANK.sub("", text.strip())))
    text = _SUCH_THAT.sub(r"\1|", text.removeprefix("+").replace("...", r"\dots"))
    text = _REAL_MEMBERS.sub("|", text) if r"\mathbb{R}" in text else text
    fraction = _FRACTION.match(text)
    return text if fraction is None else "{}{}/{}".format(*fraction.groups())
