r"""Pairs of expressions that math-verify reads rightly, and their spelling for it.

math-verify reads a product of letters in every word, forgets capitals, primes and bases of numbers,
and takes the last part of what it cannot read. So a pair of expressions goes there only if both are
mathematics that it reads rightly.
"""

from __future__ import annotations

import re

_COMMANDS = frozenset(
    """
    frac sqrt binom pi infty sin cos tan cot csc sec sinh cosh tanh arcsin arccos arctan ln log
    exp lim sum prod int max min gcd lcm det operatorname mathbb cup cap setminus emptyset in leq
    geq neq pm mp begin end lfloor rfloor lceil rceil to { } \\ alpha beta gamma delta epsilon
    zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega varphi
    vartheta varepsilon Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega
    """.split()
)
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.S)
_SCIENTIFIC = re.compile(r"(?<![A-Za-z0-9.])([0-9]+(?:\.[0-9]*)?)[eE]([+-]?[0-9]+)(?![0-9.])")
_NAMES = re.compile(r"(?<![A-Za-z\\])[A-Za-z]*[A-Z][A-Za-z]+|(?<![A-Za-z\\])[a-z]+[A-Z][A-Za-z]*")
_GREEK = re.compile(
    r"\\((?:var)?(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|"
    r"sigma|tau|upsilon|phi|chi|psi|omega)|pi)(?![A-Za-z])",
    re.I,
)
_INVERSE = re.compile(r"[fgh]\^\{-1\}\(")
_PRIMED = re.compile(r"[A-Za-z)}\]]?'+")
_BASE = re.compile(r"[0-9)]_\{")
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}|[0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{4}")
_TWO_NUMBERS = re.compile(r"[0-9] [0-9]")
_CAPITAL = re.compile(r"(?<![A-Za-z\\])[A-Z](?![A-Za-z])")
_SMALL = re.compile(r"(?<![A-Za-z\\])[a-z]+")
_RUN = re.compile(r"(?<![A-Za-z\\])[A-Za-z]+")
_BOUND = re.compile(r"\\(?:sum|prod|int|lim)(?![A-Za-z])")
_COMMAND_LAST = re.compile(r"\\[A-Za-z]+$")
_DEGREES = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?°(?! ?[A-Za-z])")
_ACCENTED = re.compile(
    r"\\(?:vec|overrightarrow|hat|overline|tilde|mathbf)\{[A-Za-z]{1,3}(?:_\{[A-Za-z0-9]\})?\}"
)
_PRODUCT = re.compile(
    r"\*|\\times|[}'] ?\\(?:vec|overrightarrow|hat|overline|tilde)|\||\^|\\frac|\)\(|/"
)
_SPARE = "qrstuvwyzjkn"
_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_SUBSCRIPT = re.compile(r"_(?:\{([A-Za-z0-9]*)\})")
_MATRIX = re.compile(
    r"\\begin\{[A-Za-z]*\}|\\end\{[A-Za-z]*\}|\\operatorname\{[a-z]*\}|\\mathbb\{[A-Z]\}"
)
_CLAIMS = re.compile(r"\\(leq|geq|neq|in)(?![A-Za-z])|[<>=]")

OPERATION = re.compile(
    r"[+*/^!|]|(?<=[^\s(\[{])-|[0-9]\s+[0-9]|[0-9)}]\s*\(|"
    r"\\(?:cdot|times|div|frac|sqrt|begin|sum|prod|int|lim|binom|log|ln|exp|sin|cos|tan|cot|sec|csc|gcd|lcm|"
    r"max|min|l?floor|l?ceil|pmod|bmod|mod|pm|mp|circ|ast|choose|over|arcsin|arccos|arctan|det|"
    r"operatorname)(?![A-Za-z])"
)
"""Something that is left to compute."""


def question(answer: str, gold: str) -> tuple[str, str] | None:
    """The pair that math-verify may compare.

    Args:
        answer: a spelled expression, without a unit.
        gold: another.

    Returns:
        (answer, gold) as LaTeX, or None if math-verify must not decide: then the two, which are not
        the same text, are different.
    """
    answer, gold = _without_accents(_radians(answer), _radians(gold))
    for text in (answer, gold):
        if not text.isascii() or any(mark in text for mark in '%":;$@#`?~') or ".." in text:
            return None
        if any(name not in _COMMANDS for name in _COMMAND.findall(text)):
            return None
        if _DATE.fullmatch(text) or _BASE.search(text) or _TWO_NUMBERS.search(text):
            return None
    answer, gold = (_SCIENTIFIC.sub(r"\1*10^{\2}", text) for text in (answer, gold))
    if not _same_greek(answer, gold):
        return None
    for pattern in (_PRIMED, _NAMES, _INVERSE):
        if _found(pattern, answer) != _found(pattern, gold):
            return None
    if not _BOUND.search(answer + gold) and _letters(answer) != _letters(gold):
        return None
    for sign in (r"\pm", r"\mp"):
        if answer.count(sign) != gold.count(sign):
            return None
    if len(_CLAIMS.findall(answer)) != len(_CLAIMS.findall(gold)):
        if "=" in answer + gold:  # a claim for a value
            return None
    renamed = _keep_case(answer, gold)
    return None if renamed is None else (_closed(renamed[0]), _closed(renamed[1]))


def _radians(text: str) -> str:
    """Degrees as a function takes them; a degree sign elsewhere is only a unit."""
    if "°" not in text:
        return text
    return _DEGREES.sub(r"(\\frac{\1*\\pi}{180})" if _FUNCTION.search(text) else r"\1", text)


def _without_accents(answer: str, gold: str) -> tuple[str, str]:
    r"""Vectors and the like (``\vec{a}``, ``\overline{AB}``) as symbols, if none is multiplied.

    What holds for independent symbols holds for them. Only their products do not commute.
    """
    named = sorted({*_ACCENTED.findall(answer), *_ACCENTED.findall(gold)})
    if not named or _PRODUCT.search(answer) or _PRODUCT.search(gold):
        return answer, gold
    free = [letter for letter in _SPARE if not re.search(rf"(?<!\\){letter}", answer + gold)]
    if len(free) < len(named):
        return answer, gold
    symbols = {name: letter for name, letter in zip(named, free, strict=False)}
    one, two = (_ACCENTED.sub(lambda m: symbols[m[0]], text) for text in (answer, gold))
    return one.strip(), two.strip()


def _letters(text: str) -> set[str]:
    return set("".join(_RUN.findall(_MATRIX.sub("", text)))) - {"e", "i"}


def _same_greek(answer: str, gold: str) -> bool:
    """Whether both name the same Greek letters, none of them in both cases.

    math-verify takes a capital for the small letter, and both gammas for a number.
    """
    one, two = (set(_GREEK.findall(text)) for text in (answer, gold))
    if one - {"pi"} != two - {"pi"}:
        return False
    both = one | two
    return len({name.lower() for name in both}) == len(both)


def _closed(text: str) -> str:
    # math-verify drops a unit at the end, and m, h, s, g, l, p are units to it.
    return f"{text}*1" if _RUN.search(text[-1:]) and not _COMMAND_LAST.search(text) else text


def _found(pattern: re.Pattern[str], text: str) -> list[str]:
    return sorted(pattern.findall(_MATRIX.sub("", text)))


def _keep_case(answer: str, gold: str) -> tuple[str, str] | None:
    """Rename capitals where a small letter of the same name occurs: math-verify takes A for a."""
    bare = _MATRIX.sub("", f"{answer} {gold}")
    capitals = set(_CAPITAL.findall(bare))
    small = set("".join(_SMALL.findall(bare)))
    clash = {letter for letter in capitals if letter.lower() in small}
    if not clash:
        return answer, gold
    if _SUBSCRIPT.search(answer) or _SUBSCRIPT.search(gold):
        return None
    return _renamed(answer, clash), _renamed(gold, clash)


def _renamed(text: str, letters: set[str]) -> str:
    def rename(match: re.Match[str]) -> str:
        letter = match[0]
        return f"{letter.lower()}_{{0}}" if letter in letters else letter

    kept = [(m.start(), m.end()) for m in _MATRIX.finditer(text)]
    out, at = [], 0
    for start, end in kept:
        out += [_CAPITAL.sub(rename, text[at:start]), text[start:end]]
        at = end
    return "".join([*out, _CAPITAL.sub(rename, text[at:])])
