"""JSON of data files as it was written: digits kept, nothing silently dropped."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any

# Python refuses to convert longer runs of digits; no answer has that many.
_MOST_DIGITS = 4000


class JsonTextError(ValueError):
    """Text that is not one JSON value; the message is the reason, without file and line."""


def parse_json(text: str) -> Any:
    """Parse one JSON value without changing its numbers or dropping keys.

    Numbers with a point or an exponent become ``decimal.Decimal`` with the digits that were
    written, since a double would turn 0.00001 into 1e-05. ``NaN`` and ``Infinity`` become floats
    that are not finite, as in Python's own reader; the caller refuses them.

    Args:
        text: the JSON.

    Returns:
        Strings, ints, Decimals, bools, None, and lists and dicts of them.

    Raises:
        JsonTextError: not valid JSON, nested too deeply, or the same key twice in one object
            (Python's reader would silently keep the last).
    """
    try:
        return json.loads(
            text, parse_float=_decimal, parse_int=_integer, object_pairs_hook=_unique_keys
        )
    except JsonTextError:
        raise
    except RecursionError:
        raise JsonTextError("not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise JsonTextError(f"not valid JSON: {error}") from error


def _decimal(digits: str) -> Decimal | float:
    try:
        return Decimal(digits)
    except InvalidOperation:  # an exponent beyond what Decimal counts
        return float("nan")


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= _MOST_DIGITS else Decimal(digits)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonTextError(f"the key {key[:60]!r} stands twice in one object")
            seen.add(key)
    return found
