"""Which rows backward may take from their lists, so that the whole gradient is right to ``tail``.

Leaving entries out of row t's logit gradient costs ``cost[t]`` in the L1 norm; the whole gradient
of row t has an L1 norm of at least ``norm[t]``. A row is certified when its cost is at most
``tail`` times the mean norm of the rows. The costs of all certified rows then sum to at most
``tail`` times the sum of the norms: the relative L1 error of the call's logit gradient is at most
``tail``, whatever the distributions and the incoming gradients are.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch

from siri_kernels.linear_logprob import top_entries
from siri_kernels.linear_logprob.types import SoftmaxStats


def certified_rows(
    cost: torch.Tensor, norm: torch.Tensor, rows: int | torch.Tensor, tail: float
) -> torch.Tensor:
    """[T] bool; ``rows`` is the number of those with a gradient (the others: cost and norm 0)."""
    # A row with NaN or infinity must not decide about the others; it is never certified itself.
    mean = norm.where(norm.isfinite(), 0).sum() / rows
    return (cost <= tail * mean) & cost.isfinite()


class Listed(NamedTuple):
    """Of each row [T], over the entries of its list."""

    kept: torch.Tensor  # sum of p, target not counted
    kept_entropy: torch.Tensor  # sum of -p log p, target not counted
    norm: torch.Tensor  # L1 norm of the raw logits' gradient, with the target's
    over: torch.Tensor  # not 0: the list is not complete


def left_out(
    stats: SoftmaxStats,
    listed: Listed,
    grad_logprobs: torch.Tensor,
    grad_entropy: torch.Tensor | None,
    temperature: float | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mass outside each row's list, and a bound of the L1 norm of its raw logits' gradient.

    The entries left out have ``dz_j = -p_j (g_logp + g_H (log p_j + H))`` and ``p_j < eps``. A row
    whose list is not complete costs infinity.
    """
    others = -torch.expm1(stats.logprobs)
    mass = (others - listed.kept).clamp_(min=0)
    # The sums are fp32: a few roundings on top, lest a difference that rounds to 0 certify.
    rounding = 8 * torch.finfo(mass.dtype).eps
    cost = grad_logprobs.abs() * (mass + rounding * others)
    if grad_entropy is not None:
        logprobs = stats.logprobs.clamp(min=-800.0)  # probability 0 adds nothing
        rest = stats.entropy + logprobs.exp() * logprobs - listed.kept_entropy
        # sum of p |log p + H|: all log p + H are negative where H < -log eps.
        sign = torch.ones_like(rest).masked_fill_(stats.entropy < -top_entries.LOG_EPS, -1)
        moved = (rest + sign * stats.entropy * mass).clamp_(min=0) + rounding * stats.entropy
        cost = cost + grad_entropy.abs() * moved
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.to(cost.dtype)
    return mass, (cost / temperature).masked_fill(listed.over != 0, float("inf"))


class BackwardStats(NamedTuple):
    """What the backward passes did, as 0-d tensors on the device they ran on."""

    dense_row_frac: torch.Tensor  # rows recomputed, of those with a gradient
    tail_mass_max: torch.Tensor  # most probability mass left out of a row
    entries_kept: torch.Tensor  # mean entries used of a row that was not recomputed


class _Totals(NamedTuple):
    rows: torch.Tensor
    dense: torch.Tensor
    entries: torch.Tensor
    tail_mass: torch.Tensor


_lock = threading.Lock()  # autograd runs the backward of each device in a thread of its own
_totals: _Totals | None = None


def report(
    rows: int | torch.Tensor,
    dense: int | torch.Tensor,
    entries: int | torch.Tensor,
    tail_mass: float | torch.Tensor,
    device: torch.device,
) -> None:
    """Adds one backward pass to what :func:`take_backward_stats` will tell."""
    global _totals

    def scalar(x: float | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if isinstance(x, torch.Tensor):
            return x.to(dtype)
        return torch.full((), x, dtype=dtype, device=device)  # filled there: no copy

    # Counts as integers: exact, also where there is no float64.
    one, two, three = (scalar(x, torch.int64) for x in (rows, dense, entries))
    new = _Totals(one, two, three, scalar(tail_mass, torch.float32))
    with _lock:
        old = _totals
        if old is not None and old.rows.device == device:
            new = _Totals(
                old.rows + new.rows,
                old.dense + new.dense,
                old.entries + new.entries,
                torch.maximum(old.tail_mass, new.tail_mass),
            )
        _totals = new


def take_backward_stats() -> BackwardStats | None:
    """What the backward passes of ``linear_logprob`` did in this process since the last call.

    None if there was none. Call it once a step, after ``backward``: micro-batches are added up
    (shares and means over all their rows, the largest of the masses). Nothing waits for a GPU;
    ``float()`` of a field does.
    """
    global _totals
    with _lock:
        totals, _totals = _totals, None
    if totals is None:
        return None

    def share(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        return part.to(torch.float32) / whole.clamp(min=1).to(torch.float32)

    return BackwardStats(
        share(totals.dense, totals.rows),
        totals.tail_mass,
        share(totals.entries, totals.rows - totals.dense),
    )
