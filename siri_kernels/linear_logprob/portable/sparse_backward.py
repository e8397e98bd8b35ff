"""Sparse backward in PyTorch: gradients from the top entries of tokens within the error bound.

Every sum runs over one token's entries, or one id's, in a fixed order, in fp32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from siri_kernels.linear_logprob.call import HeadCall
from siri_kernels.linear_logprob.error_bound import EntrySums
from siri_kernels.linear_logprob.online_softmax import LOG_ZERO, GradientRule
from siri_kernels.linear_logprob.top_entries import TopEntries
from siri_kernels.linear_logprob.types import SoftmaxStats
from siri_kernels.linear_logprob.vocab_parallel import is_local

_GATHERED = 8192  # rows of a matrix that are gathered and upcast at a time
_IDS = 8192  # ids of the weight's gradient that are summed at a time


class Entries(NamedTuple):
    """N entries of the raw logits' gradient, sorted by token; a token's first is its target.

    Attributes:
        row: [N] int64, the token.
        id: [N] int64, the vocabulary id.
        grad: [N] gradient of the raw logit.
        length: [T] int64, how many entries each token has.
    """

    row: torch.Tensor
    id: torch.Tensor
    grad: torch.Tensor
    length: torch.Tensor

    def of(self, tokens: torch.Tensor) -> Entries:
        """Only those of the tokens where ``tokens`` [T] is true; the others have none."""
        if bool(tokens.all()):
            return self
        keep = tokens[self.row]
        return Entries(self.row[keep], self.id[keep], self.grad[keep], self.length * tokens)


def entries(
    call: HeadCall, stats: SoftmaxStats, top: TopEntries, rule: GradientRule
) -> tuple[Entries, EntrySums]:
    """Gradients at the top entries and targets, and the sums that the error bound is made of.

    Args:
        call: of the tokens. A target that is not one of this shard's ids gives nothing.
        stats: of the tokens.
        top: of the tokens.
        rule: of the tokens.
    """
    most = top.ids.shape[1]
    over = top.found > most
    length = top.found.long().masked_fill_(over, 0)  # nothing of a token that is recomputed
    row = torch.repeat_interleave(length)
    place = _numbers(row) - (length.cumsum(0) - length)[row]
    ids, z = top.ids[row, place].long(), top.logits[row, place]
    centred = (z - stats.max[row]).clamp_(min=LOG_ZERO)
    exp = centred.exp()
    grad = exp * rule.offset[row]
    if rule.slope is not None:
        grad += exp * centred * rule.slope[row]
    # Probabilities, for the error bound.
    log_p = centred.sub_(stats.log_sum[row])
    p = log_p.exp()
    kept = _sum_by_token(p, row, len(length))
    kept_entropy = _sum_by_token(-p * log_p, row, len(length))
    # The target goes before the others of its token.
    tail_of = _numbers(row) + row + 1
    head_of = length.cumsum(0) - length + _numbers(length)

    def merged(head: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
        whole = tail.new_empty(len(head) + len(tail))
        whole[tail_of], whole[head_of] = tail, head
        return whole

    rows, here = _numbers(length), is_local(call.targets, len(call.weight))
    head = rule.at_target.where(here, 0)
    out = Entries(
        merged(rows, row), merged(call.targets.where(here, 0), ids), merged(head, grad), length + 1
    )
    if call.rule.softcap is not None:
        temperature = call.rule.temperature
        raw = merged(stats.logprobs + (stats.max + stats.log_sum), z) / call.rule.softcap
        raw *= (
            temperature.to(raw.dtype)[out.row]
            if isinstance(temperature, torch.Tensor)
            else temperature
        )
        # An infinite logit comes from no finite raw one; its gradient is 0 already.
        out.grad.mul_(1 - raw.clamp_(-1, 1).square_())
    norm = _sum_by_token(out.grad.abs(), out.row, len(length))
    return out, EntrySums(kept, kept_entropy, norm, over.to(norm.dtype))


def _numbers(like: torch.Tensor) -> torch.Tensor:
    """0, 1, ... as many as there are entries of ``like``, beside it."""
    return torch.arange(len(like), dtype=torch.int64, device=like.device)


def _sum_by_token(values: torch.Tensor, row: torch.Tensor, rows: int) -> torch.Tensor:
    return values.new_zeros(rows).index_add_(0, row, values)


class Operand:
    """A matrix whose rows are used as the GEMM takes them, in the accumulator's dtype.

    Args:
        matrix: [N, D].
        gemm: dtype in which matrices are multiplied.
        acc: dtype of sums.
    """

    def __init__(self, matrix: torch.Tensor, gemm: torch.dtype, acc: torch.dtype) -> None:
        self.matrix, self.gemm, self.acc = matrix, gemm, acc
        self.as_is = matrix.dtype == gemm == acc and matrix.is_contiguous()

    def bags(self, index: torch.Tensor, weight: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """[bags, D] for each bag the sum of ``weight`` times row ``index`` of the matrix.

        Args:
            index: [N] int64 rows, bag after bag.
            weight: [N].
            length: [bags] int64, how many rows each bag has.
        """
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
            last = int(torch.searchsorted(stop, done + _GATHERED, right=True))
            last = max(last, first + 1)
            end = int(stop[last - 1])
            rows = self.matrix.index_select(0, index[done:end]).to(self.gemm).to(self.acc)
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
    """Gradients of ``weight`` and ``bias`` from the entries, a range of ids at a time.

    Args:
        entries: of all tokens.
        hidden: the hidden states [T, D].
    """

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
        return self.ids[ids], _sum_by_token(self.grad[entries], bag, ids.stop - ids.start)

    def weight_like(self, weight: torch.Tensor) -> torch.Tensor:
        """The whole gradient of ``weight``."""
        out = torch.zeros_like(weight)
        for start in range(0, len(weight), _IDS):
            ids, rows = self.rows(start, start + _IDS)
            out.index_copy_(0, ids, rows.to(out.dtype))
        return out

    def bias_like(self, bias: torch.Tensor) -> torch.Tensor:
        """The whole gradient of ``bias``."""
        ids, values = self.bias(0, len(bias))
        return torch.zeros_like(bias).index_copy_(0, ids, values.to(bias.dtype))
