r"""Answers in words, and the letters of multiple choice.

Words are compared as words: order counts, and case counts unless it is only the writing of a
sentence (Yes, yes; Paris, paris). ``ACB`` is not ``ABC``, ``AB`` is not ``ab``, ``x`` is not ``X``.
"""

from __future__ import annotations

import re

from siri_train.rewards.number_forms import read_number
from siri_train.rewards.unit_table import KNOWN

_ARTICLE = re.compile(r"(?:the|an?) +(?=[A-Za-z][A-Za-z-])", re.I)
_LETTERS = re.compile(r"\\[A-Za-z]+|[A-Za-z]+")
_ONLY_WORDS = re.compile(
    r"[a-z]-[a-z]{4,}|[A-Za-z]{2}[A-Za-z '\-!?.]*|[A-Za-z][A-Za-z'\-]* [A-Za-z '\-!?.]+"
)
_BESIDE = re.compile(
    r"(?<=[A-Za-z0-9}):]) [A-Za-z]{2,}|(?<![A-Za-z\\])[A-Za-z]{2,} (?=[A-Za-z0-9])"
)
_DAY = re.compile(
    r"(?<![A-Za-z])((?:january|february|march|april|may|june|july|august|september|october|"
    r"november|december) [0-9]{1,2}) ?(?:st|nd|rd|th)(?![A-Za-z])",
    re.I,
)
_TOKEN = re.compile(r"[0-9]+(?:[.,][0-9]+)*|[A-Za-z]+(?:'[A-Za-z]+)?|\\[A-Za-z]+|\S")
_PLAIN_WORDS = frozenset(
    "yes no up by we so ok true false none even odd am pm both neither never always is it in "
    "on to of or and if a i the not monday tuesday wednesday thursday friday saturday sunday "
    "january february march april may june july august september october november december".split()
)
"""Words whose capitals never matter."""

_CHOICE = re.compile(
    r"(?:(?:option|choice|answer):? ?)?"
    r"(?:\((?P<enclosed>[A-Z])\)[.:]?|(?P<marked>[A-Z])[).:]|(?P<only>[A-Z]))"
    r"(?: ?(?P<text>\S.*))?",
    re.S | re.I,
)
_ANOTHER = re.compile(r"\([A-Ja-j]\)|(?<![A-Za-z\\])[A-Ja-j][).:](?![A-Za-z0-9])")
_ONLY_CHOICES = re.compile(r"(?:[A-Ja-j]|and|or|[,/& ])+")


def is_words(text: str) -> bool:
    """Whether a spelled answer is or contains words, so that it must not be read as mathematics.

    True for text that consists of words (``ABC``, ``no solution``) and for mathematics with words
    set apart in it (``n is even``, ``3 PM``); False for products such as ``2ab``, ``xy`` and for
    names such as ``AB`` inside an expression.
    """
    if _ONLY_WORDS.fullmatch(text):
        return not set(text) <= set("xyz ")
    return _BESIDE.search(_LETTERS.sub(_shade, text)) is not None


def _shade(match: re.Match[str]) -> str:
    # A command is no word; the digit in its place keeps words beside it beside something.
    return "0" if match[0][0] == "\\" else match[0]


def same_words(left: str, right: str) -> bool:
    """Whether two spelled answers say the same in words.

    A leading article, punctuation at the end and the capitals of a sentence do not matter; numbers
    in between are compared by value.

    Args:
        left: a spelled answer.
        right: another.

    Returns:
        True when word for word they are the same.
    """
    one, two = _words(left), _words(right)
    if len(one) != len(two) or not one:
        return False
    # A whole sentence in capitals is only loud; capitals in a sentence are names.
    prose = len(one) > 1 and (left.isupper() or right.isupper())
    return all(_same_word(a, b, prose) for a, b in zip(one, two, strict=True))


def choice(text: str) -> tuple[str, str] | None:
    """(letter, text) of a choice: ``B``, ``(B)``, ``B.``, ``(B) 12``, ``Option B``; else None.

    A second choice in the text makes it none, so that naming several letters is never right.
    """
    match = _CHOICE.fullmatch(text)
    if match is None:
        return None
    letter = match["enclosed"] or match["marked"] or match["only"]
    rest = (match["text"] or "").strip()
    if rest and match["only"]:
        return None
    if rest and (_ANOTHER.search(rest) or _ONLY_CHOICES.fullmatch(rest)):
        return None
    if rest and not (rest[0].isalnum() or rest[0] in "\\$€£-.(\"'["):
        return None
    return letter, rest


def _words(text: str) -> list[str]:
    text = _DAY.sub(r"\1", text.strip().rstrip(".!?;,: "))
    article = _ARTICLE.match(text)
    return _TOKEN.findall(text[article.end() :] if article else text)


def _same_word(left: str, right: str, prose: bool) -> bool:
    if left == right:
        return True
    if left[0].isdigit() and right[0].isdigit():
        one, two = read_number(left), read_number(right)
        return one is not None and two is not None and one.equals(two)
    lower = left.lower()
    if lower != right.lower():
        unit = KNOWN.get(left)
        return len(left + right) > 3 and unit is not None and unit == KNOWN.get(right)
    if lower in _PLAIN_WORDS:
        return True
    return all(
        (len(word) > 2 and word[1:] == word[1:].lower()) or (prose and len(word) > 3)
        for word in (left, right)
    )
