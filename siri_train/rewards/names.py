"""Lists of named values: ``x=1, y=2``, ``x=1 or x=2``, ``p=5,q=2; p=7,q=2``."""

from __future__ import annotations

import re

from siri_train.rewards.structure import assignment, named_value, pieces, relation
from siri_train.rewards.text_form import text_key

_NEXT_NAME = re.compile(r" (?=[A-Za-z](?:_\{[A-Za-z0-9]+\})?=)")


def is_either(text: str) -> bool:
    """Whether ``text`` lists what may be, with "or", rather than what is.

    Args:
        text: a spelled answer.
    """
    return "or" in pieces(text, "comma")[1]


def in_order(values: dict[str, str]) -> list[str]:
    """Values by name where the names are neighbours in the alphabet, else as they were written."""
    names = sorted(values)
    codes = [ord(name) if len(name) == 1 else -9 for name in names]
    if all(after - before == 1 for before, after in zip(codes, codes[1:], strict=False)):
        return [values[name] for name in names]
    return list(values.values())


def grouped(text: str) -> str:
    """``p=5,q=2; p=7,q=2`` as the list ``(p=5,q=2),(p=7,q=2)``, each an assignment by itself."""
    parts, separators = pieces(text, "comma")
    if set(separators) != {",", ";"} or not all(named_value(part) for part in parts):
        return text
    groups: list[list[str]] = [[]]
    for part, separator in zip(parts, [*separators, ";"], strict=True):
        groups[-1].append(part)
        if separator == ";":
            groups.append([])
    found = [assignment(group) for group in groups if group]
    if any(group is None for group in found):
        return text
    return ",".join(f"({','.join(in_order(group))})" for group in found if group is not None)


def listed(text: str) -> list[str]:
    """The parts of a list; ``x=1 y=2`` has two.

    Args:
        text: a spelled answer.
    """
    parts, _ = pieces(text, "comma")
    if len(parts) == 1 and text.count("=") > 1:  # "x=1 y=2"
        apart = _NEXT_NAME.split(text)
        if all(named_value(part) is not None for part in apart):
            return apart
    return parts


def without_name(parts: list[str]) -> tuple[str, str] | None:
    """(name, list of values) of ``x=1, x=2`` or ``x=1, 2``; None for other lists."""
    found = [named_value(part) for part in parts]
    if found[0] is None:
        return None
    name = text_key(found[0][0])
    values: list[str] = []
    for part, pair in zip(parts, found, strict=True):
        if pair is not None and text_key(pair[0]) != name or pair is None and claims(part):
            return None
        values.append(part if pair is None else pair[1])
    return name, ",".join(values)


def claims(text: str) -> bool:
    """Whether ``text`` states a relation.

    Args:
        text: a spelled answer.
    """
    return bool(relation(text)[1])
