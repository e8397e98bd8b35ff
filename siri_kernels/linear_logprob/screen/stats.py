"""``take_forward_stats``: how many tokens were screened, and with what error."""

from __future__ import annotations

import threading
from typing import NamedTuple


class ForwardStats(NamedTuple):
    """Statistics of the forward passes with a screen.

    Attributes:
        screened_frac: share of tokens whose log-prob is a screened one; the others are exact.
        estimate_max: the largest estimated error of those log-probs, in nats.
        error_max: the largest true error of the checked tokens among them, in nats; None: none was
            checked.
        estimate_failed: calls that were computed exactly because the error of a checked token
            exceeded its estimate.
    """

    screened_frac: float
    estimate_max: float
    error_max: float | None
    estimate_failed: int


class _Sums(NamedTuple):
    tokens: int = 0
    screened: int = 0
    estimate: float = 0.0
    error: float | None = None
    failed: int = 0


_lock = threading.Lock()
_sums: _Sums | None = None  # since the last call of take_forward_stats


def report(tokens: int, screened: int, estimate: float, error: float | None, failed: bool) -> None:
    """Adds one forward pass to what :func:`take_forward_stats` returns.

    Args:
        tokens: that are not masked.
        screened: number of them whose log-prob is a screened one.
        estimate: largest estimated error of those.
        error: largest error of the checked ones; None: none was checked.
        failed: whether an estimate was too small.
    """
    global _sums
    with _lock:
        old = _sums or _Sums()
        errors = [x for x in (old.error, error) if x is not None]
        _sums = _Sums(
            old.tokens + tokens,
            old.screened + screened,
            max(old.estimate, estimate),
            max(errors) if errors else None,
            old.failed + failed,
        )


def take_forward_stats() -> ForwardStats | None:
    """Statistics of ``linear_logprob(screen=...)`` in this process since the last call.

    Call it once a step. Calls are added up: shares over all their tokens, the largest of the
    errors. A call with ``screen="auto"`` where there is no screen is not counted.

    Returns:
        The statistics; None if there was no call with a screen.
    """
    global _sums
    with _lock:
        taken, _sums = _sums, None
    if taken is None:
        return None
    share = taken.screened / max(taken.tokens, 1)
    return ForwardStats(share, taken.estimate, taken.error, taken.failed)
