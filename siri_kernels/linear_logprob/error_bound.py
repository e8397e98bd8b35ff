"""The error bound: which tokens backward takes from their top entries, right to ``tail``.

Leaving entries out of token t's logit gradient costs ``cost[t]`` in the L1 norm. The whole gradient
of token t has an L1 norm of at least ``norm[t]``. A token is within the bound when its cost is at
most ``tail`` times the mean norm of the tokens. The costs of all tokens within the bound then sum
to at most ``tail`` times the sum of the norms: the relative L1 error of the call's logit gradient
is at most ``tail``, whatever the distributions and the incoming gradients are.

The other tokens may have the rest: :mod:`siri_kernels.linear_logprob.portable.ordered_backward`
leaves out of N of them what sums to at most N times ``tail`` times the mean norm.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch

from siri_kernels.linear_logprob import top_entries
from siri_kernels.linear_logprob.types import SoftmaxStats


def within_bound(
    cost: torch.Tensor, norm: torch.Tensor, tokens: int | torch.Tensor, tail: float
) -> torch.Tensor:
    """[T] bool: tokens whose gradient may come from their top entries.

    Args:
        cost: [T] L1 norm of what is left out, from :func:`left_out`; 0 without a gradient.
        norm: [T] lower bound of the L1 norm of the whole gradient; 0 without a gradient.
        tokens: the number of tokens with a gradient.
        tail: relative L1 error that the caller allows.
    """
    # A token with NaN or infinity must not decide about the others; it is never within the bound.
    mean = norm.where(norm.isfinite(), 0).sum() / tokens
    return (cost <= tail * mean) & cost.isfinite()


class EntrySums(NamedTuple):
    """Sums over each token's top entries.

    Attributes:
        kept: [T] sum of p, without the target's.
        kept_entropy: [T] sum of -p log p, without the target's.
        norm: [T] L1 norm of the raw logits' gradient, with the target's.
        over: [T] not 0: the token has entries that were not saved.
    """

    kept: torch.Tensor
    kept_entropy: torch.Tensor
    norm: torch.Tensor
    over: torch.Tensor


def left_out(
    stats: SoftmaxStats,
    sums: EntrySums,
    grad_logprobs: torch.Tensor,
    grad_entropy: torch.Tensor | None,
    temperature: float | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probability mass outside each token's top entries, and what leaving it out costs.

    The entries left out have ``dz_j = -p_j (g_logp + g_H (log p_j + H))`` and ``p_j < eps``.

    Args:
        stats: of the tokens.
        sums: over their top entries.
        grad_logprobs: [T] gradient of the log-probs.
        grad_entropy: [T] gradient of the entropy, or None.
        temperature: a number, or [T].

    Returns:
        The mass [T], and an upper bound [T] of the L1 norm of the raw logits' gradient outside;
        infinity for a token with entries that were not saved.
    """
    others = -torch.expm1(stats.logprobs)
    mass = (others - sums.kept).clamp_(min=0)
    # The sums are fp32: add a few roundings, so that a difference that rounds to 0 is no proof.
    rounding = 8 * torch.finfo(mass.dtype).eps
    cost = grad_logprobs.abs() * (mass + rounding * others)
    if grad_entropy is not None:
        logprobs = stats.logprobs.clamp(min=-800.0)  # probability 0 adds nothing
        rest = stats.entropy + logprobs.exp() * logprobs - sums.kept_entropy
        # sum of p |log p + H|: all log p + H are negative where H < -log eps.
        sign = torch.ones_like(rest).masked_fill_(stats.entropy < -top_entries.LOG_EPS, -1)
        moved = (rest + sign * stats.entropy * mass).clamp_(min=0) + rounding * stats.entropy
        cost = cost + grad_entropy.abs() * moved
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.to(cost.dtype)
    return mass, (cost / temperature).masked_fill(sums.over != 0, float("inf"))


class BackwardStats(NamedTuple):
    """Statistics of the backward passes, as 0-d tensors on the device they ran on.

    Attributes:
        dense_row_frac: share of tokens recomputed, of those with a gradient.
        tail_mass_max: most probability mass left out of a token.
        entries_kept: mean number of entries used of a token that was not recomputed.
    """

    dense_row_frac: torch.Tensor
    tail_mass_max: torch.Tensor
    entries_kept: torch.Tensor


class _Report(NamedTuple):
    tokens: int | torch.Tensor
    dense: int | torch.Tensor
    entries: int | torch.Tensor
    tail_mass: float | torch.Tensor
    device: torch.device


_lock = threading.Lock()  # autograd runs the backward of each device in a thread of its own
_reports: list[_Report] = []  # since the last call of take_backward_stats
_MOST_REPORTS = 64  # held before they are added up


def report(
    tokens: int | torch.Tensor,
    dense: int | torch.Tensor,
    entries: int | torch.Tensor,
    tail_mass: float | torch.Tensor,
    device: torch.device,
) -> None:
    """Adds one backward pass to what :func:`take_backward_stats` returns.

    Numbers on a device are added up later, and not one by one: each sum is a launch.

    Args:
        tokens: number of tokens with a gradient.
        dense: number of those that were recomputed.
        entries: number of entries used of the others.
        tail_mass: most probability mass left out of one of them.
        device: where the numbers are kept.
    """
    with _lock:
        if _reports and _reports[0].device != device:
            _reports.clear()
        if len(_reports) >= _MOST_REPORTS:
            _reports[:] = [_Report(*_added_up(_reports), device)]
        _reports.append(_Report(tokens, dense, entries, tail_mass, device))


def _added_up(
    reports: list[_Report],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The four numbers of all reports, which are of one device."""
    device = reports[0].device

    def stacked(values: tuple[float | torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
        on_device = [x.to(dtype) for x in values if isinstance(x, torch.Tensor)]
        # Filled there: no copy. Numbers are Python's: they are added up exactly.
        numbers = [x for x in values if not isinstance(x, torch.Tensor)]
        if numbers:
            number = max(numbers) if dtype.is_floating_point else sum(numbers)
            on_device.append(torch.full((), number, dtype=dtype, device=device))
        return torch.stack(on_device)

    columns = list(zip(*(r[:4] for r in reports), strict=True))
    # Counts as integers: exact, also where there is no float64.
    tokens, dense, entries = (stacked(column, torch.int64).sum() for column in columns[:3])
    return tokens, dense, entries, stacked(columns[3], torch.float32).amax()


def take_backward_stats() -> BackwardStats | None:
    """Statistics of the backward passes of ``linear_logprob`` in this process since the last call.

    Call it once a step, after ``backward``. Micro-batches are added up: shares and means over all
    their tokens, the largest of the masses. Nothing waits for a GPU; ``float()`` of a field does.

    Returns:
        The statistics; None if there was no backward pass.
    """
    with _lock:
        if not _reports:
            return None
        tokens, dense, entries, tail_mass = _added_up(_reports)
        _reports.clear()

    def share(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        return part.to(torch.float32) / whole.clamp(min=1).to(torch.float32)

    return BackwardStats(share(dense, tokens), tail_mass, share(entries, tokens - dense))
