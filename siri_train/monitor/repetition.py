"""Responses that end in a loop: their last tokens repeat the same few again and again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LONGEST = 32  # tokens of a loop
_LEAST = 32  # tokens that must repeat
_TIMES = 3  # how often the loop comes again at least
_TAIL = _LONGEST * (1 + _TIMES)


def repetitive(responses: Sequence[Sequence[int]]) -> np.ndarray:
    """Which responses end in a loop of at most 32 tokens.

    A loop of p tokens has come again at least three times, and for at least 32 tokens: each of the
    last max(32, 3 p) tokens is the one p places before it. Give responses without their end of
    sequence, which would break a loop.

    Args:
        responses: token ids of each, without negative ones.

    Returns:
        [number of responses] bool; one that is too short for a loop has none.
    """
    tails = np.full((len(responses), _TAIL), -1, np.int64)
    for place, ids in zip(tails, responses, strict=True):
        end = np.asarray(ids[-_TAIL:], np.int64)
        place[_TAIL - len(end) :] = end
    found = np.zeros(len(responses), bool)
    known = tails >= 0
    for period in range(1, _LONGEST + 1):
        again = max(_LEAST, _TIMES * period)
        same = tails[:, -again:] == tails[:, -again - period : -period]
        found |= same.all(axis=1) & known[:, -again - period]
    return found
