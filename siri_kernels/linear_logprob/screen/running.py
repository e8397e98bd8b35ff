"""The running softmax of screened logits, and the candidates: entries that are computed exactly.

A candidate is every entry whose probability may be ``LEAST`` or more, as in
:mod:`siri_kernels.linear_logprob.top_entries`, and, of the many that are smaller, a random sample:
one of probability p with the chance ``p / (SPARSENESS * LEAST)``. The sample tells how far the mass
of all of them is from the truth (:mod:`siri_kernels.linear_logprob.screen.estimate`).

The draws come from one table of random numbers. Where a token and a tile begin to read in it
follows from the token's own numbers, so that a token has the same sample in any batch and run.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from siri_kernels.linear_logprob.online_softmax import LOG_ZERO
from siri_kernels.linear_logprob.portable.forward import capped
from siri_kernels.linear_logprob.top_entries import EPS

# An exact forward saves a tenth more than what has EPS: its bound is that of the sums so far.
LEAST = 0.8 * EPS
SPARSENESS = 10.0
PLACES = 2048  # of a token's candidates; one that has more is computed exactly
IDS = 1024  # of a tile, at most
_TABLE = 1 << 16


class Tokens(NamedTuple):
    """The numbers that the logits of T tokens are made of, and their targets.

    Attributes:
        scale: [T] float32 of the token's 8-bit integers.
        shared: [T] float32, the raw logit that all ids share: ``hidden @ mean``.
        cooling: [T] float32, 1 / temperature.
        softcap: as in :class:`siri_kernels.linear_logprob.types.LogitRule`.
        targets: [T] int64.
        target_logit: [T] float32, exact.
    """

    scale: torch.Tensor
    shared: torch.Tensor
    cooling: torch.Tensor
    softcap: float | None
    targets: torch.Tensor
    target_logit: torch.Tensor

    def contiguous(self) -> Tokens:
        """The same in contiguous memory."""
        scale, shared, cooling = (x.contiguous() for x in self[:3])
        targets, target_logit = self.targets.contiguous(), self.target_logit.contiguous()
        return Tokens(scale, shared, cooling, self.softcap, targets, target_logit)

    def seeds(self) -> torch.Tensor:
        """[T] int32: a hash of each token's own numbers."""
        bits = self.scale.view(torch.int32).long() * 0x9E3779B1
        bits = (bits ^ self.shared.view(torch.int32).long()) * 0x85EBCA6B
        bits = (bits ^ self.targets) * 0xC2B2AE35
        return (bits ^ (bits >> 29)).to(torch.int32)


class Ids(NamedTuple):
    """The numbers that the logits of a tile's ids are made of.

    Attributes:
        start: the first id.
        scale: [n] float32 of the id's 8-bit integers.
        bias: [n] float32, or None: 0.
    """

    start: int
    scale: torch.Tensor
    bias: torch.Tensor | None


class Candidates(NamedTuple):
    """The candidates of T tokens, token after token.

    Attributes:
        row: [N] int64, the token.
        id: [N] int64.
        logit: [N] float32, screened.
        weight: [N] float32: it is one if its probability is at least ``LEAST * weight``.
        over: [T] bool: tokens with more candidates than places; none of theirs is here.
    """

    row: torch.Tensor
    id: torch.Tensor
    logit: torch.Tensor
    weight: torch.Tensor
    over: torch.Tensor


class Running:
    """The running softmax of T tokens without their targets, tile by tile, in PyTorch.

    Attributes:
        tokens: the tokens.
        max: [T] float32, the largest logit so far.
        sum: [T] float64, sum of exp(logit - max).
        dev: [T] float64, sum of (logit - max) * exp(logit - max).

    Args:
        tokens: the tokens.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        like = tokens.scale
        self.max = torch.full_like(like, float("-inf"))
        self.sum = torch.zeros_like(like, dtype=torch.float64)
        self.dev = torch.zeros_like(self.sum)
        self.seed = tokens.seeds()
        self.count = torch.zeros_like(like, dtype=torch.int64)
        self.found: list[tuple[torch.Tensor, ...]] = []
        self.outliers: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def add(self, products: torch.Tensor, span: slice, ids: Ids) -> None:
        """Takes in the integer products of some tokens with a tile of ids.

        Args:
            products: [tokens, n] int32.
            span: which tokens.
            ids: of the tile.
        """
        of = self.tokens
        z = products.to(torch.float32).mul_(ids.scale).mul_(of.scale[span, None])
        z.add_(of.shared[span, None])
        if ids.bias is not None:
            z.add_(ids.bias)
        capped(z, of.softcap)
        z.mul_(of.cooling[span, None])
        column = of.targets[span] - ids.start
        inside = (column >= 0) & (column < z.shape[1])
        rows = inside.nonzero()[:, 0]
        z[rows, column[rows]] = float("-inf")
        exp, bound = self.add_logits(z, span)
        weight = draws(self.seed[span], ids.start, z.shape[1])
        above = exp >= bound[:, None].to(torch.float32) * weight
        above &= (self.count[span] <= PLACES)[:, None]
        self.count[span] += above.sum(1)
        row, at = above.nonzero().unbind(1)
        first = span.start or 0
        self.found.append((row + first, at + ids.start, z[row, at], weight[row, at]))

    def add_outliers(self, z: torch.Tensor, ids: torch.Tensor) -> None:
        """Takes in exact logits of all tokens, before any tile.

        Args:
            z: [T, n] float32.
            ids: [n] int64, ascending.
        """
        z.masked_fill_(ids == self.tokens.targets[:, None], float("-inf"))
        exp, bound = self.add_logits(z, slice(None))
        row, at = (exp >= bound[:, None].to(torch.float32)).nonzero().unbind(1)
        self.outliers = row, ids[at], z[row, at]

    def add_logits(self, z: torch.Tensor, span: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds logits to the sums.

        Args:
            z: [tokens, n] float32, without the target's.
            span: which tokens.

        Returns:
            exp(z - the largest logit so far) [tokens, n], and what of it makes a candidate [tokens]
            float64; infinity where nothing but -inf was seen.
        """
        before = self.max[span]
        top = torch.maximum(before, z.amax(1))
        shift = top.clamp(min=torch.finfo(z.dtype).min)
        centred = (z - shift[:, None]).clamp_(min=-87.0)
        exp = centred.exp()
        step = (before.double() - shift).clamp_(min=LOG_ZERO)
        shrunk = step.exp()
        self.dev[span] = (self.dev[span] + step * self.sum[span]) * shrunk + (centred * exp).sum(1)
        self.sum[span] = self.sum[span] * shrunk + exp.sum(1)
        self.max[span] = top
        target = (self.tokens.target_logit[span].double() - shift).clamp_(max=80.0).exp()
        bound = LEAST * (self.sum[span] + target)
        return exp, bound.masked_fill_(top == float("-inf"), float("inf"))

    def candidates(self) -> Candidates:
        """The candidates after the last tile, and a few that are too small."""
        over = self.count > PLACES
        row, ids, logit, weight = map(torch.cat, zip(*self.found, strict=True))
        order = torch.argsort(row, stable=True)
        order = order[~over[row[order]]]
        screened = Candidates(row[order], ids[order], logit[order], weight[order], over)
        return self.with_outliers(screened)

    def with_outliers(self, screened: Candidates) -> Candidates:
        """The candidates with those of :meth:`add_outliers`, ids ascending within a token.

        Args:
            screened: the others.
        """
        if self.outliers is None:
            return screened
        row, ids, logit = self.outliers
        keep = ~screened.over[row]
        row = torch.cat([screened.row, row[keep]])
        ids = torch.cat([screened.id, ids[keep]])
        logit = torch.cat([screened.logit, logit[keep]])
        weight = torch.cat([screened.weight, torch.ones_like(logit[len(screened.row) :])])
        order = torch.argsort((row << 32) + ids)
        return Candidates(row[order], ids[order], logit[order], weight[order], screened.over)


@functools.cache
def table() -> torch.Tensor:
    """Weights of candidates [a table's size + a tile's]: ``min(1, SPARSENESS * uniform)``."""
    generator = torch.Generator().manual_seed(0x5EED)
    uniform = torch.rand(_TABLE, generator=generator, dtype=torch.float64, device="cpu")
    weights = (SPARSENESS * (1 - uniform)).clamp_(max=1).to(torch.float32)
    return torch.cat([weights, weights[:IDS]])


def draws(seed: torch.Tensor, start: int, width: int) -> torch.Tensor:
    """Weights [T, width] that make the ids from ``start`` on candidates.

    Args:
        seed: [T] int32 of the tokens.
        start: the first id.
        width: number of ids.
    """
    at = _mixed(seed.long() ^ int(_mixed(torch.tensor(start, dtype=torch.int64, device="cpu")))) & (
        _TABLE - 1
    )
    return table().unfold(0, width, 1).index_select(0, at)


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """The hash of ``tiles.c``, of 32 bits in int64."""
    x = x & 0xFFFFFFFF
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x = x ^ (x >> 15)
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ (x >> 16)
