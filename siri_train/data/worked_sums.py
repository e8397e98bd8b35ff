"""Worked solutions of reasoning-gym's ``chain_sum``, which has none of its own.

They are wordy on purpose: a model that has learnt them has something to save. Behind some of the
steps stands a check that begins with "Wait", as a reasoning model writes it. Some of the steps that
are checked are wrong at first, so that a check can find a mistake and the next line corrects it.
"""

from __future__ import annotations

import random
import re

_TERM = re.compile(r"([+-]?) ?([0-9]+)")
CHECKED = 0.6
"""Share of the steps that are checked."""
MISTAKEN = 0.2
"""Share of the checked steps that are wrong at first."""


def worked_sum(expression: str) -> str:
    """The steps of a sum from left to right.

    Args:
        expression: whole numbers with ``+`` and ``-`` between them: ``4 - 1 - 7``. The same one
            always has the same solution.

    Raises:
        ValueError: something else stands in it.
    """
    if not re.fullmatch(r"[0-9]+( [+-] [0-9]+)*", expression):
        raise ValueError(f"expression: got {expression!r}; takes whole numbers with + and -")
    rng = random.Random(expression)
    lines = []
    (_, first), *others = _TERM.findall(expression)
    total = int(first)
    for sign, digits in others:
        before, total = total, total + int(sign + digits)
        step, back = f"{before} {sign} {digits}", "-" if sign == "+" else "+"
        checked, mistaken = rng.random() < CHECKED, rng.random() < MISTAKEN
        if checked and mistaken:
            wrong = total + rng.choice((-10, -2, -1, 1, 2, 10))
            undone = wrong - int(sign + digits)
            lines.append(
                f"{step} = {wrong}. Wait, check: {wrong} {back} {digits} = {undone}, not {before}."
            )
        line = f"{step} = {total}."
        if checked:
            line += f" Wait, check: {total} {back} {digits} = {before}, right."
        lines.append(line)
    return "\n".join(lines) or f"It is {total}."
