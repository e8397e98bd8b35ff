"""From screened sums and exact candidates to a token's softmax, and how far it may be off.

Let q be a screened logit and z the exact one, p the probability that q stands for. The candidates
of probability ``LEAST`` and more replace q by z. The screen knows the mass of the others, the sum
of p, and has a random sample S of them, drawn with chances c, see
:mod:`siri_kernels.linear_logprob.screen.running`. The sum over S of ``p (exp(z - q) - 1) / c`` is
the mass that the screen misses, without bias whatever the errors z - q are, alike or not (Horvitz
and Thompson, 1952). Its variance follows from the same sample, and, where that is small, from the
size that errors of rounding have.

The mass itself is off by no more than its share times ``exp(z - q) - 1``. Where the mass is so
small that this is less than the sample's error, it stays as it is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from siri_kernels.linear_logprob.online_softmax import LOG_ZERO, SoftmaxState
from siri_kernels.linear_logprob.screen.running import LEAST, SPARSENESS, Candidates, Running

# Standard deviations: the error of one token in 16 000 exceeds so many, if it is normal.
DEVIATIONS = 4.0
MOST_DEVIATION = 0.5  # of a logit's error: beyond, exp of it has no useful variance
FARTHEST = 8.0  # deviations of a single logit: beyond, errors are not what they are taken for


class Estimate(NamedTuple):
    """The softmax of T tokens after a screen, and its error.

    Attributes:
        state: their softmax, without the target, float64.
        error: [T] float64, the estimated error of the log-prob in nats; infinity or NaN: unknown.
        saved: [N] bool: candidates that have probability ``LEAST`` or more.
        mass: [N] float64: the probability that each candidate stands for. Added up over the
            candidates of an id it is, on average, the mass of that id.
    """

    state: SoftmaxState
    error: torch.Tensor
    saved: torch.Tensor
    mass: torch.Tensor


def logit_deviation(
    row_error: torch.Tensor,
    row_norm: torch.Tensor,
    weight_error: float,
    weight_norm: float,
    width: int,
) -> torch.Tensor:
    """[T] the standard deviation of a screened logit's error.

    Rounding moves rows in directions that the rotation makes random ones: the product of two
    vectors of D numbers then has their norms' product over the root of D.

    Args:
        row_error: [T] norms of what rounding changed in the hidden states.
        row_norm: [T] norms of the hidden states.
        weight_error: the same of the weight's rows.
        weight_norm: the same.
        width: D.
    """
    square = (row_error.double() * weight_norm).square()
    square += (row_norm.double() * weight_error).square()
    return (square / width).sqrt()


def expected_error(mass: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """[T] the estimated error of log-probs before a sample is drawn.

    Args:
        mass: [T] probability of all entries below ``LEAST``.
        deviation: [T] of a logit's error, after the temperature.
    """
    whole = mass * torch.expm1(DEVIATIONS * deviation)
    drawn = DEVIATIONS * deviation * (mass * (SPARSENESS * LEAST)).sqrt()
    return torch.minimum(whole, drawn).masked_fill_(deviation > MOST_DEVIATION, math.inf)


def estimate(
    running: Running, found: Candidates, exact: torch.Tensor, deviation: torch.Tensor
) -> Estimate:
    """Joins the screened sums with the exact candidates.

    Args:
        running: after the last tile.
        found: its candidates.
        exact: [N] their exact logits, after softcap and temperature.
        deviation: [T] of a screened logit's error, after the temperature.
    """
    row, tokens = found.row, len(running.sum)
    shift = running.max.clamp(min=torch.finfo(torch.float32).min).double()
    target = running.tokens.target_logit.double() - shift
    total = torch.logaddexp(running.sum.log(), target)

    def summed(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(tokens).index_add_(0, row, values)

    q = found.logit.double() - shift[row]
    z = (exact.double() - shift[row]).clamp_(min=LOG_ZERO)
    # As the loops had it: what they added is taken away again.
    p, e = q.clamp(min=-87.0).exp(), z.exp()
    share = (q - total[row]).exp()
    # A tile's bound was that of the sums so far. The last one is the bound.
    kept = share >= LEAST * found.weight.double()
    saved = kept & (share >= LEAST)
    drawn = kept & ~saved
    chance = (share / (SPARSENESS * LEAST)).clamp(max=1)
    whole = running.sum * (-total).exp()
    mass = (whole - summed(share.where(saved, 0))).clamp_(min=0)

    far = (z - q).where(kept, 0)
    count = summed(kept.double()).clamp(min=1)
    seen = (summed(far.square()) / count).sqrt()
    farthest = far.new_zeros(tokens).scatter_reduce_(0, row, far.abs(), "amax")
    deviation = torch.maximum(deviation, seen)

    scale = (-total).exp()[row]
    missed = ((e - p) / chance).where(drawn, 0)
    variance = summed((missed * scale).square() * (1 - chance))
    variance = torch.maximum(variance, mass * (SPARSENESS * LEAST) * deviation.square())
    by_sample = DEVIATIONS * variance.sqrt()
    by_mass = mass * torch.expm1(DEVIATIONS * deviation)
    use = by_sample < by_mass
    error = torch.where(use, by_sample, by_mass)
    unknown = (deviation > MOST_DEVIATION) | (farthest > FARTHEST * deviation) | found.over
    error = error.masked_fill(unknown, math.inf)

    use = use[row]
    change = (e - p).where(saved, missed.where(use, 0))
    moved = z * e - q * p
    moved = moved.where(saved, (moved / chance).where(drawn & use, 0))
    tiny = torch.finfo(torch.float32).tiny
    total_sum = (running.sum + summed(change)).clamp(min=tiny)
    total_dev = running.dev + summed(moved)
    # The largest exact logit, as the state has it; sums are relative to it.
    top = torch.full_like(shift, -math.inf)
    top.scatter_reduce_(0, row[saved], z[saved], "amax")
    top = top.where(top.isfinite(), 0)
    state = SoftmaxState(
        running.tokens.target_logit.double(),
        (running.max.double() + top),
        total_sum * (-top).exp(),
        (total_dev - top * total_sum) * (-top).exp(),
    )
    return Estimate(state, error, saved, share.where(saved, (share / chance).where(drawn, 0)))
