"""Backward from the lists of :mod:`.slots` on a CPU: what a certified row gives to each gradient.

Every sum runs over one row's entries, or one token id's, in a fixed order, in fp32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from siri_kernels.linear_logprob.error_bound import Listed
from siri_kernels.linear_logprob.online_softmax import LOG_ZERO, GradientRule
from siri_kernels.linear_logprob.top_entries import Slots
from siri_kernels.linear_logprob.types import LogitRule, SoftmaxStats
from siri_kernels.linear_logprob.vocab_parallel import is_local

GATHERED = 8192  # rows of a table that are gathered and widened at a time
IDS = 8192  # rows of the weight's gradient that are summed at a time


class Entries(NamedTuple):
    """Entries of the raw logits' gradient, sorted by row; the first of each row is its target."""

    row: torch.Tensor  # [N] int64
    id: torch.Tensor  # [N] int64
    grad: torch.Tensor  # [N]
    length: torch.Tensor  # [T] int64, entries of each row

    def of(self, rows: torch.Tensor) -> Entries:
        """Only the rows where ``rows`` [T] is true; the others get none."""
        if bool(rows.all()):
            return self
        keep = rows[self.row]
        return Entries(self.row[keep], self.id[keep], self.grad[keep], self.length * rows)


def entries(
    slots: Slots,
    targets: torch.Tensor,
    vocabulary: int,
    stats: SoftmaxStats,
    rule: LogitRule,
    gradient: GradientRule,
) -> tuple[Entries, Listed]:
    """All listed entries, and what the certificate needs to know of each row's.

    A target that is not in 0..vocabulary-1 is not here, and gives nothing.
    """
    most = slots.ids.shape[1]
    length = slots.found.clamp(max=most).long()
    row = torch.repeat_interleave(length)
    place = _numbers(row) - (length.cumsum(0) - length)[row]
    ids, z = slots.ids[row, place].long(), slots.logits[row, place]
    centred = (z - stats.max[row]).clamp_(min=LOG_ZERO)
    exp = centred.exp()
    grad = exp * gradient.offset[row]
    if gradient.slope is not None:
        grad += exp * centred * gradient.slope[row]
    # Probabilities, for the certificate.
    log_p = centred.sub_(stats.log_sum[row])
    p = log_p.exp()
    kept = _sum_of_rows(p, row, len(length))
    kept_entropy = _sum_of_rows(-p * log_p, row, len(length))
    temperature = rule.temperature
    # The target goes before the others of its row.
    tail_of = _numbers(row) + row + 1
    head_of = length.cumsum(0) - length + _numbers(length)

    def merged(head: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
        whole = tail.new_empty(len(head) + len(tail))
        whole[tail_of], whole[head_of] = tail, head
        return whole

    rows, here = _numbers(length), is_local(targets, vocabulary)
    head = gradient.at_target.where(here, 0)
    out = Entries(
        merged(rows, row), merged(targets.where(here, 0), ids), merged(head, grad), length + 1
    )
    if rule.softcap is not None:
        raw = merged(stats.logprobs + (stats.max + stats.log_sum), z) / rule.softcap
        raw *= (
            temperature.to(raw.dtype)[out.row]
            if isinstance(temperature, torch.Tensor)
            else temperature
        )
        # An infinite logit comes from no finite raw one; its gradient is 0 already.
        out.grad.mul_(1 - raw.clamp_(-1, 1).square_())
    norm = _sum_of_rows(out.grad.abs(), out.row, len(length))
    over = (slots.found > most).to(norm.dtype)
    return out, Listed(kept, kept_entropy, norm, over)


def _numbers(like: torch.Tensor) -> torch.Tensor:
    """0, 1, ... as many as there are entries of ``like``, beside it."""
    return torch.arange(len(like), dtype=torch.int64, device=like.device)


def _sum_of_rows(values: torch.Tensor, row: torch.Tensor, rows: int) -> torch.Tensor:
    return values.new_zeros(rows).index_add_(0, row, values)


class Operand:
    """A matrix of which rows are wanted as the GEMM takes them, in the accumulator's dtype."""

    def __init__(self, matrix: torch.Tensor, gemm: torch.dtype, acc: torch.dtype) -> None:
        self.matrix, self.gemm, self.acc = matrix, gemm, acc
        self.as_is = matrix.dtype == gemm == acc and matrix.is_contiguous()

    def bags(self, index: torch.Tensor, weight: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """[bags, D]: of each bag, the sum of ``weight`` times row ``index`` of the matrix."""
        if len(index) == 0:
            return weight.new_zeros(len(length), self.matrix.shape[1])
        if self.as_is:
            start = length.cumsum(0) - length
            return F.embedding_bag(index, self.matrix, start, mode="sum", per_sample_weights=weight)
        out = weight.new_zeros(len(length), self.matrix.shape[1])
        stop = length.cumsum(0)
        first = done = 0
        while first < len(length):
            # As many whole bags as fit, at least one.
            last = int(torch.searchsorted(stop, done + GATHERED, right=True))
            last = max(last, first + 1)
            end = int(stop[last - 1])
            rows = self.matrix[index[done:end]].to(self.gemm).to(self.acc)
            part = length[first:last]
            out[first:last] = F.embedding_bag(
                _numbers(index[done:end]),
                rows,
                part.cumsum(0) - part,
                mode="sum",
                per_sample_weights=weight[done:end],
            )
            first, done = last, end
        return out


class WeightGradient:
    """Gradient of ``weight`` and ``bias`` from the entries, a range of ids at a time."""

    def __init__(self, entries: Entries, hidden: Operand) -> None:
        order = torch.argsort(entries.id, stable=True)
        self.row, self.grad, self.hidden = entries.row[order], entries.grad[order], hidden
        self.ids, self.length = torch.unique_consecutive(entries.id[order], return_counts=True)
        self.stop = self.length.cumsum(0)

    def _span(self, start: int, stop: int) -> tuple[slice, slice]:
        """Which of the distinct ids lie in start..stop-1, and which entries have them."""
        first, last = (int(torch.searchsorted(self.ids, limit)) for limit in (start, stop))
        begin = int(self.stop[first - 1]) if first else 0
        return slice(first, last), slice(begin, int(self.stop[last - 1]) if last else 0)

    def rows(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The distinct ids in start..stop-1, and the gradient of their rows of ``weight``."""
        ids, entries = self._span(start, stop)
        sums = self.hidden.bags(self.row[entries], self.grad[entries], self.length[ids])
        return self.ids[ids], sums

    def bias(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for ``bias``."""
        ids, entries = self._span(start, stop)
        bag = torch.repeat_interleave(self.length[ids])
        return self.ids[ids], _sum_of_rows(self.grad[entries], bag, ids.stop - ids.start)

    def weight_like(self, weight: torch.Tensor) -> torch.Tensor:
        """The whole gradient of ``weight``."""
        out = torch.zeros_like(weight)
        for start in range(0, len(weight), IDS):
            ids, rows = self.rows(start, start + IDS)
            out.index_copy_(0, ids, rows.to(out.dtype))
        return out

    def bias_like(self, bias: torch.Tensor) -> torch.Tensor:
        """The whole gradient of ``bias``."""
        ids, values = self.bias(0, len(bias))
        return torch.zeros_like(bias).index_copy_(0, ids, values.to(bias.dtype))
