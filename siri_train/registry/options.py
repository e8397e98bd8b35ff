"""Names and options that a user gives for an entry of a registry: checked, with their defaults."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any


def one_of(accepted: Collection[str], value: str, quote: str = "") -> str:
    """The names accepted in place of ``value``: ``takes one of a, b; did you mean b?``.

    Args:
        accepted: the names.
        value: what was given.
        quote: put around each name.
    """
    same = value.strip().lower().replace("_", "-").replace(" ", "-")
    plain = {name.lower().replace("_", "-"): name for name in accepted}
    near = difflib.get_close_matches(same, plain, n=1, cutoff=0.5)
    hint = f"; did you mean {quote}{plain[near[0]]}{quote}?" if near else ""
    return f"takes one of {', '.join(f'{quote}{name}{quote}' for name in accepted)}{hint}"


def with_defaults(
    owner: str, defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of an entry: what is given, and the defaults of the others.

    Args:
        owner: the entry, in words: ``"the reward 'length-cap'"``.
        defaults: every option with its default. A value must be of its default's kind; a whole
            number also stands for a number. An option whose default is None takes any value.
        given: what a user gives.

    Raises:
        ValueError: an unknown option, or a value of another kind; the message begins with
            ``options.NAME``.
    """
    for name, value in given.items():
        if name not in defaults:
            takes = one_of(defaults, str(name)) if defaults else "takes none"
            raise ValueError(f"options.{name}: unknown option; {owner} {takes}")
        kind = _kind(defaults[name])
        if kind is not None and not _is(value, defaults[name]):
            raise ValueError(f"options.{name}: got {value!r}; {owner} takes {kind}")
    return {**defaults, **given}


def _kind(default: Any) -> str | None:
    """The values that an option of this default takes, in words; None: anything."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    kinds |= {list: "a list", dict: "a mapping"}
    return kinds.get(type(default))


def _is(value: Any, default: Any) -> bool:
    if type(default) is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(default)
