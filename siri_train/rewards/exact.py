r"""Comparing answers without evaluating anything: numbers as fractions, the rest as text."""

from __future__ import annotations

import re
from fractions import Fraction

from siri_train.rewards.extract import last_boxed
from siri_train.rewards.rounded import rounded_verdict

_LONGEST = 1000

_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"
)
_UNIT = re.compile(
    r"(?<=[0-9}])[\s~]*(?:\\[ ,;:!])*"
    r"\\(?:text|textrm|mathrm|mbox)\s*\{[^{}0-9]*\}(?:\^\{?[0-9]\}?)?$"
)
_DEGREE = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°")
_SIZING = re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])")
_LOOSE_BLANK = re.compile(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])")
_GROUPED = re.compile(r"[0-9]{1,3}(?:[ ,][0-9]{3})+(?:\.[0-9]+)?")

_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_PLAIN = re.compile(rf"({_NUMBER})")
_SLASH = re.compile(rf"({_NUMBER})/({_NUMBER})")
_FRAC = re.compile(rf"\\frac(?:\{{(-?(?:{_NUMBER}))\}}|([0-9]))(?:\{{(-?(?:{_NUMBER}))\}}|([0-9]))")


def normalise(answer: str) -> str:
    r"""The form in which two answers are compared as text.

    Drops dollar signs, ``\left``/``\right``, spacing commands, degrees, braces around everything, a
    unit in ``\text{}`` behind a number, a full stop at the end and blanks next to symbols; unwraps
    ``\text{}`` and its like; makes ``\dfrac`` and ``\tfrac`` a ``\frac``, ``{,}`` a comma and the
    Unicode minus a hyphen. Case is kept: x and X are different variables.

    Args:
        answer: the content of a box, or a gold answer.

    Returns:
        The normalised text; may be empty.
    """
    text = " ".join(answer.split()).replace("−", "-").replace("\\!", "").replace("{,}", ",")
    text = _DEGREE.sub("", text).strip()
    text = _UNIT.sub("", text)
    text = _SIZING.sub("", text)
    text = text.replace("\\$", "").replace("$", "").replace("\\%", "%")
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = _TEXT.sub(r"\1", text)
    text = re.sub(r"\\[,;: ]|~|\\quad(?![A-Za-z])", " ", text)
    text = _LOOSE_BLANK.sub("", re.sub(r"\s+", " ", text).strip())
    text = text.rstrip(".")
    while len(text) > 1 and text[0] == "{" and _closes_at_end(text):
        text = text[1:-1].strip()
    return text


def as_number(normalised: str) -> tuple[Fraction, bool] | None:
    r"""The exact value of a plain number or simple fraction.

    Args:
        normalised: a result of ``normalise``: ``-1,234.50``, ``007``, ``3/4``, ``-\frac{1}{2}``,
            ``\frac12``, ``12%``.

    Returns:
        (value, percent): the value as written (12 for ``12%``) and whether a percent sign follows;
        None when it is anything else, a division by zero included.
    """
    if len(normalised) > _LONGEST:  # int() has a limit of its own, and raises
        return None
    percent = normalised.endswith("%")
    text = normalised[:-1].strip() if percent else normalised
    sign = -1 if text.startswith("-") else 1
    text = text[1:].strip() if text[:1] in ("+", "-") else text
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    if _PLAIN.fullmatch(text):
        return sign * Fraction(_decimal(text)), percent
    match = _SLASH.fullmatch(text) or _FRAC.fullmatch(text)
    if match is None:
        return None
    above, below = (Fraction(_decimal(part)) for part in match.groups() if part is not None)
    return None if below == 0 else (sign * above / below, percent)


def exact_verdict(answer: str, gold: str) -> bool | None:
    r"""Compare without evaluating; None where that cannot decide.

    Two numbers are compared exactly, so 3.0 is 3, 007 is 7, ``\frac{2}{4}`` is 0.5, and 0.333 is
    not 1/3. A percent sign on one side only makes answers different: neither "10%" for 10 nor "10%"
    for 1/10 is accepted (math-verify alone accepts both). Texts equal after ``normalise`` are
    equal; different texts are undecided. Above 1000 characters only identical texts are equal.

    Args:
        answer: the content of a box.
        gold: the right answer, bare or inside its own ``\boxed{}``.

    Returns:
        True, False, or None (not decided here).
    """
    if len(answer) > _LONGEST or len(gold) > _LONGEST:
        return True if answer.strip() == gold.strip() != "" else None
    rounded = rounded_verdict(answer, gold)
    if rounded is not None:
        return rounded
    boxed = last_boxed(gold)
    left, right = normalise(answer), normalise(gold if boxed is None else boxed)
    if not left or not right:
        return False
    if left == right:
        return True
    if ("%" in left) != ("%" in right):
        return False
    one, two = as_number(left), as_number(right)
    if one is None or two is None:
        return None
    if one != two and ("," in left or "," in right):
        # "100,200" may be two solutions rather than one number.
        return None
    return one == two


def exact_match(answer: str, gold: str) -> bool:
    r"""Whether two answers are the same number or the same text (see ``exact_verdict``).

    Args:
        answer: the content of a box.
        gold: the right answer.

    Returns:
        True only when equality is certain; two expressions of equal value are not evaluated.
    """
    return exact_verdict(answer, gold) is True


def _decimal(text: str) -> str:
    # Fraction("5.") and Fraction(".5") are not both accepted by every supported Python.
    whole, point, rest = text.partition(".")
    if not point:
        return whole
    return f"{whole or '0'}.{rest or '0'}" if whole != "-" else f"-0.{rest or '0'}"


def _closes_at_end(text: str) -> bool:
    depth = 0
    for index, character in enumerate(text):
        if character in "{}" and text[index - 1 : index] != "\\":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return index == len(text) - 1
    return False
