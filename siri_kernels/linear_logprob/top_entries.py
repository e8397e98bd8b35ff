"""The entries of each row's softmax that can still matter, collected while the tiles go by.

A softmax that is sure of itself is almost empty, so a short list of its entries is a checkpoint of
all of it. An entry is listed when its probability may be ``EPS`` or more: its logit is not below
(a lower bound of the row's lse) + log EPS. The bound is the running lse together with the target's
logit, which is known first. The target itself is not listed. A row with more entries than there are
slots keeps the first ones, and ``found`` says that it is not complete.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

# On an H200 (16 384 x 1536 x 151 936, 0.5 nats, the entropy's gradient too) 1e-5 left d_hidden 1.8
# times as far from float64 as eager bfloat16's is, and 4.2 % of the rows to be recomputed; 3e-6:
# 0.72 times, 0.3 %, for 2 % more time. Rows that need more than 1024 entries are better recomputed.
EPS = 3e-6
LOG_EPS = math.log(EPS)
MOST_SLOTS = 1024
# A vocabulary this small is recomputed faster than listed.
LEAST_VOCABULARY = 8192


def slots_for(vocabulary: int, tail: float, needs_gradient: bool) -> int:
    """Slots a row, a multiple of 16 so that rows are aligned; 0: no list, backward recomputes
    every row."""
    if tail == 0 or not needs_gradient or vocabulary < LEAST_VOCABULARY:
        return 0
    return min(MOST_SLOTS, vocabulary // 1024 * 16)


class Slots(NamedTuple):
    """Lists of T rows; of row t the first ``min(found[t], K)`` places are filled, in id order."""

    ids: torch.Tensor  # [T, K] int32
    logits: torch.Tensor  # [T, K] fp32 (fp64 for float64 inputs)
    found: torch.Tensor  # [T] int32; more than K: the row has entries that are not listed

    @staticmethod
    def empty(rows: int, slots: int, like: torch.Tensor, dtype: torch.dtype) -> Slots:
        assert slots % 16 == 0, "kernels read whole groups of 16"
        return Slots(
            like.new_empty(rows, slots, dtype=torch.int32),
            like.new_empty(rows, slots, dtype=dtype),
            like.new_zeros(rows, dtype=torch.int32),
        )

    def block(self, start: int, stop: int) -> Slots:
        return Slots(*(x[start:stop] for x in self))


class Collector:
    """Fills the slots of a block of rows (on a CPU: it reads sizes)."""

    def __init__(self, slots: Slots, target_logit: torch.Tensor) -> None:
        """``target_logit`` may be a rounding away from the truth: it only moves the threshold.

        It may have more rows than ``slots``: padding, which lists nothing.
        """
        self.slots, self.target_logit = slots, target_logit
        target_logit[len(slots.found) :] = float("inf")
        self.most = slots.ids.shape[1]
        self.count = slots.found.new_zeros(target_logit.shape, dtype=torch.int64)

    def add(
        self,
        z: torch.Tensor,
        shift: torch.Tensor,
        top: torch.Tensor,
        total: torch.Tensor,
        start: int,
    ) -> None:
        """Lists what matters of a tile.

        Args:
            z: [rows, n] logits - ``shift`` of ids start.., the target's far below all others.
            shift: [rows] what was taken off.
            top: [rows] largest logit of the tile, the target's not counted.
            total: [rows] sum of exp(logit - shift) over all ids so far, the target's not counted.
        """
        bound = torch.logaddexp(total.log(), self.target_logit - shift) + LOG_EPS
        bound.masked_fill_(self.count > self.most, float("inf"))
        rows = (top - shift >= bound).nonzero()[:, 0]
        if len(rows) == 0:
            return
        z = z.index_select(0, rows)
        flat = (z >= bound[rows, None]).view(-1).nonzero()[:, 0]
        row = flat // z.shape[1]
        found = torch.bincount(row, minlength=len(rows))
        before = self.count[rows]
        self.count[rows] += found
        places = torch.arange(len(flat), dtype=torch.int64, device=flat.device)
        place = places + (before - found.cumsum(0) + found)[row]
        if int(self.count.max()) > self.most:
            fits = place < self.most
            flat, row, place = flat[fits], row[fits], place[fits]
        at = (rows[row], place)
        value = z.view(-1)[flat] + shift[at[0]]
        self.slots.logits.index_put_(at, value)
        self.slots.ids.index_put_(at, (flat - row * z.shape[1] + start).int())

    def finish(self) -> None:
        self.slots.found.copy_(self.count[: len(self.slots.found)])
