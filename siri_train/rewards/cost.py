r"""How long math-verify may take over an expression, judged by its look; nothing is computed.

Towers of powers, large exponents, factorials and binomials of large numbers, sums and integrals
may take for ever; everything else takes milliseconds. The guess only orders questions.
"""

from __future__ import annotations

import re

_TOWER = re.compile(r"\^\{[^{}]*(?:\{[^{}]*\}[^{}]*)*[\^!]|\^\{[^{}]*[0-9]{4}|\^\{[^{}]*\}\)+\^")
_FACTORIAL = re.compile(r"[0-9]{4,}!|[)}!]!")
_LARGE = re.compile(r"[0-9]{5,}")
_LOOP = re.compile(r"\\(?:sum|prod|int|lim|binom|gcd|lcm)(?![A-Za-z])")
_POWER = re.compile(r"[\^!]")


def rough_cost(text: str) -> tuple[int, int, int]:
    r"""A key that sorts what is surely cheap first.

    Args:
        text: one expression in LaTeX, or several one behind the other.

    Returns:
        (danger, powers, length): the number of things that may run away, of powers and factorials,
        and of characters.
    """
    towers = len(_TOWER.findall(text)) + len(_FACTORIAL.findall(text))
    loops = len(_LOOP.findall(text))
    # A long number is harmless, unless something is raised to it or runs up to it.
    large = len(_LARGE.findall(text)) if loops or _POWER.search(text) else 0
    return 2 * towers + 2 * loops + large, len(_POWER.findall(text)), len(text)
