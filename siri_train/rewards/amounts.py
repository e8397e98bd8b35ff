"""Amounts in several units, ``5 hours 30 minutes``: parts in order, joined by nothing or "and".

Each part has a known unit. Nothing is converted: two amounts are one only when their parts are.
"""

from __future__ import annotations

import re

from siri_train.rewards.number_forms import read_number
from siri_train.rewards.units import same_unit, split_unit

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
    for left, right in zip(one, two, strict=True):
        (body, unit), (gold_body, gold_unit) = split_unit(left), split_unit(right)
        number, wanted = read_number(body), read_number(gold_body)
        if unit is None or gold_unit is None or number is None or wanted is None:
            return None
        if not same_unit(unit, gold_unit) or not number.equals(wanted):
            return False
    return True


def _parts(text: str) -> list[str] | None:
    parts = _JOINT.split(text)
    return parts if 2 <= len(parts) <= _MOST else None
