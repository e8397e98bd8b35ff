"""``take_forward_stats``: how many tokens were screened, and with what error."""

from __future__ import annotations

import math
import threading
import warnings
from typing import Any, NamedTuple

import torch


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


class _Report(NamedTuple):
    """One forward pass: numbers, or on a GPU 0-d tensors of it, which are read when asked for."""

    tokens: int | torch.Tensor
    screened: int | torch.Tensor
    estimate: float | torch.Tensor
    error: float | torch.Tensor | None
    failed: bool | torch.Tensor


class _Sums(NamedTuple):
    tokens: int = 0
    screened: int = 0
    estimate: float = 0.0
    error: float | None = None
    failed: int = 0


_lock = threading.Lock()
_reports: list[_Report] = []  # not added up yet
_sums: _Sums | None = None  # of those before, since the last call of take_forward_stats
_MOST_REPORTS = 4096  # held before they are added up, for which the host waits
_warned = False


def report(
    tokens: int | torch.Tensor,
    screened: int | torch.Tensor,
    estimate: float | torch.Tensor,
    error: float | torch.Tensor | None,
    failed: bool | torch.Tensor,
) -> None:
    """Adds one forward pass to what :func:`take_forward_stats` returns.

    Args:
        tokens: that are not masked.
        screened: number of them whose log-prob is a screened one.
        estimate: largest estimated error of those.
        error: largest error of the checked ones; None or NaN: none was checked.
        failed: whether an estimate was too small.
    """
    global _sums
    with _lock:
        _reports.append(_Report(tokens, screened, estimate, error, failed))
        if len(_reports) >= _MOST_REPORTS:
            _sums = _added_up()


def _added_up() -> _Sums | None:
    """All reports so far; the list is empty then."""
    total = _sums
    rows: list[list[Any]] = [[math.nan if x is None else x for x in report] for report in _reports]
    _reports.clear()
    devices = {x.device for row in rows for x in row if isinstance(x, torch.Tensor)}
    if devices:  # one copy to the host for all
        device = devices.pop()
        numbers = [torch.as_tensor(x, dtype=torch.float64, device=device) for r in rows for x in r]
        rows = torch.stack(numbers).view(-1, len(_Report._fields)).tolist()
    for tokens, screened, estimate, error, failed in rows:
        old = total or _Sums()
        errors = [x for x in (old.error, error) if x is not None and not math.isnan(x)]
        total = _Sums(
            old.tokens + int(tokens),
            old.screened + int(screened),
            max(old.estimate, float(estimate)),
            float(max(errors)) if errors else None,
            old.failed + int(failed),
        )
    return total


def warn(error: float | None) -> None:
    """Says once that an estimate was too small.

    Args:
        error: of a screened log-prob.
    """
    global _warned
    if _warned:
        return
    _warned = True
    size = "" if error is None else f", {error:.1e},"
    warnings.warn(
        f"linear_logprob: the error of a screened log-prob{size} exceeds its estimate; such calls "
        "are computed exactly. If it happens often, pass screen=None",
        stacklevel=2,
    )


def take_forward_stats() -> ForwardStats | None:
    """Statistics of ``linear_logprob(screen=...)`` in this process since the last call.

    Call it once a step. Calls are added up: shares over all their tokens, the largest of the
    errors. A call with ``screen="auto"`` where there is no screen is not counted. It waits for the
    GPU where there is one, and a warning that an estimate was too small comes then.

    Returns:
        The statistics; None if there was no call with a screen.
    """
    global _sums
    with _lock:
        taken, _sums = _added_up(), None
    if taken is None:
        return None
    if taken.failed:
        warn(taken.error)
    share = taken.screened / max(taken.tokens, 1)
    return ForwardStats(share, taken.estimate, taken.error, taken.failed)
