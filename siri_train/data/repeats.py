"""Keys by which two questions are found to be the same."""

from __future__ import annotations

import re
import unicodedata

from siri_train.data.questions import Question

# Dashes and minus signs, which NFKC leaves apart.
_DASHES = dict.fromkeys(map(ord, "‐‑‒–—―−﹘﹣－"), "-")
_TIMES = {ord("×"): "*", ord("·"): "*", ord("⋅"): "*", ord("÷"): "/"}
# Marks of a sentence, not of mathematics. A point before a digit is a decimal point; a quotation
# mark behind a letter may be a prime, so only the curly ones and the double one count.
_MARKS = re.compile(r"[,;:?\"“”„«»‹›‘’`…¿¡$]|\.(?![0-9])|(?<=[^\W\d_]{2})!")
_BLANKS = re.compile(r"\s+")
# A line of a picture drawn with characters, in which blanks say something: no letter, no digit.
_DRAWN = re.compile(r"(?m)^(?=.{4})[^\w\n]*[^\w\s][^\w\n]*$")
_LOOSE_BLANK = re.compile(r"(?<![^\W_]) | (?![^\W_])")


def strict_key(question: Question) -> str:
    """A key that ignores blanks and the form of compatible Unicode characters."""
    text = _spelled(_text(question))
    return text if _is_drawing(text) else _LOOSE_BLANK.sub("", _BLANKS.sub(" ", text).strip())


def loose_key(question: Question) -> str:
    """A key that ignores blanks, case, dashes and punctuation.

    Signs of mathematics stay in it: 4 + 9 is another question than 4 - 9, and 5! than 5. So do the
    blanks and marks of a picture drawn with characters.
    """
    text = _spelled(_text(question)).translate(_TIMES).casefold()
    if _is_drawing(text):
        return text
    return _LOOSE_BLANK.sub("", _BLANKS.sub(" ", _MARKS.sub(" ", text)).strip())


def _text(question: Question) -> str:
    if not question.messages:
        return question.prompt
    return "\n".join(f"{role}: {text}" for role, text in question.messages)


def _spelled(text: str) -> str:
    # Superscripts are exponents: NFKC would make 2² the number 22.
    text = re.sub("[⁰¹²³⁴-⁹]", lambda m: f"^{unicodedata.normalize('NFKC', m[0])}", text)
    if text.isascii():
        return text.strip()
    text = unicodedata.normalize("NFKC", text).translate(_DASHES)
    return "".join(c for c in text if unicodedata.category(c) != "Cf").strip()


def _is_drawing(text: str) -> bool:
    """Whether two lines or more are drawn and blanks stand between or before their signs."""
    lines = [line.rstrip() for line in _DRAWN.findall(text)]
    return sum(" " in line for line in lines) >= 2
