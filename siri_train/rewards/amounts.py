"""Amounts in several units, ``5 hours 30 minutes``: parts in order, blank, comma or "and" between.

Each part has a unit of its own. Nothing is converted: two amounts are one only when their parts
are.
"""

from __future__ import annotations

import re

from siri_train.rewards.number_forms import Number, read_number
from siri_train.rewards.units import Unit, same_unit, split_unit

_JOINT = re.compile(r"(?<=[A-Za-z.°'])(?:,? and |, ?| )(?=[0-9])")
_MOST = 4


def same_amounts(answer: str, gold: str) -> bool | None:
    """Whether two amounts in several units are one.

    Args:
        answer: a spelled answer.
        gold: another.

    Returns:
        None unless both are such amounts.
    """
    if not (answer[:1].isdigit() and gold[:1].isdigit()):
        return None
    one, two = _parts(answer), _parts(gold)
    if one is None or two is None:
        return None
    if len(one) != len(two):
        return False
    return all(
        number.equals(wanted) and same_unit(unit, wanted_unit)
        for (number, unit), (wanted, wanted_unit) in zip(one, two, strict=True)
    )


def _parts(text: str) -> list[tuple[Number, Unit]] | None:
    parts = _JOINT.split(text)
    if not 2 <= len(parts) <= _MOST:
        return None
    found: list[tuple[Number, Unit]] = []
    for part in parts:
        body, unit = split_unit(part, closed_up=True)
        number = read_number(body)
        if number is None or unit is None:
            return None
        found.append((number, unit))
    # Twice one unit is a list: two angles, two prices.
    return found if len({unit for _, unit in found}) == len(found) else None
