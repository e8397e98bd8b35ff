"""Rows as 8-bit integers with a scale each, and the weight's 8-bit copy."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from siri_kernels.linear_logprob.screen.rotation import rotated, rotated_width

_ROWS = 256  # of the weight, quantised at a time
# Rows whose rounding error is far from that of the others are computed exactly for every token.
OUTLIER = 5.0  # times the median
MOST_OUTLIERS = 1024


class Rows(NamedTuple):
    """N rows of 8-bit integers.

    Attributes:
        codes: [N, D] int8.
        scale: [N] float32; row ``i`` is about ``scale[i] * codes[i]``.
        error: [N] norm of what rounding changed; NaN or infinity where the row has such numbers.
        norm: [N] norm of the rounded row.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    error: torch.Tensor
    norm: torch.Tensor


def quantised(x: torch.Tensor) -> Rows:
    """``x`` [N, D] float32, rounded; it is overwritten."""
    scale = x.abs().amax(1) / 127
    exact = x
    steps = (x / scale.masked_fill(scale == 0, 1)[:, None]).round_()
    rounded = steps * scale[:, None]
    codes = steps.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0).to(torch.int8)
    return Rows(codes, scale, exact.sub_(rounded).norm(dim=1), rounded.norm(dim=1))


class ScreenedWeight(NamedTuple):
    """A head's weight in 8 bits: less its mean row, rotated.

    Attributes:
        codes: [V, D] int8, D that of rotated rows.
        scale: [V] float32, 0 for the rows of ``outliers``.
        mean: [D] float32, the mean row, not rotated.
        outliers: ids [N] whose rows have to be exact.
        error: root mean square norm of what rounding changed, over the other rows.
        norm: the same of the rows themselves.
        largest: the largest norm of a row of ``outliers``, if there is one, else ``norm``.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    mean: torch.Tensor
    outliers: torch.Tensor
    error: float
    norm: float
    largest: float

    @property
    def suited(self) -> bool:
        """Whether most rows are alike enough for one measure of their errors."""
        return len(self.outliers) <= MOST_OUTLIERS and math.isfinite(self.error)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(x.nbytes for x in (self.codes, self.scale, self.mean, self.outliers))


def screened_weight(weight: torch.Tensor, gemm: torch.dtype) -> ScreenedWeight:
    """The 8-bit copy of a weight.

    Args:
        weight: [V, D] floating point, any strides.
        gemm: the dtype in which it is multiplied.
    """
    vocabulary, width = weight.shape

    def rows(start: int) -> torch.Tensor:
        return weight[start : start + _ROWS].to(gemm).to(torch.float32)

    total, finite = weight.new_zeros(width, dtype=torch.float64), 0
    for start in range(0, vocabulary, _ROWS):
        part = rows(start)
        sums = part.sum(0, dtype=torch.float64)
        if not bool(sums.isfinite().all()):
            part = part[part.isfinite().all(1)]
            sums = part.sum(0, dtype=torch.float64)
        total += sums
        finite += len(part)
    mean = (total / max(finite, 1)).to(torch.float32)
    codes = weight.new_empty(vocabulary, rotated_width(width), dtype=torch.int8)
    scale, error, norm = (weight.new_empty(vocabulary, dtype=torch.float32) for _ in range(3))
    for start in range(0, vocabulary, _ROWS):
        in_8_bits = quantised(rotated(rows(start) - mean))
        span = slice(start, start + len(in_8_bits.scale))
        codes[span], scale[span], error[span], norm[span] = in_8_bits
    usual = error.isfinite() & norm.isfinite()
    changed = usual & (error > 0)
    if bool(changed.any()):
        usual &= error <= OUTLIER * error[changed].median()
    outliers = (~usual).nonzero()[:, 0]
    codes[outliers] = 0
    scale[outliers] = 0

    def mean_square(values: torch.Tensor) -> float:
        return float(values[usual].square().mean().sqrt()) if bool(usual.any()) else math.inf

    typical = mean_square(norm)
    odd = norm[outliers]
    odd = odd[odd.isfinite()]
    largest = float(odd.max()) if len(odd) else typical
    return ScreenedWeight(codes, scale, mean, outliers, mean_square(error), typical, largest)
