r"""How an answer is built: lists, tuples, sets, intervals, matrices, relations, named values.

Works on text spelled by ``spelling.spell`` and looks at brackets and separators only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from siri_train.rewards.number_forms import read_number

_OPEN = re.compile(r"\\\{|\\langle(?![A-Za-z])|\\lfloor(?![A-Za-z])|\\lceil(?![A-Za-z])|[({\[]")
_TOP = re.compile(
    r"(?P<open>\\\{|\\(?:langle|lfloor|lceil|begin)(?![A-Za-z])|[({\[])|"
    r"(?P<close>\\\}|\\(?:rangle|rfloor|rceil)(?![A-Za-z])|\\end\{[A-Za-z]*\}|[)}\]])|"
    r"(?P<relation>\\(?:leq|geq|neq|in|approx|equiv|sim|cong|propto)(?![A-Za-z])|<=|>=|!=|[<>=])|"
    r"(?P<union>\\cup(?![A-Za-z]))|"
    r"(?P<comma>[,;]|(?<![A-Za-z])(?:and|or)(?![A-Za-z]))|\\.",
    re.S,
)
_RELATION_NAMES = {"<=": r"\leq", ">=": r"\geq", "!=": r"\neq"}
_FLIPPED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}
_COMMAND = re.compile(r"\\[A-Za-z]+ ?")
_NAME = re.compile(r"[A-Za-z'°|\[](?:[A-Za-z'°|:{}\] ]|\([A-Za-z0-9=, ]+\)|\[[A-Za-z0-9=, ]+\])*")
# A derivative or a ratio of two named lengths.
_RATIO = re.compile(r"\\frac\{[A-Za-z ]+\}\{[A-Za-z ]+\}")
_NOT_IN_NAMES = re.compile(
    r"\\(?:frac|sqrt|binom|sum|int|prod|pm|mp|pi|infty|begin|not|lnot)(?![A-Za-z])"
)
# "x is not = 5", "anything but = 5": said of the value, and no name of it.
_DENIED = re.compile(
    r"(?<![A-Za-z])(?:not|never|nor|neither|but|except|excluding|without|wrong|incorrect|false|"
    r"untrue|unlike|unequal|than|cannot|[a-z]+n't)(?![A-Za-z])",
    re.I,
)
_VARIABLE = re.compile(r"[A-Za-z](?:_\{[A-Za-z0-9]+\}|\([a-z]\))?|\\(?!pi|infty)[a-z]+ ?")
_WITHIN = re.compile(r"\|([A-Za-z])\|")
_AMOUNT = re.compile(r"[1-9][0-9]*(?:\.[0-9]+)?|\\frac\{[1-9][0-9]*\}\{[1-9][0-9]*\}")
_HALF_LINE = re.compile(r"(?P<lower>[\[(][^,]+),\\infty\)|\(-\\infty,(?P<upper>[^,]+[\])])", re.S)
_SUBSCRIPT = re.compile(r"_\{[^{}]*\}|\^\{-1\}")
_BUILDER = re.compile(
    r"\\\{ ?(?P<name>[A-Za-z])(?: ?\\in ?\\mathbb\{R\})? ?[|:](?P<condition>[^|:{}]+)\\\}"
)


@dataclass(frozen=True)
class Shape:
    """The outermost structure of an answer.

    Attributes:
        kind: ``set``, ``tuple``, ``list`` (no brackets), ``union``, ``matrix``, ``single``, or the
            two brackets of an interval such as ``[)``.
        parts: the parts in order, spelled; one of a single, none of an empty set.
        rows: of a matrix, how many parts each row has; empty otherwise.
    """

    kind: str
    parts: tuple[str, ...]
    rows: tuple[int, ...] = ()


def pieces(text: str, what: str) -> tuple[list[str], list[str]]:
    """Split at what stands outside all brackets.

    Args:
        text: a spelled answer.
        what: ``comma`` (commas, semicolons, "and", "or"), ``relation`` or ``union``.

    Returns:
        (the parts, stripped; the separators between them).
    """
    parts: list[str] = []
    separators: list[str] = []
    depth = start = 0
    for match in _TOP.finditer(text):
        if match["open"]:
            depth += 1
        elif match["close"]:
            depth -= 1
        elif depth == 0 and match[what]:
            parts.append(text[start : match.start()].strip())
            separators.append(match[what])
            start = match.end()
    parts.append(text[start:].strip())
    if what == "comma":  # "1, 2, and 3" has an empty part before "and"
        kept = [index for index, part in enumerate(parts) if part]
        if len(kept) < len(parts):
            word = [i for i, part in enumerate(parts) if not part and 0 < i < len(parts) - 1]
            if len(kept) + len(word) != len(parts) or any(
                separators[i] not in ("and", "or") for i in word
            ):
                return [text.strip()], []
            parts = [parts[index] for index in kept]
    return parts, separators


def shape(text: str) -> Shape:
    """The outermost structure of a spelled answer; see ``Shape``."""
    text = text.strip()
    if text in (r"\emptyset", r"\{\}", r"\{ \}"):
        return Shape("set", ())
    if text.startswith(r"\begin{pmatrix}") and text.endswith(r"\end{pmatrix}"):
        body = text[len(r"\begin{pmatrix}") : -len(r"\end{pmatrix}")]
        if r"\begin" not in body:
            rows = [row.split("&") for row in body.split(r"\\")]
            flat = tuple(cell.strip() for row in rows for cell in row)
            return Shape("matrix", flat, tuple(map(len, rows)))
    enclosed = _enclosed(text)
    if enclosed is not None:
        opening, inside, closing = enclosed
        if inside.startswith(r"\begin{pmatrix}") and _ends_matrix(inside):
            return shape(inside)
        parts, _ = pieces(inside, "comma")
        if opening == r"\{" and closing == r"\}":
            if re.search(r"\||:|\\in(?![A-Za-z])", inside):
                return Shape("single", (text,))
            return Shape("set", tuple(parts))
        if len(parts) == 1:
            if opening + closing == "()":
                return shape(inside)
            return Shape("single", (text,))
        if opening + closing == "()" or opening == r"\langle":
            return Shape("tuple", tuple(parts))
        return Shape(opening + closing, tuple(parts))
    parts, _ = pieces(text, "comma")
    if len(parts) > 1:
        return Shape("list", tuple(parts))
    parts, _ = pieces(text, "union")
    if len(parts) > 1 and all(parts):
        return Shape("union", tuple(parts))
    return Shape("single", (text,))


def _ends_matrix(text: str) -> bool:
    return text.endswith(r"\end{pmatrix}") and text.count(r"\begin") == 1


def _enclosed(text: str) -> tuple[str, str, str] | None:
    first = _OPEN.match(text)
    if first is None or first[0] == "{" or first[0] in (r"\lfloor", r"\lceil"):
        return None
    depth = 0
    for match in _TOP.finditer(text):
        if match["open"]:
            depth += 1
        elif match["close"]:
            depth -= 1
            if depth == 0:
                if match.end() != len(text):
                    return None
                return first[0], text[first.end() : match.start()].strip(), match[0]
    return None


def relation(text: str) -> tuple[list[str], list[str]]:
    r"""The sides and the signs of an equation, an inequality or a membership.

    Args:
        text: a spelled answer.

    Returns:
        (sides, signs): one side and no sign for anything else. ``<=`` is ``\leq``.
    """
    sides, signs = pieces(text, "relation")
    return sides, [_RELATION_NAMES.get(sign, sign) for sign in signs]


def is_name(text: str) -> bool:
    r"""Whether ``text`` only names something: ``x``, ``f(x)``, ``\angle ABC``, ``x_{1}``, ``Area``.

    A left side that computes something is not a name, so ``41 = 42`` and ``2x = 4`` are claims.
    """
    text = _RATIO.sub("d", text)
    if _NOT_IN_NAMES.search(text) or _DENIED.search(text) or len(text) > 60:
        return False
    return _NAME.fullmatch(_COMMAND.sub("c", _SUBSCRIPT.sub("", text))) is not None


def named_value(text: str) -> tuple[str, str] | None:
    r"""(name, value) of ``x = 5``, ``5 = x``, ``f(x) = 2x``, ``x \in [1,2]``; None if none is."""
    sides, signs = relation(text)
    if signs not in (["="], [r"\in"]) or not all(sides):
        return None
    if signs == ["="] and _is_variable(sides[1]) and read_number(sides[0]) is not None:
        sides = sides[::-1]
    name = sides[0]
    left = shape(name)
    if left.kind == "tuple":
        named = all(map(is_name, left.parts))
    else:
        named = is_name(name)
    return (name, sides[1]) if named else None


def assignment(parts: tuple[str, ...] | list[str]) -> dict[str, str] | None:
    """Name -> value of ``x=1, y=2`` or ``(x,y)=(1,2)``; None unless several different names."""
    if len(parts) == 1:
        pair = named_value(parts[0])
        if pair is None:
            return None
        names, values = shape(pair[0]), shape(pair[1])
        if names.kind != "tuple" or values.kind != "tuple":
            return None
        if len(names.parts) != len(values.parts):
            return None
        pairs = list(zip(names.parts, values.parts, strict=True))
    else:
        found = [named_value(part) for part in parts]
        pairs = [pair for pair in found if pair is not None]
        if len(pairs) != len(parts):
            return None
    names_only = {name.replace(" ", "") for name, _ in pairs}
    if len(names_only) != len(pairs) or len(pairs) < 2:
        return None
    return {name.replace(" ", ""): value for name, value in pairs}


def as_interval(text: str) -> tuple[str, str] | None:
    r"""The interval that an inequality describes.

    Args:
        text: ``x<2``, ``1 \leq x < 3``, ``2 > x``, ``x<1 or x>3``, ``\{x | x>2\}``.

    Returns:
        (the variable, the interval or union of intervals, spelled), or None.
    """
    builder = _BUILDER.fullmatch(text)
    if builder is not None:
        inside = as_interval(builder["condition"].strip())
        return inside if inside is not None and inside[0] == builder["name"] else None
    parts, separators = pieces(text, "comma")
    if len(parts) > 1:
        if set(separators) == {"and"} and len(parts) == 2:
            return _both(*map(as_interval, parts))
        if set(separators) != {"or"}:
            return None
        intervals = [as_interval(part) for part in parts]
        known = [interval for interval in intervals if interval is not None]
        if len(known) != len(parts) or len({name for name, _ in known}) != 1:
            return None
        return known[0][0], r"\cup ".join(interval for _, interval in known)
    sides, signs = relation(text)
    if not signs or any(sign not in _FLIPPED for sign in signs) or not all(sides):
        return None
    within = _WITHIN.fullmatch(sides[0])
    if within is not None and len(sides) == 2 and _AMOUNT.fullmatch(sides[1]):
        name, bound = within[1], sides[1]
        if signs[0] in ("<", r"\leq"):
            return name, f"(-{bound},{bound})" if signs[0] == "<" else f"[-{bound},{bound}]"
        opening, closing = ")(" if signs[0] == ">" else "]["
        return name, rf"(-\infty,-{bound}{opening}\cup {closing}{bound},\infty)"
    if len(sides) == 2 and _is_variable(sides[1]) and not _is_variable(sides[0]):
        sides, signs = sides[::-1], [_FLIPPED[signs[0]]]
    if len(sides) == 2:
        name, bound = sides
        if not _is_variable(name) or _is_variable(bound):
            return None
        if signs[0] in ("<", r"\leq"):
            return name, rf"(-\infty,{bound}{')' if signs[0] == '<' else ']'}"
        return name, rf"{'(' if signs[0] == '>' else '['}{bound},\infty)"
    if len(sides) != 3 or not _is_variable(sides[1]):
        return None
    if signs[0] in (">", r"\geq"):
        sides, signs = sides[::-1], [_FLIPPED[sign] for sign in signs[::-1]]
    if any(sign not in ("<", r"\leq") for sign in signs):
        return None
    opening, closing = "(["[signs[0] != "<"], ")]"[signs[1] != "<"]
    return sides[1], f"{opening}{sides[0]},{sides[2]}{closing}"


def _both(one: tuple[str, str] | None, two: tuple[str, str] | None) -> tuple[str, str] | None:
    """The interval of ``x>1 and x<3``: of two half lines that point at each other."""
    if one is None or two is None or one[0] != two[0]:
        return None
    ends = [_HALF_LINE.fullmatch(interval) for _, interval in (one, two)]
    lower = next((end["lower"] for end in ends if end and end["lower"]), None)
    upper = next((end["upper"] for end in ends if end and end["upper"]), None)
    return None if lower is None or upper is None else (one[0], f"{lower},{upper}")


def _is_variable(text: str) -> bool:
    return _VARIABLE.fullmatch(text) is not None
