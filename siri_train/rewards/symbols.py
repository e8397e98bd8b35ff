r"""Tables of spellings: LaTeX commands and Unicode characters that mean the same.

Only tables; ``spelling`` applies them. A canonical symbol is one LaTeX command or one ASCII
character.
"""

from __future__ import annotations

import unicodedata

TEXT_COMMANDS = frozenset(
    "text textbf textit textrm textsf texttt textnormal textup textsl textsc textmd mathrm "
    "mbox hbox operatorname".split()
)
"""Commands whose argument is upright text: it stands by itself, as between blanks."""

WRAPPERS = frozenset(
    "mathbf mathit mathsf mathtt mathnormal boldsymbol bm pmb underline uline emph ensuremath "
    "boxed fbox mathop mathord mathrel mathbin smash vcenter displaylines symbf symup".split()
)
"""Commands that change only the look of their argument."""

COLOURED = {"textcolor": 1, "colorbox": 1, "fcolorbox": 2}
"""Commands whose last argument is shown, with the number of arguments before it."""

SWITCHES = frozenset(
    "displaystyle textstyle scriptstyle scriptscriptstyle limits nolimits rm bf it sf tt sl "
    "normalfont bfseries itshape rmfamily boldmath mathstrut strut allowbreak nobreak hfill "
    "centering large Large LARGE huge Huge small normalsize hline".split()
)
"""Commands without an argument that change only the look of what follows."""

SIZES = frozenset(
    ["left", "right", "middle", "mleft", "mright"]
    + [size + side for size in ("big", "Big", "bigg", "Bigg") for side in ("", "l", "r", "m")]
)
"""Sizes of the delimiter that follows, a null delimiter ``.`` included."""

HIDDEN = frozenset("hspace vspace phantom hphantom vphantom label color tag".split())
"""Commands that show nothing of their argument."""

BLANKS = frozenset(
    "quad qquad enspace enskip thinspace medspace thickspace space nobreakspace , ; : > ~".split()
) | {" ", "\n", "\t"}
NO_BLANKS = frozenset(["!", "/", "negthinspace", "(", ")", "[", "]", "-", "@"])
"""Names after a backslash that show nothing, the marks around mathematics among them."""

ACCENTS = frozenset(
    "overline hat vec tilde dot ddot widehat widetilde overrightarrow overleftarrow mathbb Bbb "
    "mathcal mathfrak mathscr cancel overbrace underbrace pmod".split()
)
"""Commands with one argument that are part of the answer."""

SAME = {
    "le": r"\leq",
    "leqslant": r"\leq",
    "ge": r"\geq",
    "geqslant": r"\geq",
    "lt": "<",
    "gt": ">",
    "ne": r"\neq",
    "times": "*",
    "cdot": "*",
    "ast": "*",
    "bullet": "*",
    "div": "/",
    "bigcup": r"\cup",
    "bigcap": r"\cap",
    "varnothing": r"\emptyset",
    "lbrace": r"\{",
    "rbrace": r"\}",
    "lbrack": "[",
    "rbrack": "]",
    "lparen": "(",
    "rparen": ")",
    "lvert": "|",
    "rvert": "|",
    "vert": "|",
    "mid": "|",
    "lVert": r"\|",
    "rVert": r"\|",
    "Vert": r"\|",
    "colon": ":",
    "prime": "'",
    "degree": "°",
    "textdegree": "°",
    "bar": r"\overline",
    "dots": r"\dots",
    "ldots": r"\dots",
    "cdots": r"\dots",
    "dotsc": r"\dots",
    "dotsb": r"\dots",
    "to": r"\to",
    "rightarrow": r"\to",
    "longrightarrow": r"\to",
    "Rightarrow": r"\Rightarrow",
    "implies": r"\Rightarrow",
    "iff": r"\Leftrightarrow",
    "land": r"\wedge",
    "lor": r"\vee",
    "neg": r"\lnot",
    "setminus": r"\setminus",
    "backslash": r"\setminus",
    "infin": r"\infty",
    "R": r"\mathbb{R}",
    "Z": r"\mathbb{Z}",
    "N": r"\mathbb{N}",
    "Q": r"\mathbb{Q}",
    "C": r"\mathbb{C}",
    "reals": r"\mathbb{R}",
    "Reals": r"\mathbb{R}",
    "textpercent": "%",
    "textdollar": "$",
    "dollar": "$",
    "pounds": "£",
    "textsterling": "£",
    "euro": "€",
    "texteuro": "€",
    "yen": "¥",
    "textyen": "¥",
    "rupee": "₹",
    "cent": "¢",
    "textcent": "¢",
    "celsius": "°C",
    "textcelsius": "°C",
    "micro": r"\mu",
    "textmu": r"\mu",
    "textminus": "-",
    "minus": "-",
    "plus": "+",
    "and": " and ",
    "lcm": r"\operatorname{lcm}",
    "arctg": r"\arctan",
    "tg": r"\tan",
    "ctg": r"\cot",
    "cosec": r"\csc",
    "log": r"\log",
}
"""Command name -> canonical spelling."""

FUNCTIONS = frozenset(
    "sin cos tan cot csc sinh cosh tanh arcsin arccos arctan ln log exp lim gcd lcm det".split()
)
"""Function names that are read as commands also when written in letters only."""

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma "
    "tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
).split()

BARE = {name: f"\\{name} " for name in FUNCTIONS} | {
    "sqrt": r"\sqrt",
    "infinity": r"\infty ",
    "Infinity": r"\infty ",
    "pi": r"\pi ",
    "Pi": r"\Pi ",
    "theta": r"\theta ",
    "alpha": r"\alpha ",
    "lambda": r"\lambda ",
}
"""Names in letters only that stand for a command."""


def _greek() -> dict[str, str]:
    letters = {}
    for name in _GREEK:
        kind = "CAPITAL" if name[0].isupper() else "SMALL"
        unicode_name = "LAMDA" if name.lower() == "lambda" else name.upper()
        letters[unicodedata.lookup(f"GREEK {kind} LETTER {unicode_name}")] = f"\\{name} "
    return letters


CHARACTERS = {
    **_greek(),
    "ϕ": r"\phi ",
    "ϵ": r"\epsilon ",
    "ς": r"\varsigma ",
    "ϑ": r"\vartheta ",
    "−": "-",
    "–": "-",
    "‐": "-",
    "‑": "-",
    "‒": "-",
    "﹣": "-",
    "－": "-",
    "×": r"\times ",
    "✕": r"\times ",
    "⨯": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ",
    "•": r"\cdot ",
    "∗": "*",
    "÷": "/",
    "∕": "/",
    "⁄": "/",
    "±": r"\pm ",
    "∓": r"\mp ",
    "√": r"\sqrt ",
    "∛": r"\sqrt[3]",
    "∜": r"\sqrt[4]",
    "∞": r"\infty ",
    "∅": r"\emptyset ",
    "Ø": r"\emptyset ",
    "。": ".",
    "⌀": r"\emptyset ",
    "≤": r"\leq ",
    "⩽": r"\leq ",
    "≦": r"\leq ",
    "≥": r"\geq ",
    "⩾": r"\geq ",
    "≧": r"\geq ",
    "≠": r"\neq ",
    "≈": r"\approx ",
    "≡": r"\equiv ",
    "≅": r"\cong ",
    "∼": r"\sim ",
    "∝": r"\propto ",
    "∈": r"\in ",
    "∉": r"\notin ",
    "⊂": r"\subset ",
    "⊆": r"\subseteq ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∖": r"\setminus ",
    "→": r"\to ",
    "⇒": r"\Rightarrow ",
    "⇔": r"\Leftrightarrow ",
    "∧": r"\wedge ",
    "∨": r"\vee ",
    "¬": r"\lnot ",
    "∀": r"\forall ",
    "∃": r"\exists ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "⊥": r"\perp ",
    "∥": r"\parallel ",
    "∑": r"\sum ",
    "∏": r"\prod ",
    "∫": r"\int ",
    "∂": r"\partial ",
    "∇": r"\nabla ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "〈": r"\langle ",
    "〉": r"\rangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    "′": "'",
    "’": "'",
    "‘": "'",
    "″": "''",
    "“": '"',
    "”": '"',
    "º": "°",
    "˚": "°",
    "℃": "°C",
    "℉": "°F",
    "µ": r"\mu ",
    "…": r"\dots ",
    "⋯": r"\dots ",
    "∶": ":",
    "￠": "¢",
    "￡": "£",
    "￥": "¥",
}
"""One character -> its spelling in LaTeX or ASCII."""

SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣ", "0123456789+-=()nix", strict=True))
SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₒₓₙₘₖᵢⱼ", "0123456789+-=()aeoxnmkij", strict=True))

ENVIRONMENTS = {
    name: "pmatrix" for name in ("pmatrix", "bmatrix", "matrix", "smallmatrix", "array", "Bmatrix")
} | {"vmatrix": "vmatrix", "Vmatrix": "Vmatrix"}
"""Environments of a matrix; a determinant (``vmatrix``) is not a matrix."""
