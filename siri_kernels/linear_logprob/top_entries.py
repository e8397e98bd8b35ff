"""Top entries: those of each token's softmax that can still matter, saved while tiles go by.

A softmax that is sure of itself is almost empty, so a few of its entries are a checkpoint of all of
it. An entry is saved when its probability may be ``EPS`` or more: its logit is not below (a lower
bound of the token's lse) + log EPS. The bound is the running lse together with the target's logit,
which is known first. The target itself is not saved. A token may have more such entries than there
are places: ``found`` says so, and what its places hold is not used.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

# On an H200 (16 384 x 1536 x 151 936, 0.5 nats, the entropy's gradient too) 1e-5 left d_hidden 1.8
# times as far from float64 as eager bfloat16's is, and 4.2 % of the tokens to be recomputed; 3e-6:
# 0.72 times, 0.3 %, for 2 % more time. Tokens that need more than 1024 entries are better
# recomputed.
EPS = 3e-6
LOG_EPS = math.log(EPS)
MOST_ENTRIES = 1024
# Backward is faster over all of a vocabulary this small than from top entries.
LEAST_VOCABULARY = 8192


def entries_to_save(vocabulary: int, tail: float, needs_gradient: bool) -> int:
    """How many top entries forward saves of each token.

    Args:
        vocabulary: number of ids.
        tail: the caller's, see :func:`siri_kernels.linear_logprob.api.linear_logprob`.
        needs_gradient: whether a backward pass can follow.

    Returns:
        A multiple of 16, so that a token's entries are aligned. 0: none are saved, and backward
        recomputes every token.
    """
    if tail == 0 or not needs_gradient or vocabulary < LEAST_VOCABULARY:
        return 0
    return min(MOST_ENTRIES, vocabulary // 1024 * 16)


class TopEntries(NamedTuple):
    """K places for each of T tokens; of token t the first ``found[t]`` are filled, if at most K.

    Attributes:
        ids: [T, K] int32, ascending.
        logits: [T, K] float32 (float64 for float64 inputs).
        found: [T] int32; more than K: the token has entries that are not saved.
        mass: [V] the probabilities of each id, without the targets', added over the tokens, or a
            little more; None where backward does not use it.
    """

    ids: torch.Tensor
    logits: torch.Tensor
    found: torch.Tensor
    mass: torch.Tensor | None = None

    @staticmethod
    def empty(tokens: int, most: int, like: torch.Tensor, dtype: torch.dtype) -> TopEntries:
        """Places of which none is filled.

        Args:
            tokens: T.
            most: K, a multiple of 16.
            like: a tensor on the device to use.
            dtype: of the logits.
        """
        assert most % 16 == 0, "kernels read whole groups of 16"
        return TopEntries(
            like.new_empty(tokens, most, dtype=torch.int32),
            like.new_empty(tokens, most, dtype=dtype),
            like.new_zeros(tokens, dtype=torch.int32),
        )

    def block(self, start: int, stop: int) -> TopEntries:
        """The places of the tokens start..stop-1."""
        ids, logits, found = (x[start:stop] for x in (self.ids, self.logits, self.found))
        return TopEntries(ids, logits, found, self.mass)

    def select(self, index: torch.Tensor | None) -> TopEntries:
        """The places of the tokens ``index``, numbers or bool (None: all of them)."""
        if index is None:
            return self
        return TopEntries(self.ids[index], self.logits[index], self.found[index], self.mass)


class Collector:
    """Fills the places of a block of tokens (on a CPU: it reads sizes).

    Args:
        top: the places.
        target_logit: [T] or longer. It may be a rounding away from the truth: it only moves the
            threshold. Tokens beyond the places are padding; nothing of them is saved.
    """

    def __init__(self, top: TopEntries, target_logit: torch.Tensor) -> None:
        self.top, self.target_logit = top, target_logit
        target_logit[len(top.found) :] = float("inf")
        self.most = top.ids.shape[1]
        self.count = top.found.new_zeros(target_logit.shape, dtype=torch.int64)

    def add(
        self,
        z: torch.Tensor,
        shift: torch.Tensor,
        top: torch.Tensor,
        total: torch.Tensor,
        start: int,
        exp: torch.Tensor,
    ) -> None:
        """Saves what matters of a tile.

        Args:
            z: [T, n] logits - ``shift`` of the tile's ids, the target's far below all others.
            shift: [T] what was subtracted.
            top: [T] largest logit of the tile but for the target's.
            total: [T] sum of exp(logit - shift) over all ids so far but the target.
            start: first id of the tile.
            exp: [T, n] exp(``z``).
        """
        lse = torch.logaddexp(total.log(), self.target_logit - shift)
        if self.top.mass is not None:
            self.top.mass[start : start + z.shape[1]] += exp.t().mv(lse.neg().exp_())
        bound = lse + LOG_EPS
        bound.masked_fill_(self.count > self.most, float("inf"))
        rows = (top - shift >= bound).nonzero()[:, 0]
        if len(rows) == 0:
            return
        if len(rows) < len(z):
            z, bound, shift = z.index_select(0, rows), bound[rows], shift[rows]
        above = z >= bound[:, None]
        found = above.view(torch.int8).sum(1)
        before = self.count[rows]
        self.count[rows] += found
        full = before + found > self.most
        if bool(full.any()):  # they are recomputed: what their places hold is not used
            above[full] = False
            found = found.masked_fill_(full, 0)
        flat = above.view(-1).nonzero()[:, 0]
        row = torch.repeat_interleave(found, output_size=len(flat))
        places = torch.arange(len(flat), dtype=torch.int64, device=flat.device)
        first = rows * self.most + before - found.cumsum(0) + found
        at = places + first[row]
        value = z.view(-1)[flat] + shift[row]
        self.top.logits.view(-1)[at] = value
        self.top.ids.view(-1)[at] = (flat - row * z.shape[1] + start).int()

    def finish(self) -> None:
        """Writes ``found``, after the last tile."""
        self.top.found.copy_(self.count[: len(self.top.found)])
        if self.top.mass is not None:  # one token's NaN is not the others'
            self.top.mass.nan_to_num_(nan=0.0, posinf=0.0)
