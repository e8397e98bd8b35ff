r"""One spelling for every way to write the same answer.

``spell`` reads an answer as LaTeX and writes it again: sizes, colours, fonts, spacing and
mathematics marks are gone, arguments have their braces (``\frac12`` is ``\frac{1}{2}``, ``x^10``
is ``x^{10}``, ``\sqrt(2)`` is ``\sqrt{2}``), Unicode characters are the LaTeX commands they stand
for (``×``, ``√``, ``²``, ``½``), synonyms are one command (``\le`` and ``\leqslant`` are ``\leq``;
``\times``, ``\cdot`` and ``·`` are ``*``), and upright text is plain text between blanks:
``18\text{ cm}`` is ``18 cm``, and ``2\mathrm{e}`` is ``2 e``. Nothing that changes a value is
dropped: not a word, not a prime, not a subscript.

One pass over the tokens, so the time is linear in the length; nesting is limited.
"""

from __future__ import annotations

import re
import unicodedata

from siri_train.rewards.number_forms import read_number
from siri_train.rewards.structure import pieces
from siri_train.rewards.symbols import (
    ACCENTS,
    BARE,
    BLANKS,
    CHARACTERS,
    COLOURED,
    ENVIRONMENTS,
    HIDDEN,
    NO_BLANKS,
    SAME,
    SIZES,
    SUBSCRIPTS,
    SUPERSCRIPTS,
    SWITCHES,
    TEXT_COMMANDS,
    WRAPPERS,
)

_DEEPEST = 24

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\s+|[0-9]|.", re.S)
_RAISED = re.compile(f"[{''.join(map(re.escape, SUPERSCRIPTS))}]+")
_LOWERED = re.compile(f"[{''.join(map(re.escape, SUBSCRIPTS))}]+")
_OVERLINED = re.compile("(?:[0-9][\u0304\u0305])+")
_BARE = re.compile(
    rf"(?<![A-Za-z\\])(?:{'|'.join(sorted(BARE, key=len, reverse=True))})(?![A-Za-z])"
)
_LOOSE_BLANK = re.compile(r"(?<![0-9A-Za-z})\]°%$€£¥₹¢']) | (?![0-9A-Za-zμ\\°$€£¥₹¢(])")
# 1_000 and 1'000: marks that group digits, unlike the base of 101_2 and the prime of 5'.
_MARKED_GROUPS = re.compile(
    r"(?<![0-9A-Za-z_.'}])[1-9][0-9]{0,2}(?:(?:\\?_[0-9]{3})+|(?:'[0-9]{3})+)(?![0-9A-Za-z_'{])"
)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)")
_TWO_NUMBERS = re.compile(r"(?<=[0-9]), (?=[0-9]{3}(?![0-9]))")
_DOUBLED = re.compile(
    r"\\\\(?=[{}%$!]|(?:[dt]?frac|sqrt|left|right|text[a-z]*|math[a-z]+|pi|infty|times|cdot|leq?|geq?|"
    r"cup|in|pm|circ|angle|theta|alpha|beta|sin|cos|tan|log|ln|boxed|quad|emptyset)(?![A-Za-z]))"
)
_SINGLE = re.compile(r"(?<!\\)\\[A-Za-z]")
_MARKED = re.compile(
    r"\s*=?\s*(?P<mark>\*{1,3}|__|`|\"|')(?P<text>[^*`\"'].*)(?P=mark)[\s.]*", re.S
)
_MONEY = re.compile(
    r"\s*[-+(]?(?:US|CA|AU)?\s*\$\s*[-+]?\s*\.?[0-9]|\s*[-+]?[0-9][0-9.,]*\s*(?:US|CA|AU)?\s*\$\s*$"
)

# Invisible, though not of a category that says so: fillers, the braille blank, variation selectors.
_UNSEEN = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5") | {
    chr(code) for code in range(0xFE00, 0xFE10)
}


class Malformed(ValueError):
    """Braces that do not match, or nesting that is absurdly deep."""


def is_visible(text: str) -> bool:
    """Whether every character of ``text`` shows: no control, format, private or filler character.

    Args:
        text: any text. Tabs, line ends and blanks are allowed.

    Returns:
        False for zero-width and direction marks, lone surrogates and the like, which could make two
        different answers look the same.
    """
    return text.isascii() and text.isprintable() or not any(map(_is_unseen, text))


def without_invisible(text: str) -> str:
    """``text`` without the characters that ``is_visible`` refuses."""
    return "".join(character for character in text if not _is_unseen(character))


def spell(text: str) -> str:
    r"""The canonical spelling of an answer.

    Args:
        text: the content of a box or a gold answer, at most a few thousand characters.

    Returns:
        The spelling; may be empty. A blank in it stands between two words or numbers or in front of
        upright text.

    Raises:
        Malformed: braces do not match, or are nested deeper than 24.
    """
    text = _to_latex(text)
    # Two dollar signs enclose mathematics, a single one in front of a number is money.
    money = text.replace("\\$", "").count("$") % 2 == 1 and _MONEY.match(text) is not None
    if money:
        text = text.replace("$", "\\$", 1)
    if _is_bare_set(text):
        text = f"\\{{{text.strip()[1:-1]}\\}}"
    reader = _Reader(_TOKEN.findall(text))
    spelled = reader.read(None, 0)
    return _tidy(spelled)


def _is_unseen(character: str) -> bool:
    if character in "\t\n\r" or " " <= character <= "~":
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs", "Cn") or character in _UNSEEN


def _to_latex(text: str) -> str:
    if not text.isascii():
        text = _OVERLINED.sub(lambda m: f"\\overline{{{m[0][::2]}}}", text)
        text = _RAISED.sub(lambda m: f"^{{{''.join(SUPERSCRIPTS[c] for c in m[0])}}}", text)
        text = _LOWERED.sub(lambda m: f"_{{{''.join(SUBSCRIPTS[c] for c in m[0])}}}", text)
        text = "".join(_character(character) for character in text)
        text = unicodedata.normalize("NFKC", text)
    if "_" in text or "'" in text:
        text = _MARKED_GROUPS.sub(lambda m: re.sub(r"[\\_']", "", m[0]), text)
    if "\\\\" in text and _SINGLE.search(text) is None and "begin" not in text:
        text = _DOUBLED.sub(r"\\", text)  # as models write that answer in JSON
    marked = _MARKED.fullmatch(text)
    if marked is not None and marked["mark"] not in marked["text"]:
        text = marked["text"]
    return _BARE.sub(lambda m: BARE[m[0]], text.replace("**", "^"))


def _character(character: str) -> str:
    if character in CHARACTERS:
        return CHARACTERS[character]
    if unicodedata.category(character) == "No" and "⁄" in unicodedata.normalize("NFKC", character):
        above, below = unicodedata.normalize("NFKC", character).split("⁄")
        return f"\\frac{{{above}}}{{{below or 1}}}"
    return character


def _is_bare_set(text: str) -> bool:
    """``{1, 2}`` and ``{}`` as plain text: braces around everything; but not ``{1,000}``."""
    stripped = text.strip().strip("$").strip()
    if stripped == "{}" == text.strip():
        return True
    if text.strip() != stripped or not (stripped[:1] == "{" and stripped[-1:] == "}"):
        return False
    depth, comma = 0, False
    for index, character in enumerate(stripped):
        if character in "{}" and stripped[index - 1] != "\\":
            depth += 1 if character == "{" else -1
            if depth == 0 and index < len(stripped) - 1:
                return False
        comma = comma or (character == "," and depth == 1)
    if not comma:
        return False
    inside = _tidy(_Reader(_TOKEN.findall(stripped[1:-1])).read(None, 0))
    return read_number(inside) is None and len(pieces(inside, "comma")[0]) > 1


def _tidy(text: str) -> str:
    # "32, 349" is two numbers, "32,349" is one.
    return _LOOSE_BLANK.sub("", _TWO_NUMBERS.sub(";", " ".join(text.split())))


class _Reader:
    """The tokens of one answer and the place of the next one."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0
        # Of two vectors there are two products.
        self.vectors = not {"\\vec", "\\overrightarrow"}.isdisjoint(tokens)

    def peek(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def skip_blanks(self) -> None:
        while self.at < len(self.tokens) and self.tokens[self.at].isspace():
            self.at += 1

    def read(self, until: str | None, depth: int) -> str:
        """Spell up to the token ``until``, which is taken; None: to the end."""
        if depth > _DEEPEST:
            raise Malformed("nested too deep")
        pieces: list[str] = []
        above: str | None = None
        kind = "frac"
        while True:
            token = self.peek()
            if token is None:
                if until is not None:
                    raise Malformed(f"no {until}")
                break
            self.at += 1
            if token == until:
                break
            if token == "}":
                raise Malformed("a brace too many")
            if token in ("\\over", "\\choose"):
                kind = "frac" if token == "\\over" else "binom"
                above, pieces = "".join(pieces), []
                continue
            pieces.append(self.piece(token, depth))
        text = "".join(pieces)
        return text if above is None else f"\\{kind}{{{_tidy(above)}}}{{{_tidy(text)}}}"

    def piece(self, token: str, depth: int) -> str:
        """The spelling of ``token``, which was just taken, with its arguments."""
        if token == "{":
            return self.read("}", depth + 1)
        if token in "^_" and len(token) == 1:
            return self.script(token, depth)
        if token == "$":
            return ""
        if token == "~" or token.isspace():
            return " "
        if token[0] != "\\" or len(token) == 1:
            return token
        return self.command(token[1:], depth)

    def command(self, name: str, depth: int) -> str:
        if name in BLANKS or name.isspace():
            return " "
        if name in NO_BLANKS or name in SWITCHES:
            return "" if name in NO_BLANKS else " "
        if name in SIZES:
            self.skip_blanks()
            if self.peek() == ".":
                self.at += 1
            return ""
        if name in HIDDEN:
            self.star()
            self.option(depth)
            self.argument(depth)
            return " "
        if name in ("textsuperscript", "textsubscript"):
            return self.script("^" if name == "textsuperscript" else "_", depth)
        if name in TEXT_COMMANDS:
            self.star()
            return f" {self.argument(depth)} "
        if name in WRAPPERS:
            return self.argument(depth)
        if name in COLOURED:
            self.option(depth)
            for _ in range(COLOURED[name]):
                self.argument(depth)
            return self.argument(depth)
        if name in (
            "frac",
            "dfrac",
            "tfrac",
            "cfrac",
            "nicefrac",
            "sfrac",
            "binom",
            "dbinom",
            "tbinom",
        ):
            kind = "binom" if name.endswith("binom") else "frac"
            return f"\\{kind}{{{self.argument(depth)}}}{{{self.argument(depth)}}}"
        if name == "sqrt":
            return self.root(depth)
        if name == "begin":
            return self.environment(depth)
        if name == "end":
            raise Malformed("an end without a beginning")
        if name in ("$", "%", "&", "#", "_"):
            return name if name in "$%" else f"\\{name}"
        if name in ACCENTS or name == "bar":
            name = {"bar": "overline", "Bbb": "mathbb"}.get(name, name)
            return f"\\{name}{{{self.argument(depth)}}}"
        if name == "times" and self.vectors:
            self.skip_blanks()
            following = self.peek() or ""
            return "*" if following.isdigit() else "\\times "
        if name in SAME:
            same = SAME[name]
            return f"{same} " if same[0] == "\\" and same[-1].isalpha() else same
        return f"\\{name} " if name.isalpha() else f"\\{name}"

    def star(self) -> None:
        if self.peek() == "*":
            self.at += 1

    def option(self, depth: int) -> None:
        """Pass over an argument in square brackets."""
        if self.peek() == "[":
            self.at += 1
            self.read("]", depth + 1)

    def argument(self, depth: int) -> str:
        """The next token or group, tidied."""
        self.skip_blanks()
        if self.peek() is None:
            raise Malformed("an argument is missing")
        token = self.take()
        if token == "}":
            raise Malformed("an argument is missing")
        if depth > _DEEPEST:
            raise Malformed("nested too deep")
        return _tidy(self.piece(token, depth + 1))

    def run(self, depth: int) -> str:
        """An argument that may also be written without braces: digits, or a pair of parentheses."""
        self.skip_blanks()
        start = self.at
        if self.peek() in ("+", "-"):
            self.at += 1
        while (token := self.peek()) is not None and (token.isdecimal() and token.isascii()):
            self.at += 1
        if self.at > start and self.tokens[self.at - 1].isdecimal():
            return "".join(self.tokens[start : self.at])
        self.at = start
        if self.peek() == "(":
            self.at += 1
            return _tidy(self.read(")", depth + 1))
        if self.peek() == "-":
            self.at += 1
            return "-" + self.argument(depth)
        return self.argument(depth)

    def script(self, mark: str, depth: int) -> str:
        inside = self.run(depth)
        if mark == "^":
            if inside in (r"\circ", "°", "o") or inside.startswith(("°", r"\circ ")):
                return "°" + inside.removeprefix(r"\circ").removeprefix("°").removeprefix("o")
            if inside and set(inside) == {"'"}:
                return inside
            if _ORDINAL.fullmatch(inside):
                return inside + " "
        return f"{mark}{{{inside}}}"

    def root(self, depth: int) -> str:
        self.skip_blanks()
        degree = ""
        if self.peek() == "[":
            self.at += 1
            inside = _tidy(self.read("]", depth + 1))
            degree = "" if inside in ("", "2") else f"[{inside}]"
        return f"\\sqrt{degree}{{{self.run(depth)}}}"

    def environment(self, depth: int) -> str:
        name = self.argument(depth).removesuffix("*").strip()
        if name == "array":
            self.argument(depth)
        body = self.read("\\end", depth + 1)
        if self.argument(depth).removesuffix("*").strip() != name:
            raise Malformed("the end of another environment")
        name = ENVIRONMENTS.get(name, name)
        body = re.sub(r" *(&|\\\\) *", r"\1", " ".join(body.split())).removesuffix("\\\\")
        return f"\\begin{{{name}}}{_tidy(body)}\\end{{{name}}}"
