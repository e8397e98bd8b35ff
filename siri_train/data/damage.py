r"""Signs that a text lost something on its way into the file.

``"\frac"`` in JSON, or in a Python string, is a form feed and ``rac``. The text looks almost right,
and no answer ever equals it.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

# Each escape, and the rests of the LaTeX commands that begin with it. Tabs and line breaks also
# stand between words, so there only a whole command counts.
_EATEN = {
    "\f": ("\\f", "form feed", ("rac", "orall", "box", "lat", "rown")),
    "\b": (
        "\\b",
        "backspace",
        ("eta", "ar", "egin", "inom", "oxed", "f", "ig", "igl", "igr", "ot", "mod", "ullet",
         "ecause", "eth", "oldsymbol", "old", "igcup", "igcap", "race", "owtie"),
    ),
    "\t": (
        "\\t",
        "tab",
        ("imes", "heta", "ext", "extbf", "extit", "extrm", "an", "anh", "au", "frac", "o",
         "riangle", "riangleq", "ilde", "herefore", "binom", "hickapprox"),
    ),
    "\r": (
        "\\r",
        "carriage return",
        ("ight", "ho", "angle", "floor", "ceil", "ightarrow", "brace", "brack"),
    ),
    "\n": (
        "\\n",
        "line break",
        ("eq", "e", "abla", "ot", "otin", "eg", "mid", "parallel", "exists", "subseteq", "leq",
         "geq", "earrow", "ewline"),
    ),
    "\v": ("\\v", "vertical tab", ("ec", "ee", "dots", "arphi", "arnothing", "arepsilon", "artheta",
                                   "phantom", "ert", "arrho", "arsigma")),
    "\a": ("\\a", "bell", ("lpha", "ngle", "pprox", "leph", "rcsin", "rccos", "rctan", "st", "rg",
                           "symp", "malg")),
}  # fmt: skip
_TAILS = {
    character: re.compile(
        re.escape(character)
        + rf"(?P<rest>{'|'.join(sorted(rests, key=len, reverse=True))})(?![A-Za-z.])"
    )
    for character, (_, _, rests) in _EATEN.items()
}
# Also words and variables. Behind a tab or a line break they are a lost command only in a formula.
_COMMON = frozenset(
    {"e", "o", "an", "au", "ext", "eg", "mid", "parallel", "exists", "angle", "floor", "ceil",
     "brace", "leq", "geq"}
)  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_COMMAND = re.compile(r"\\(?:text|mathrm|mbox|textbf|textit|operatorname)?(?![A-Za-z])|\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{2,}")

# Letters and signs without ink: of Hangul, of Braille, of Khmer.
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u2800\u17b4\u17b5")
_PROSE_WORDS, _SENTENCE_WORDS = 10, 6


def eaten_backslash(text: str) -> str | None:
    r"""Find an escape that has replaced the backslash of a LaTeX command.

    Args:
        text: of a question, an answer or a solution.

    Returns:
        The end of a message, ``"holds a form feed before 'rac': ..."``, or None. Tabs and line
        breaks between words are not reported.
    """
    for character, pattern in _TAILS.items():
        if character not in text:
            continue
        for match in pattern.finditer(text):
            rest = match["rest"]
            common = character in "\t\r\n" and rest in _COMMON
            if common and not _mathematical(text, match):
                continue
            escape, name, _ = _EATEN[character]
            return (
                f"holds a {name} before {rest!r}: the file has {escape}{rest} where JSON needs "
                f"\\{escape}{rest}; write the rows with a JSON library, from strings whose "
                "backslashes are whole"
            )
    return None


def control_character(text: str) -> str | None:
    """Find a control character in a gold answer; returns the end of a message, or None."""
    match = _CONTROL.search(text)
    if match is None:
        return None
    return (
        f"holds the control character U+{ord(match[0]):04X} at character {match.start()}; often a "
        "backslash that JSON has eaten; correct or drop the row"
    )


def invisible(text: str) -> bool:
    """Whether a text shows nothing: only blanks, joiners and fillers, no control characters."""
    return all(c in _FILLERS or unicodedata.category(c) in ("Cf", "Zs", "Zl", "Zp") for c in text)


def prose(answer: str) -> Literal["prose", "long"] | None:
    """Whether a gold answer is a sentence, which no response repeats word for word.

    Returns:
        ``"prose"`` from ten words on, or a sentence of six that ends in a full stop; ``"long"``
        from six words on; else None. Words have two letters or more; commands of LaTeX are none.
    """
    words = len(_WORD.findall(_COMMAND.sub(" ", answer)))
    if words >= _PROSE_WORDS or (
        words >= _SENTENCE_WORDS and answer.rstrip().endswith((".", "!", "?"))
    ):
        return "prose"
    return "long" if words >= _SENTENCE_WORDS else None


def _mathematical(text: str, match: re.Match[str]) -> bool:
    """Whether a formula, not a text, follows the tab or line break and its word."""
    after = text[match.end() :].lstrip(" ")[:1]
    if match["rest"] in ("ext", "an", "au"):
        return after in tuple("{}()^_\\$") or (after.isdigit() and match["rest"] != "ext")
    if match[0][0] == "\r" and after in tuple("+-*/=)],"):
        return True
    return after.isdigit() or after in tuple("{}^_\\$|")
